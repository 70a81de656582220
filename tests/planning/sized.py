"""What the tests of the sizing share: engines, models by their config, components by name."""

from typing import Any

from opd_trl.planning.model_size import build, measure
from opd_trl.planning.sizing import estimate
from opd_trl.planning.workload import Engine, ModelSize, Workload, engines


SINGLE, DDP, ZERO1, ZERO2, ZERO3, FSDP2 = engines(8)


def sized(config, dtype: str = "bfloat16") -> ModelSize:
    return measure(build(config, trust_remote_code=False), dtype=dtype)


def by_name(work: Workload, engine: Engine) -> dict[str, float]:
    return {part.name: part.bytes for part in estimate(work, engine)}


def component(figures: dict[str, Any], name: str) -> float:
    """Bytes of a component in the figures of `opd-trl plan`."""
    return sum(part["bytes"] for part in figures["components"] if part["name"] == name)
