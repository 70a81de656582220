"""Rules that turn figures into advice: what a log line of a failing run looks like, why, and what to change."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .conditions import Condition


PAPER = "arXiv 2605.11182"
MISMATCH = (
    "Mechanism 1, distribution mismatch: the teacher is asked about prefixes that only the student writes, and its "
    "advice there is poor."
)
BIAS = (
    "Mechanism 2, biased TopK gradient: on a truncated support the plain reverse KL keeps a '+1' that drains the "
    "student's mass from the support."
)
AGGREGATE = (
    "Mechanism 3, aggregated privileged context: one student without the context can only learn what all contexts "
    "share."
)
OPTIMISATION = "Optimisation: the step is too large, or a number has overflowed."


@dataclass(frozen=True)
class Remedy:
    """A change of the configuration that is advised against a failure.

    Attributes:
        text: a full sentence.
        source: where the advice comes from.
        unless: field -> value with which the change is made already, so that it is not advised.
    """

    text: str
    source: str = PAPER
    unless: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """A sign of a failure in the log lines of a run, with its cause and what to do.

    Attributes:
        name: in the run log.
        conditions: all must hold; the first is the one that is reported.
        one_is_enough: one of them need hold, which is then the one that is reported.
        mechanism: what is behind it.
        unbiased: what is behind it where the configured loss has no such bias (setting `biased`: False); empty: the
            same.
        remedies: what to change; those that are in force already are left out.
        window: log lines that a condition takes together.
        only: setting -> value without which the rule says nothing.
        unless: setting -> value with which the figure means something else.
    """

    name: str
    conditions: tuple[Condition, ...]
    mechanism: str
    remedies: tuple[Remedy, ...]
    unbiased: str = ""
    one_is_enough: bool = False
    window: int = 5
    only: Mapping[str, Any] = field(default_factory=dict)
    unless: Mapping[str, Any] = field(default_factory=dict)

    def applies(self, settings: Mapping[str, Any]) -> bool:
        """Does it mean anything under these settings (fields of the configuration, `biased`, `privileged`)?"""
        missing = any(settings.get(name) != value for name, value in self.only.items())
        return not missing and not any(settings.get(name) == value for name, value in self.unless.items())

    def cause(self, settings: Mapping[str, Any]) -> str:
        """The mechanism behind it, under these settings."""
        return self.unbiased if self.unbiased and settings.get("biased") is False else self.mechanism

    def advice(self, settings: Mapping[str, Any]) -> str:
        """The remedies that would change something, each with its source."""
        left = [x for x in self.remedies if not any(settings.get(k) == v for k, v in x.unless.items())]
        return " ".join(f"{remedy.text} ({remedy.source})." for remedy in left)


UNBIASED = Remedy("Set stop_gradient: true", unless={"stop_gradient": True, "biased": False})
BUCKET = Remedy(
    "Set loss_tail: bucket, which compares the mass outside the support too",
    "docs/losses.md",
    unless={"sees_tail": True},
)
RENORMALIZED = Remedy("Set loss_tail: renormalize", unless={"loss_tail": "renormalize"})
UNION = Remedy(
    "Set loss_support: union, so that both models' tokens are compared",
    "docs/losses.md",
    unless={"loss_support": "union"},
)
SFT_FIRST = Remedy("Run SFT first: 2 epochs on correct, filtered traces of the teacher")
NEAR_TEACHER = Remedy(
    "Take a teacher with a larger TopK overlap on the student's rollouts, e.g. the student after some GRPO steps"
)
MASK_TRUNCATED = Remedy(
    "Set mask_truncated_completions: true", "TRL's GRPOConfig", unless={"mask_truncated_completions": True}
)
LOWER_RATE = Remedy(
    "Lower learning_rate (the paper: 2.0e-6 for full fine-tuning, with a warm-up over a tenth of the steps)"
)

#: The mean of log q_y - log p_y estimates minus the reverse KL over the whole vocabulary, whatever the support and the
#: objective are: a student whose text the teacher finds less and less likely is not learning from it. A student that
#: takes over a broad teacher loses mass and rank too (the demo of a system prompt does), but gains here.
FURTHER_AWAY = Condition("distillation/sampled_log_ratio", "fell_by", 0.2)

#: The thresholds compare a run with its own first window where a figure has no scale of its own. They are wide: runs
#: that learn must stay silent (tests/diagnostics/test_rules.py, docs/diagnostics.md).
RULES = (
    Rule(
        "nothing_learned",
        (
            # A line in which no token is compared has neither.
            Condition(
                "distillation/per_token_divergence",
                "zero",
                1e-6,
                stand_in="distillation/given/per_token_divergence",
                absent=0.0,
            ),
            Condition("grad_norm", "zero"),
            Condition("learning_rate", "zero"),
        ),
        "Nothing is learned: student and teacher agree on every token, no token is compared, or no weight is moved.",
        (
            Remedy(
                "Take a teacher that differs from the student: another model, or a context that only it reads",
                "docs/diagnostics.md",
            ),
            Remedy(
                "Look whether tokens are left in the loss: num_loss_tokens_to_skip, mask_truncated_completions, "
                "distillation_gate",
                "docs/diagnostics.md",
            ),
            Remedy("Look whether weights are trained: learning_rate, LoRA's target_modules", "docs/diagnostics.md"),
        ),
        one_is_enough=True,
    ),
    Rule(
        "support_mass_falls",
        (Condition("support/student_mass", "fell_by", 0.05), FURTHER_AWAY),
        BIAS,
        (UNBIASED, BUCKET, UNION),
        unbiased="The student moves its mass to tokens outside the support, which this loss does not bring back.",
        unless={"loss_support": "sampled"},
    ),
    Rule(
        "overlap_falls",
        (Condition("support/overlap", "shrank_to", 0.75),),
        BIAS + " The TopK overlap of both models collapses with it.",
        (UNBIASED, NEAR_TEACHER, SFT_FIRST),
        unbiased=MISMATCH + " The TopK sets of both models come apart.",
    ),
    Rule(
        "entropy_collapse",
        # A teacher that is certain makes its student certain too, and then the divergence falls with the entropy.
        (
            Condition("entropy", "shrank_to", 0.2),
            Condition("distillation/per_token_divergence", "grew_to", 0.8),
        ),
        "The student has become certain of tokens that the teacher does not choose.",
        (
            Remedy("Set divergence: forward_kl or mixed, which punish what the student no longer says"),
            Remedy("Set beta: 0.01, GRPO's anchor to the initial model", "TRL's GRPOConfig"),
            LOWER_RATE,
        ),
    ),
    Rule(
        "length_explosion",
        (Condition("completions/mean_length", "grew_to", 2.0),),
        BIAS + " Length is the first thing that it shows in, repetition follows.",
        (UNBIASED, RENORMALIZED, MASK_TRUNCATED, NEAR_TEACHER),
        unbiased=MISMATCH + " It shows as verbose answers that do not come to an end.",
    ),
    Rule(
        "more_truncation",
        (Condition("completions/clipped_ratio", "rose_by", 0.3),),
        "Completions no longer end: the student unlearns its end-of-sequence token, or its teacher ends with another.",
        (
            MASK_TRUNCATED,
            UNBIASED,
            Remedy("Compare the EOS tokens of student and teacher, and both chat templates", "ms-swift issue 9526"),
        ),
    ),
    Rule(
        "never_stops",
        (
            Condition("completions/clipped_ratio", "above", 0.95),
            Condition("completions/repetition", "above", 0.7),
        ),
        MISMATCH + " A base student that never stops repeats itself instead.",
        (
            SFT_FIRST,
            Remedy(
                "Check that the student's template closes with a token that generation takes for EOS", "TRL issue 6357"
            ),
            MASK_TRUNCATED,
        ),
    ),
    Rule(
        "repetition",
        # The paper's collapse: 0.513, 0.792, 0.998.
        (Condition("completions/repetition", "rose_by", 0.2),),
        BIAS + " Its end is pure repetition.",
        (UNBIASED, RENORMALIZED, MASK_TRUNCATED, SFT_FIRST),
        unbiased=MISMATCH + " It shows as text that repeats itself.",
    ),
    Rule(
        "teacher_rewards_repetition",
        (
            Condition("distillation/log_ratio_repeated", "above", 0.1),
            Condition("distillation/log_ratio_repeated", "above", 0.1, minus="distillation/log_ratio_other"),
            Condition("completions/repetition", "above", 0.1),
        ),
        MISMATCH + " Where the student repeats itself the teacher goes on repeating, with more certainty.",
        (MASK_TRUNCATED, NEAR_TEACHER, SFT_FIRST, Remedy("Lower max_completion_length")),
    ),
    Rule(
        "reward_falls",
        (Condition("rewards/*/mean", "sank_to", 0.6),),
        "By your own reward the answers get worse. A divergence that falls meanwhile is no comfort: it also falls "
        "where the student gives up what the teacher dislikes.",
        (
            Remedy("Look at the answers: opd-trl report", "docs/results.md"),
            NEAR_TEACHER,
            SFT_FIRST,
            LOWER_RATE,
            Remedy("Ask a trial before the next run: opd-trl preflight", "docs/diagnostics.md"),
        ),
    ),
    Rule(
        "held_out_rises",
        # What falls again after a first rise is not a failure: a high rate does so in runs that end well.
        (Condition("held_out/divergence", "held_at", 1.2),),
        "On prompts that it is not trained on the student is further from its teacher than before the first step, and "
        "does not come nearer.",
        (
            LOWER_RATE,
            Remedy("Try rates and forms of the loss: opd-trl preflight --rates, --losses", "docs/diagnostics.md"),
        ),
        window=1,
    ),
    Rule(
        "privileged_plateau",
        (Condition("distillation/per_token_divergence", "held_at", 0.5),),
        AGGREGATE + " The divergence has stopped falling and more than half of it is left.",
        (
            Remedy("Give a context that all rows share, such as a rule or a system prompt"),
            Remedy("Use rewards (GRPO) for what differs per row, such as its answer"),
            Remedy("If the run is slow only, raise learning_rate (LoRA: 1e-4 to 5e-4)", "OPSDConfig"),
        ),
        window=20,
        only={"privileged": True},
    ),
    Rule(
        "sampled_rank_rises",
        (
            Condition("teacher/sampled_rank", "grew_to", 1.5),
            Condition("teacher/sampled_rank", "rose_by", 0.5),
            FURTHER_AWAY,
        ),
        BIAS + " What the student samples sinks in the teacher's TopK.",
        (UNBIASED, NEAR_TEACHER, SFT_FIRST),
        unbiased=MISMATCH + " What the student samples sinks in the teacher's TopK.",
    ),
    *(
        Rule(
            f"{figure}_not_finite",
            (Condition(figure, "not_finite"),),
            OPTIMISATION,
            (
                LOWER_RATE,
                Remedy("Use bfloat16 or float32: float16 overflows", "design of the formats", unless={"fp16": False}),
            ),
            window=1,
        )
        for figure in ("loss", "grad_norm")
    ),
)
