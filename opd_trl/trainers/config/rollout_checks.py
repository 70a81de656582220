"""What OPDConfig refuses of given text and of the length of rollouts."""

import warnings


#: Names under which `generation_kwargs` hold a limit of their own: of transformers, and of vLLM.
OWN_LIMITS = ("max_new_tokens", "max_length", "max_tokens")


def check_rollouts(config) -> None:
    if not 0.0 <= config.lmbda <= 1.0:
        raise ValueError(
            f"lmbda must lie in [0, 1], got {config.lmbda}. 1: all text is the student's own; 0: all of it is given."
        )
    if config.lmbda < 1.0:
        check_given_text(config)
    check_lengths(config)


def check_given_text(config) -> None:
    """Refuse what has no meaning for text that the student did not sample; warn of a gradient that is not unbiased."""
    said = f"lmbda={config.lmbda}"
    if config.num_generations > 1:
        raise ValueError(
            f"{said} with num_generations={config.num_generations}: a row has one given completion, which would be "
            "learnt from several times. Set num_generations: 1."
        )
    if config.loss_importance_cap is not None:
        raise ValueError(
            f"{said} with loss_importance_cap={config.loss_importance_cap}: given text was not sampled from the "
            "student, so it has no probabilities of sampling to compare with. Leave loss_importance_cap out."
        )
    if config.sibling_context:
        raise ValueError(f"{said} with sibling_context: given text has no siblings. Set lmbda: 1.0.")
    if config.loss_support == "sampled":
        warnings.warn(
            f"{said} with loss_support='sampled': the policy gradient of a token is unbiased over what the student "
            "samples, and given text is not that. There it weighs the data set's tokens by the teacher's log-ratio, "
            "which is not a divergence. Take a loss_support of TopK or full.",
            UserWarning,
            stacklevel=5,
        )


def check_lengths(config) -> None:
    """Refuse rollouts that would shrink, a prefix that leaves no room behind it, and a second limit."""
    most, first, last = config.max_completion_length, config.first_rollout_limit, config.last_rollout_limit
    if first is not None and last is None:
        raise ValueError("rollout_length_start needs an end: set rollout_length_end or max_completion_length.")
    if config.rollout_length_start is not None and first > last:
        raise ValueError(
            f"rollout_length_start={config.rollout_length_start} ({first} tokens) is above rollout_length_end="
            f"{config.rollout_length_end} ({last} tokens of max_completion_length={most}). Rollouts grow, or keep "
            "their length: give it as the end too."
        )
    prefix = config.teacher_prefix_tokens
    if prefix is not None and first is not None and prefix >= first:
        raise ValueError(
            f"teacher_prefix_tokens={prefix} leaves no room: a rollout has at most {first} tokens, the prefix among "
            "them (max_completion_length, rollout_length_start). Lower it."
        )
    own = [name for name in OWN_LIMITS if name in (config.generation_kwargs or {})]
    if own and (config.rollout_length_start is not None or prefix is not None):
        raise ValueError(
            f"generation_kwargs has {own[0]!r}, which would override the limit of each rollout. Leave it out: the "
            "limits are max_completion_length and rollout_length_start."
        )
