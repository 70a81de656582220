"""Where the tests run: on a CUDA device, or at small sizes on the CPU to see that they work at all."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Size:
    """N tokens, hidden states of H numbers, a vocabulary of V, the K most probable ids."""

    tokens: int
    hidden: int
    vocab: int
    top_k: int


@dataclass(frozen=True)
class Place:
    """A device, the sizes that it is tested with, and how near float64 its numbers must be.

    Attributes:
        small: for tests of many forms, each with a float64 reference.
        large: as a model has it.
        loss_errors, gradient_errors: by dtype, the largest relative error.
    """

    device: torch.device
    small: Size
    large: Size
    loss_errors: dict[torch.dtype, float]
    gradient_errors: dict[torch.dtype, float]

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def training(self) -> dict[str, bool]:
        """Arguments of a trainer: its device, bfloat16 autocast and gradient checkpointing."""
        return {"use_cpu": not self.on_cuda, "bf16": True, "gradient_checkpointing": True}


# float32 products are exact (no TF32). Logits of 16-bit heads are float32 numbers on CUDA; on the CPU they are rounded
# to 8 bits, by up to 1/32 below 8. Gradients in bfloat16 have 8 bits anywhere.
CPU = Place(
    torch.device("cpu"),
    small=Size(tokens=24, hidden=256, vocab=5000, top_k=4),
    large=Size(tokens=64, hidden=256, vocab=6000, top_k=4),
    loss_errors={torch.float32: 5e-5, torch.bfloat16: 0.05},
    gradient_errors={torch.float32: 5e-5, torch.bfloat16: 0.05},
)
CUDA = Place(
    torch.device("cuda"),
    small=Size(tokens=64, hidden=256, vocab=16_384, top_k=5),
    large=Size(tokens=2048, hidden=2048, vocab=151_936, top_k=20),
    loss_errors={torch.float32: 5e-5, torch.bfloat16: 5e-5},
    gradient_errors={torch.float32: 5e-5, torch.bfloat16: 0.006},
)
