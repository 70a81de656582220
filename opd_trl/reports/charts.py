"""Which metrics share a chart, which charts share a section, and how each is read."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Chart:
    """A chart of the page: which metrics it draws, and how it is read.

    Args:
        key: names it in links and files.
        title: above it.
        metrics: name or pattern in the log -> label; an empty label is the part that the pattern's `*` stands for.
        unit: of the values.
        hint: how it is read, in a sentence or two.
        limits: what the values cannot leave, either end None where there is no such end.
    """

    key: str
    title: str
    metrics: dict[str, str]
    unit: str = ""
    hint: str = ""
    limits: tuple[float | None, float | None] = (None, None)


@dataclass(frozen=True)
class Section:
    """Charts under a heading; `folded` ones are opened by the reader."""

    title: str
    charts: tuple[Chart, ...]
    folded: bool = False


@dataclass(frozen=True)
class Drawn:
    """A chart with the metrics that a run has: log name -> label."""

    chart: Chart
    metrics: dict[str, str] = field(default_factory=dict)


DIVERGENCE = "distillation/per_token_divergence"
QUARTILES = ("first quarter", "second", "third", "last quarter")

SECTIONS = (
    Section(
        "Loss and divergence",
        (
            Chart(
                "divergence",
                "Divergence per token",
                {DIVERGENCE: "all tokens", f"{DIVERGENCE}/*": ""},
                "nats",
                "Between student and teacher on the student's own samples. The text changes from step to step: a fall "
                "says that the student is learning, or that it writes easier text. Read the samples too.",
            ),
            Chart("loss", "Loss", {"loss": "loss"}, hint="What is minimised, rewards and KL anchor included."),
            Chart(
                "position",
                "Divergence by position",
                {f"distillation/divergence_q{i + 1}": label for i, label in enumerate(QUARTILES)},
                "nats",
                "By quarter of the completion. The first tokens usually diverge most. Last quarters that stay high "
                "while the first falls: the teacher reads prefixes that it would not have written. Shorten the "
                "completions.",
            ),
        ),
    ),
    Section(
        "What the loss can see",
        (
            Chart(
                "support",
                "Mass on the support",
                {"support/student_mass": "student", "support/teacher_mass": "teacher"},
                "share",
                "Share of each model's probability that the loss compares. A falling student mass is the collapse of "
                "a biased TopK gradient; a low teacher mass means that the loss misses what the teacher prefers.",
                (0.0, 1.0),
            ),
            Chart(
                "overlap",
                "Overlap of the TopK sets",
                {"support/overlap": "overlap"},
                "share",
                "Tokens that both models rank among their K likeliest. Falling: student and teacher move apart.",
                (0.0, 1.0),
            ),
            Chart(
                "rank",
                "The teacher's rank of the sampled token",
                {"teacher/sampled_rank": "mean rank"},
                "",
                "0 is the teacher's favourite; K where the token is outside its TopK. Rising: the student writes what "
                "the teacher would not.",
                (0.0, None),
            ),
            Chart(
                "outside",
                "Tokens outside the teacher's TopK",
                {"teacher/sampled_outside": "outside"},
                "share",
                limits=(0.0, 1.0),
            ),
            Chart(
                "taught",
                "What is taught at all",
                {"distillation/gate_open": "gate open", "distillation/has_context": "with a privileged context"},
                "share",
                "Rows that distillation_gate lets through, and rows whose teacher reads a context.",
                (0.0, 1.0),
            ),
        ),
    ),
    Section(
        "The student's text",
        (
            Chart(
                "entropy",
                "Entropy of the student",
                {"entropy": "entropy"},
                "nats",
                "Per token. Towards 0: the samples are all alike and teach little more. Rising: the text dissolves.",
                (0.0, None),
            ),
            Chart(
                "length",
                "Length of the completions",
                {
                    "completions/mean_length": "mean",
                    "completions/max_length": "longest",
                    "completions/mean_terminated_length": "mean of those that ended",
                },
                "tokens",
                "A sudden rise to the limit is the usual first sign of collapse.",
                (0.0, None),
            ),
            Chart(
                "clipped",
                "Completions cut at the limit",
                {"completions/clipped_ratio": "cut"},
                "share",
                "These never ended. Rising: the student forgets to stop.",
                (0.0, 1.0),
            ),
            Chart(
                "repetition",
                "Repetition",
                {"completions/repetition": "repeated 3-grams"},
                "share",
                "Share of 3-grams that the same completion already had. Towards 1: loops.",
                (0.0, 1.0),
            ),
            Chart(
                "repeated",
                "Teacher minus student on repeated tokens",
                {
                    "distillation/log_ratio_repeated": "tokens that repeat",
                    "distillation/log_ratio_other": "other tokens",
                    "distillation/sampled_log_ratio": "all",
                },
                "nats",
                "Log-probability of the sampled tokens, the teacher's minus the student's. Repeats above the others: "
                "the teacher agrees with loops once they have begun, and pushes the student into them.",
            ),
        ),
    ),
    Section(
        "Rewards and policy",
        (
            Chart("reward", "Reward", {"reward": "all", "rewards/*/mean": ""}),
            Chart("reward_std", "Spread of the rewards", {"reward_std": "all", "rewards/*/std": ""}),
            Chart(
                "reward_same",
                "Groups whose rewards are all equal",
                {"frac_reward_zero_std": "share"},
                "share",
                "They teach nothing.",
                (0.0, 1.0),
            ),
            Chart("kl", "KL to the initial model", {"kl": "kl"}, "nats"),
            Chart("reward_other", "Further rewards", {"reward*": ""}),
        ),
    ),
    Section("Evaluation", (Chart("eval", "", {"eval_*": ""}),)),
    Section(
        "Optimisation",
        (
            Chart(
                "grad_norm",
                "Gradient norm",
                {"grad_norm": "before clipping"},
                hint="Single peaks are clipped; a lasting rise is not noise.",
                limits=(0.0, None),
            ),
            Chart("learning_rate", "Learning rate", {"learning_rate": "learning rate"}, limits=(0.0, None)),
            Chart(
                "time",
                "Seconds of a step",
                {
                    "step_time": "whole step",
                    "time/generation": "generation",
                    "time/teacher": "teacher",
                    "time/student": "student",
                },
                "s",
                limits=(0.0, None),
            ),
        ),
    ),
    Section("Other metrics", (Chart("other", "", {"*": ""}),), folded=True),
)

# What the Trainer logs once, at the end, or as a counter of its own.
NO_CURVES = ("epoch", "total_flos", "train_*")
# Sections in which every metric has a chart of its own: their scales have nothing in common.
ONE_EACH = ("eval", "other")


def drawn_sections(names: Iterable[str]) -> list[tuple[Section, list[Drawn]]]:
    """Sections with the charts that runs with metrics `names` fill; every metric goes into the first that takes it.

    >>> [(section.title, [(d.chart.key, d.metrics) for d in charts])
    ...  for section, charts in drawn_sections(["loss", "rewards/format/mean", "mine"])]
    ... # doctest: +NORMALIZE_WHITESPACE
    [('Loss and divergence', [('loss', {'loss': 'loss'})]),
     ('Rewards and policy', [('reward', {'rewards/format/mean': 'format'})]),
     ('Other metrics', [('other-mine', {'mine': 'mine'})])]
    """
    left = [name for name in sorted(names) if not any(fnmatchcase(name, pattern) for pattern in NO_CURVES)]
    found = []
    for section in SECTIONS:
        charts: list[Drawn] = []
        for chart in section.charts:
            metrics = shown_metrics(chart, left)
            left = [name for name in left if name not in metrics]
            charts += (
                one_chart_each(chart, metrics) if chart.key in ONE_EACH else [Drawn(chart, metrics)] if metrics else []
            )
        if charts:
            found.append((section, charts))
    return found


def shown_metrics(chart: Chart, names: list[str]) -> dict[str, str]:
    """Those of `names` that a chart shows, in its order, with their labels."""
    found: dict[str, str] = {}
    for pattern, label in chart.metrics.items():
        before, star, after = pattern.partition("*")
        for name in names:
            if name not in found and (fnmatchcase(name, pattern) if star else name == pattern):
                found[name] = label or name[len(before) : len(name) - len(after)] or name
    return found


def one_chart_each(chart: Chart, metrics: dict[str, str]) -> list[Drawn]:
    """A chart of its own for each metric, with its label as the title: scales that have nothing in common."""
    return [
        Drawn(Chart(f"{chart.key}-{slug(name)}", label, {name: label}), {name: label})
        for name, label in metrics.items()
    ]


def slug(name: str) -> str:
    """A name as links and files can hold it: letters, digits and `_`, all else a dash.

    >>> slug("eval_rewards/My Reward/mean")
    'eval_rewards-My-Reward-mean'
    """
    return "".join(c if c.isascii() and (c.isalnum() or c == "_") else "-" for c in name)
