"""What OPDConfig refuses of a loss, and where it warns of a biased gradient."""

import warnings

from ...losses.divergences import DIVERGENCES
from ...losses.sampled_tail import why_not_sampled_tail
from ...losses.support import TOP_K_SUPPORTS


#: Fields that take tokens from the sampler, or change their probabilities -> their values that do nothing.
SAMPLER = {
    "top_p": (1.0,),
    "top_k": (None, 0, -1),
    "min_p": (None, 0.0),
    "repetition_penalty": (1.0,),
    "vllm_structured_outputs_regex": (None,),
}
#: And keys of `generation_kwargs` that do.
SAMPLER_KEYS = (
    *SAMPLER,
    *("temperature", "do_sample", "num_beams", "typical_p", "epsilon_cutoff", "eta_cutoff", "presence_penalty"),
    *("frequency_penalty", "no_repeat_ngram_size", "bad_words_ids", "bad_words", "suppress_tokens", "logit_bias"),
    *("allowed_token_ids", "min_new_tokens", "min_tokens", "min_length", "structured_outputs"),
)


def check_loss(config) -> None:
    if config.loss_top_k < 1:
        raise ValueError(
            f"loss_top_k must be >= 1, got {config.loss_top_k}. Use loss_support='full' for the whole vocabulary."
        )
    check_sampled_options(config)
    check_position_weight(config)
    check_shaping(config)
    if config.loss_tail == "reweight" and not (config.divergence == "reverse_kl" and config.stop_gradient):
        raise ValueError(
            f"loss_tail='reweight' is a policy gradient on the support: it needs divergence='reverse_kl' with "
            f"stop_gradient=True, got {config.divergence!r} with {config.stop_gradient}. Use loss_tail='drop'."
        )
    if config.loss_tail == "sample":
        check_sampled_tail(config)
    if config.loss_support not in TOP_K_SUPPORTS:
        return
    # The union of two single tokens can hold two ids, so it alone has a gradient there.
    if config.loss_top_k == 1 and config.loss_tail == "renormalize" and config.loss_support != "union":
        raise ValueError(
            "loss_top_k=1 with loss_tail='renormalize' is identically zero: one token always has the whole "
            "renormalised mass. Use loss_support='sampled', loss_tail='drop', or a larger loss_top_k."
        )
    warn_of_bias(config)


def check_sampled_tail(config) -> None:
    """Refuse what the tail `sample` cannot be right for; warn where its tokens are no longer the student's."""
    reason = why_not_sampled_tail(
        config.loss_support, config.divergence, config.stop_gradient, config.loss_pointwise_clip
    )
    if reason is not None:
        raise ValueError(f"loss_tail='sample': {reason}")
    changed = {name: getattr(config, name) for name, usual in SAMPLER.items() if getattr(config, name) not in usual}
    kwargs = config.generation_kwargs or {}
    changed |= {f"generation_kwargs: {name}": kwargs[name] for name in SAMPLER_KEYS if name in kwargs}
    for name, value in changed.items():
        raise ValueError(
            f"loss_tail='sample' takes the sampled token for a draw from the student's whole distribution, and "
            f"{name}={value!r} changes what is drawn: a token that is never drawn, no weight brings back. Leave "
            f"{name.split(': ')[-1]} out, or set loss_tail: bucket."
        )
    if config.loss_importance_cap is not None:
        return
    if config.loss_temperature not in (None, config.temperature):
        raise ValueError(
            f"loss_tail='sample' at loss_temperature={config.loss_temperature}, and tokens are sampled at "
            f"temperature={config.temperature}: the sampled token needs the weight of both. Set loss_importance_cap, "
            "e.g. 10.0, or leave loss_temperature unset."
        )
    if config.reuses_generations:
        warnings.warn(
            "loss_tail='sample' on generations that are used for several steps: from the second on, the tokens are "
            "those of an older student, and the tail is biased. Set loss_importance_cap, e.g. 2.0.",
            UserWarning,
            stacklevel=6,
        )


def warn_of_bias(config) -> None:
    """Warn where a perfect student would be trained away from its teacher."""
    bias = tail_bias(config)
    if bias > 0:
        message = (
            "stop_gradient=False with loss_tail='drop' is the biased TopK reverse KL: its gradient keeps a '+1' "
            "on the support, so it is stationary at p = q/e and unlearns a perfect student (arXiv 2605.11182, "
            "mechanism 2). Set stop_gradient=True or loss_tail='renormalize' unless you study the bias."
        )
    elif bias < 0:
        message = (
            f"divergence={config.divergence!r} with loss_tail='drop': the forward KL of a truncated support is "
            "stationary at p = q / q(S) on it and empties the tail, which stop_gradient does not mend. Set "
            "loss_tail='bucket' or 'renormalize' unless you study the bias."
        )
    else:
        return
    warnings.warn(message, UserWarning, stacklevel=6)


def tail_bias(config) -> float:
    """`Divergence.tail_bias` of the configured loss: what is left of its gradient where the student is the teacher."""
    if config.loss_support not in TOP_K_SUPPORTS or config.loss_tail != "drop":
        return 0.0
    divergence = DIVERGENCES[config.divergence]
    return divergence.tail_bias(beta=config.divergence_beta, stop_gradient=config.stop_gradient)


def has_biased_gradient(config) -> bool:
    """Is something left of the gradient where the student is the teacher?"""
    return tail_bias(config) != 0


def check_sampled_options(config) -> None:
    """Refuse options of the sampled token on other supports, and weights at two temperatures."""
    extrapolates = config.loss_extrapolation != 1.0
    for name, used in (("loss_baseline", config.loss_baseline is not None), ("loss_extrapolation", extrapolates)):
        if used and config.loss_support != "sampled":
            raise ValueError(
                f"{name}={getattr(config, name)!r} changes the advantage of a sampled token, and loss_support is "
                f"{config.loss_support!r}. Set loss_support='sampled', or leave {name} out."
            )
    if config.loss_baseline == "top_k" and config.loss_top_k == 1:
        raise ValueError(
            "loss_baseline='top_k' with loss_top_k=1 is identically zero: one token has the whole renormalised mass. "
            "Use a larger loss_top_k (vOPD: 100) or loss_baseline='full'."
        )
    if config.reference_model_name_or_path is not None and not extrapolates:
        raise ValueError(
            "reference_model_name_or_path is used by loss_extrapolation alone, which is 1. Set it above 1, or remove "
            "the reference model."
        )
    at_two = config.loss_temperature not in (None, config.temperature)
    if config.loss_importance_cap is not None and at_two and config.loss_tail != "sample":
        raise ValueError(
            f"loss_importance_cap compares with the probabilities of sampling, at temperature={config.temperature}, "
            f"and loss_temperature is {config.loss_temperature}. Leave loss_temperature unset."
        )
    if config.loss_pointwise_clip is not None and config.loss_support == "sampled":
        raise ValueError(
            "loss_pointwise_clip bounds the terms of a divergence, and loss_support='sampled' has one log-ratio. "
            "Leave it out."
        )


def check_position_weight(config) -> None:
    """Refuse a trust region around what is not a sampled token, and one that holds nothing or everything."""
    if not 0 < config.loss_trust_ratio < 1:
        raise ValueError(
            f"loss_trust_ratio must lie inside (0, 1), got {config.loss_trust_ratio}. It is the smallest probability "
            "ratio teacher / student of a sampled token that is trusted; leave it unset for 0.1."
        )
    if config.loss_position_weight == "trust_region" and config.loss_support != "sampled":
        raise ValueError(
            f"loss_position_weight='trust_region' bounds the advantage of a sampled token, and loss_support is "
            f"{config.loss_support!r}, whose divergence at a position does not depend on which token was sampled. Set "
            "loss_support='sampled', or leave loss_position_weight out (iw_opd fits every support)."
        )


def check_shaping(config) -> None:
    """Refuse to shape an advantage that there is not, and options under which it would change its sign."""
    for name in ("rlsd_share", "rlsd_clip"):
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {getattr(config, name)}: the advantage keeps its sign.")
    if config.advantage_shaping is not None and config.num_generations < 2:
        raise ValueError(
            f"advantage_shaping={config.advantage_shaping!r} shapes the advantage of a completion in the group of its "
            f"prompt, and num_generations is {config.num_generations}: a group of one has none. Set num_generations: "
            "8, and give rewards."
        )
