"""How many tokens reach the LM head at once: from a memory budget to slices of rows."""

import torch


# Bytes for the two float32 `(chunk, V)` tensors that live at a time, the logits of student and teacher. A CPU gains
# nothing above its budget and an accelerator needs long products; docs/performance.md has the measurements.
CPU_BUDGET = 128 * 2**20
ACCELERATOR_BUDGET = 1024 * 2**20

# What is computed element by element inside a chunk goes block by block, with temporaries of a fraction of a chunk.
BLOCKS_PER_CHUNK = 16


def chunk_size_for(vocab_size: int, device: torch.device, *, budget: int | None = None) -> int:
    """Tokens projected at once, budget / (2 x 4 bytes x V), at least 1.

    Args:
        vocab_size: V.
        device: where the head lies; decides the default budget.
        budget: bytes for the logits of student and teacher; 128 MiB on a CPU, 1 GiB on an accelerator by default.

    Example:
        >>> chunk_size_for(151936, torch.device("cpu")), chunk_size_for(151936, torch.device("cuda"))
        (110, 883)
    """
    if budget is None:
        budget = CPU_BUDGET if device.type == "cpu" else ACCELERATOR_BUDGET
    return max(1, budget // (2 * 4 * vocab_size))


def block_size_for(vocab_size: int, device: torch.device) -> int:
    """Tokens whose elementwise work is done at once."""
    return max(1, chunk_size_for(vocab_size, device) // BLOCKS_PER_CHUNK)


def chunks(num_tokens: int, chunk_size: int) -> list[slice]:
    """Row slices of at most `chunk_size` that cover `num_tokens`, equally long up to one row.

    One empty slice for an empty batch, which keeps its graph through it.

    Raises:
        ValueError: `chunk_size` below 1.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be >= 1, got {chunk_size}. Leave it out to choose it from a memory budget.")
    count = max(1, -(-num_tokens // chunk_size))
    ends = [num_tokens * (i + 1) // count for i in range(count)]
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
