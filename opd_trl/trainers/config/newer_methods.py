"""Methods published since May 2026: weights of tokens, shaped advantages, short rollouts; a part of `METHODS`."""

from .method import Method


NEWER_METHODS = {
    "iw_opd": Method(
        "the sampled token, weighted by how little student and teacher have parted before it",
        "2606.22600",
        "separate",
        {
            "loss_support": "sampled",
            "loss_position_weight": "iw_opd",
            "loss_position_gamma": 0.5,
            "temperature": 1.0,
        },
        "The log-ratios are those of the student as it is, where TRL takes those of vLLM's sampler; the mean is over "
        "the tokens of the whole global batch.",
    ),
    "trust_region": Method(
        "the sampled token, where the teacher does not all but rule it out (TrOPD)",
        "2606.01249",
        "separate",
        {
            "loss_support": "sampled",
            "loss_position_weight": "trust_region",
            "loss_trust_ratio": 0.1,
            "loss_trust_outside": "mask",
            "temperature": 1.0,
        },
        "In part: the mask, and clip with loss_trust_outside. The paper's threshold adapts, in a way that could not "
        "be checked: 0.1 is ours. Its forward KL outside of the region is not part of this method; its prefixes by "
        "the teacher are teacher_prefix_tokens.",
    ),
    "op2sd": Method(
        "OPSD whose context is another problem's solution",
        "2608.09228",
        "self",
        {
            "teacher_model_kind": "base",
            "privileged_builder": "solution",
            "shuffle_privileged_context": True,
            "divergence": "forward_kl",
            "loss_support": "full",
            "loss_pointwise_clip": 0.05,
            "temperature": 1.1,
            "learning_rate": 2e-5,
        },
        "The context is that of the paper; the loss is that of `opsd`, clip included, since the paper's own could not "
        "be checked.",
    ),
    "rlsd": Method(
        "GRPO, whose advantage the student with a context shapes token by token",
        "2604.03128",
        "self",
        {
            "teacher_model_kind": "base",
            "advantage_shaping": "rlsd",
            "rlsd_share": 0.5,
            "rlsd_clip": 0.2,
            "distillation_coef": 0.0,
            "num_generations": 8,
            "temperature": 1.0,
        },
        "The log-ratios are those of the student as it is, not at sampling; the share is constant. It needs "
        "reward_funcs. num_generations is TRL's default. There is no distillation loss: distillation_coef above 0 "
        "adds one.",
    ),
    "sdar": Method(
        "GRPO, and a gate of the teacher that raises sampled tokens",
        "2605.15155",
        "self",
        {
            "teacher_model_kind": "live",
            "advantage_shaping": "sdar",
            "sdar_coef": 0.1,
            "distillation_coef": 0.0,
            "num_generations": 8,
            "temperature": 1.0,
        },
        "Its term is a part of the advantage: the same gradient while the student is the one that sampled, and GRPO's "
        "clip on both behind it. As published it only ever raises sampled tokens, also those that the teacher rules "
        "out. Needs reward_funcs; num_generations is TRL's default.",
    ),
    "esr": Method(
        "the first 100 tokens of a rollout, and no more",
        "2605.27028",
        "separate",
        {
            "divergence": "reverse_kl",
            "loss_support": "full",
            "rollout_length_start": 100,
            "rollout_length_end": 100,
        },
        "Nothing of the rollout, which stops after 100 tokens or at its end; max_completion_length is evaluation's "
        "alone. That the KL is over the whole vocabulary, and the learning rate, are ours.",
    ),
    "popd": Method(
        "rollouts that grow over the run",
        "2605.31490",
        "separate",
        {"divergence": "reverse_kl", "loss_support": "full", "rollout_length_start": 0.1},
        "Published: the horizon expands gradually. That it goes on a line over the whole run, from a tenth of "
        "max_completion_length (the horizon of the paper's TOPD), and the loss are ours. TOPD itself: "
        "rollout_length_end: 0.1 too.",
    ),
}
