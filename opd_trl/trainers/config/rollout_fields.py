"""Fields of OPDConfig that say whose text is trained on, and how long a rollout may become."""

from dataclasses import dataclass, field


@dataclass
class RolloutFields:
    """Given text beside the student's own, and the length of rollouts."""

    # Rollouts: whose text, and how long
    lmbda: float = field(
        default=1.0,
        metadata={
            "help": "Share of generation batches that are the student's own text (GKD's name). The others take each "
            "row's `completion`, or the last assistant turn of its `messages`. Evaluation is always its own."
        },
    )
    teacher_prefix_tokens: int | None = field(
        default=None,
        metadata={
            "help": "The student goes on behind so many first tokens of the row's completion, and learns from its own "
            "alone. Falls on a line to 0."
        },
    )
    teacher_prefix_steps: int | None = field(
        default=None,
        metadata={"help": "Optimizer steps in which teacher_prefix_tokens falls to 0. Default: the whole run."},
    )
    rollout_length_start: float | None = field(
        default=None,
        metadata={
            "help": "Most tokens of a rollout at step 0, below 1 a share of max_completion_length; goes on a line to "
            "rollout_length_end. Evaluation always has max_completion_length."
        },
    )
    rollout_length_end: float | None = field(
        default=None,
        metadata={
            "help": "Most tokens at the end of that line; as rollout_length_start: all rollouts are that short. "
            "Default: max_completion_length."
        },
    )
    rollout_length_steps: int | None = field(
        default=None,
        metadata={"help": "Optimizer steps in which the rollouts' limit grows. Default: the whole run."},
    )
