"""The result of an evaluation: figures with intervals, warnings, and all that is needed to repeat it."""

from typing import Any

from ...evaluation.boxes import NO_BOX
from ...suites.protocol import Protocol
from ...suites.results import Metric, generation_figures
from ...suites.store import Sample


# Above this share of cut answers a comparison of models says how long they write, not how good they are.
MAX_TRUNCATED = 0.05
MAX_HALF_WIDTH = 0.05
# Above this share of finished answers without a box, accuracy says how well a model keeps to the format.
MAX_UNBOXED = 0.2


def summarise(suite: Any, protocol: Protocol, samples: list[Sample]) -> dict[str, Any]:
    """Figures, counts and warnings of samples."""
    metrics: list[Metric] = suite.metrics(samples)
    generated = [sample for sample in samples if "finished" in sample]
    figures = {metric.name: metric.figure() for metric in metrics}
    lengths = generation_figures(generated)
    return {
        "figures": figures,
        "also": suite.figures(samples),
        "generation": lengths,
        "counts": suite.counts(generated),
        "dropped": {part: problems.dropped for part, problems in suite.parts.items() if problems.dropped},
        "warnings": [*warnings(figures, lengths, protocol), *unboxed(generated)],
    }


def unboxed(samples: list[Sample]) -> list[str]:
    """A warning where many answers that are not cut have no box."""
    finished = [sample for sample in samples if sample["finished"]]
    share = sum(sample.get("reason") == NO_BOX for sample in finished) / max(1, len(finished))
    if share <= MAX_UNBOXED:
        return []
    return [
        f"{share:.0%} of the finished answers have no box and count as wrong: the figures say more about the format "
        "than about mathematics. Ask for the box in prompt_template, and read some samples."
    ]


def warnings(figures: dict[str, Any], generation: dict[str, Any], protocol: Protocol) -> list[str]:
    """What a reader of the figures must know."""
    found = []
    if generation["truncated"] > MAX_TRUNCATED:
        found.append(
            f"{generation['truncated']:.1%} of the answers are cut at {protocol.max_new_tokens} tokens. Above "
            f"{MAX_TRUNCATED:.0%} a comparison is biased against the model that writes longer: raise max_new_tokens."
        )
    name, first = next(iter(figures.items()))
    half = (first["high"] - first["low"]) / 2
    if first["unit"] == "%" and half > MAX_HALF_WIDTH:
        needed = round(first["problems"] * (half / MAX_HALF_WIDTH) ** 2)
        found.append(
            f"{first['problems']} problems leave {name} uncertain by ±{100 * half:.1f} points. About {needed} "
            f"problems would give ±{100 * MAX_HALF_WIDTH:.0f}; more samples of the same ones help less."
        )
    return found
