"""Fields of OPDConfig that say what the loss compares, on which tokens, and what it weighs."""

from dataclasses import dataclass, field


@dataclass
class LossFields:
    """The divergence, its support, the weights of tokens, and rewards beside it."""

    # Loss
    divergence: str = field(
        default="reverse_kl",
        metadata={
            "help": "reverse_kl sharpens on what the student does; forward_kl finds modes that it lacks; jsd lies "
            "between; mixed = (1 - divergence_beta) forward + divergence_beta reverse."
        },
    )
    divergence_beta: float = field(
        default=0.5,
        metadata={"help": "Share of the reverse side in jsd and mixed, 0 to 1. (beta is GRPO's KL anchor.)"},
    )
    loss_support: str = field(
        default="student",
        metadata={
            "help": "Token ids compared per position: TopK of the student, of the teacher, their intersection, their "
            "union; full (whole vocabulary); sampled (policy gradient on the sampled token)."
        },
    )
    loss_top_k: int = field(
        default=20, metadata={"help": "K of the TopK supports. (top_k is TRL's sampling parameter.)"}
    )
    loss_tail: str = field(
        default="renormalize",
        metadata={
            "help": "Probability outside the support: renormalize both models on it; bucket = one more category; "
            "drop; reweight = drop, over the student's mass on the support (policy gradient); sample = bucket, and "
            "the sampled token where it is outside: the whole vocabulary's reverse KL in expectation."
        },
    )
    stop_gradient: bool = field(
        default=True,
        metadata={"help": "Hold the log-ratio of the reverse KL constant (eq. 12): the unbiased TopK gradient."},
    )
    loss_pointwise_clip: float | None = field(
        default=None,
        metadata={"help": "Upper bound of each vocabulary entry's signed term (OPSD: 0.05); negative terms stay."},
    )
    loss_baseline: str | None = field(
        default=None,
        metadata={
            "help": "With loss_support sampled: subtract minus the reverse KL from the advantage, full, or top_k: on "
            "the student's renormalised TopK (vOPD). Less variance, the same expectation."
        },
    )
    loss_extrapolation: float = field(
        default=1.0,
        metadata={"help": "With loss_support sampled: above 1 goes beyond the teacher, away from a reference model."},
    )
    reference_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Reference model of loss_extrapolation. Default: the student at step 0."}
    )
    loss_importance_cap: float | None = field(
        default=None,
        metadata={"help": "Weight tokens by min(student now / at sampling, cap): for vLLM and reused generations."},
    )
    loss_position_weight: str | None = field(
        default=None,
        metadata={
            "help": "Weight of each token by how much both models differ on the sampled text: iw_opd = more for early "
            "tokens, before they part; trust_region (with loss_support sampled) = less for tokens that the teacher "
            "all but rules out. One more product with each LM head."
        },
    )
    loss_position_gamma: float = field(
        default=0.5, metadata={"help": "With iw_opd: the first token weighs 1 + gamma, the last about 1."}
    )
    loss_trust_ratio: float = field(
        default=0.1, metadata={"help": "With trust_region: smallest probability ratio teacher / student of a token."}
    )
    loss_trust_outside: str = field(
        default="mask",
        metadata={"help": "With trust_region: mask = no loss below the ratio; clip = the advantage ends there."},
    )
    loss_temperature: float | None = field(
        default=None, metadata={"help": "Temperature of both distributions in the loss. Default: that of sampling."}
    )
    loss_memory_mib: int | None = field(
        default=None,
        metadata={
            "help": "MiB for the logits of student and teacher that live at once; sets how many tokens reach the LM "
            "head at a time, not the result. Default: 128 on a CPU, 1024 on an accelerator."
        },
    )
    micro_batch_tokens: int | None = field(
        default=None,
        metadata={"help": "Most tokens of a micro-batch (rows x the longest one), in place of its number of rows."},
    )
    num_loss_tokens_to_skip: int = field(
        default=0, metadata={"help": "First completion tokens left out of the distillation loss."}
    )
    loss_skip_first: list[str] | None = field(
        default=None,
        metadata={"help": "Texts whose tokens have no loss at their first place in a completion, e.g. <think>."},
    )
    distillation_coef: float = field(default=1.0, metadata={"help": "Weight of the distillation loss."})
    distillation_coef_schedule: str = field(
        default="constant",
        metadata={"help": "constant, or linear: from distillation_coef to distillation_coef_end over the run."},
    )
    distillation_coef_end: float = field(
        default=0.0, metadata={"help": "Weight of the distillation loss at the end of a linear schedule."}
    )
    distillation_gate: str | None = field(
        default=None,
        metadata={"help": "Distil only completions that the rewards call correct, or only incorrect ones."},
    )
    distillation_gate_threshold: float = field(
        default=0.5, metadata={"help": "Weighted sum of rewards from which a completion counts as correct."}
    )
    policy_coef: float = field(
        default=1.0, metadata={"help": "Weight of GRPO's policy loss where reward functions are given."}
    )
    advantage_shaping: str | None = field(
        default=None,
        metadata={
            "help": "With rewards: the teacher shapes GRPO's advantage token by token. rlsd: its sign is that of the "
            "reward, its size the teacher's; sdar: plus a gate, which only ever raises sampled tokens."
        },
    )
    rlsd_share: float = field(
        default=0.5, metadata={"help": "With rlsd: share of the advantage that the teacher shapes, 0 to 1."}
    )
    rlsd_clip: float = field(
        default=0.2, metadata={"help": "With rlsd: the shaped share is multiplied by 1 - clip to 1 + clip."}
    )
    sdar_coef: float = field(default=0.1, metadata={"help": "With sdar: what a fully open gate adds."})
