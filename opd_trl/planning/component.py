"""The rows of a plan's table, and how they add up.

The total is that of the largest moment of a step. Moments do not coincide; what is always there belongs to all.
"""

from dataclasses import dataclass


GIB = 2**30
RESERVE = 0.1  # share of the memory to keep free for what is not counted
MOMENTS = GENERATION, TEACHER, LOSS, BACKWARD = "generation", "teacher's forward", "loss", "backward"
STUDENT = (LOSS, BACKWARD)

# DeepSpeed's defaults, in elements: reduce_bucket_size, stage3_max_live_parameters.
REDUCE_BUCKET = 500_000_000
MAX_LIVE_PARAMETERS = 1_000_000_000


@dataclass(frozen=True)
class Component:
    """One row of the table: bytes on one GPU, how they come about, and the moments of a step that see them."""

    name: str
    bytes: float
    how: str
    moments: tuple[str, ...] = MOMENTS


def bytes_at(components: list[Component], moment: str) -> float:
    """Bytes on one GPU at one moment of a step."""
    return sum(part.bytes for part in components if moment in part.moments)


def peak_moment(components: list[Component]) -> str:
    """The moment of a step that takes the most memory."""
    return max(MOMENTS, key=lambda moment: bytes_at(components, moment))


def total(components: list[Component]) -> float:
    """Bytes on one GPU at the peak of a step."""
    return bytes_at(components, peak_moment(components))


def verdict(needed: float, memory: float) -> str:
    """`fits` with the reserve kept free, `tight` without it, or `does not fit`."""
    if needed <= (1 - RESERVE) * memory:
        return "fits"
    return "tight" if needed <= memory else "does not fit"


def product(count: int, width: float, shards: int = 1) -> str:
    """How a component's bytes come about, as the table shows it: numbers, their width, GPUs that share them.

    >>> product(1000, 4, 8)
    '1,000 x 4 B / 8 GPUs'
    """
    return f"{count:,} x {width:g} B" + (f" / {shards} GPUs" if shards > 1 else "")


def gib(amount: float) -> str:
    """Bytes in GiB, as they are printed.

    >>> gib(3 * 2**29)
    '1.50'
    """
    return f"{amount / GIB:,.2f}"
