"""The loss on a device beside the dense loss in float64 on the CPU, of exactly the same numbers."""

from contextlib import nullcontext

import torch
from torch import Tensor

from opd_trl.losses import chunked_support_loss
from tests.gpu.place import Place
from tests.gpu.planted import Planted, assert_clear
from tests.losses.test_chunked import dense, logits_of


def error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|."""
    return ((found.detach().cpu().double() - expected.detach()).norm() / expected.detach().norm()).item()


def on_device(values: Tensor, place: Place, dtype: torch.dtype) -> Tensor:
    """A copy on the device, rounded to a dtype."""
    return values.to(place.device, dtype, copy=True)


def wide(values: Tensor) -> Tensor:
    """A copy in float64 on the CPU: exactly the same numbers."""
    return values.detach().to("cpu", torch.float64, copy=True)


def loss_errors(
    planted: Planted,
    place: Place,
    dtype: torch.dtype,
    *,
    top_k: int,
    bias: bool = False,
    every: int = 1,
    autocast: bool = False,
    **options,
) -> dict[str, float]:
    """Relative errors of a form of the loss: of its value, its values per token and its gradients.

    Args:
        planted: the inputs. They are rounded to `dtype` first, so that the reference gets the same numbers.
        bias: give both heads one.
        every: every so many tokens have a weight, and the reference needs these alone.
        autocast: take the loss under bfloat16 autocast.
        options: further keywords of the loss and of its reference; `chunk_size` of the loss alone.
    """
    chunk_size = options.pop("chunk_size", None)
    arguments = [on_device(x, place, dtype) for x in (*planted.student, *planted.teacher)]
    leaves = arguments[:2] + ([on_device(planted.bias, place, dtype)] if bias else [])
    biases = {}
    if bias:
        biases = {"student_lm_head_bias": leaves[2], "teacher_lm_head_bias": leaves[2].detach().flip(0)}
    for leaf in leaves:
        leaf.requires_grad_()
    weights = torch.zeros_like(planted.weights)
    weights[::every] = planted.weights[::every]
    with torch.autocast(place.device.type, torch.bfloat16) if autocast else nullcontext():
        loss, stats = chunked_support_loss(
            *arguments,
            weights.to(place.device),
            completion_ids=planted.completion_ids.to(place.device),
            top_k=top_k,
            chunk_size=chunk_size,
            **biases,
            **options,
        )
    loss.backward()
    for leaf in leaves:
        assert (leaf.grad.dtype, leaf.grad.device) == (dtype, leaf.device)
    unweighted = torch.arange(len(weights), device=place.device) % every != 0
    assert not leaves[0].grad[unweighted].any()

    expected, expected_stats, gradients = reference(planted, arguments, biases, every, top_k=top_k, **options)
    # The supports are the same: see `plant`.
    assert torch.equal(stats["overlap"][::every].cpu().double(), expected_stats["overlap"])
    found = {
        "loss": error(loss, expected),
        "per_token": error(stats["per_token_divergence"][::every], expected_stats["per_token_divergence"]),
    }
    of_leaves = [leaves[0].grad[::every], *(leaf.grad for leaf in leaves[1:])]
    names = ("hidden", "head", "bias")[: len(leaves)]
    return found | {name: error(x, y) for name, x, y in zip(names, of_leaves, gradients, strict=True)}


def reference(planted: Planted, arguments: list[Tensor], biases: dict[str, Tensor], every: int, **options):
    """Loss, statistics and gradients of `dense` in float64, of every so many tokens."""
    student, head, teacher, teacher_head = (wide(x) for x in arguments)
    inputs = [student[::every].contiguous(), head, teacher[::every], teacher_head]
    biases = {name: wide(x) for name, x in biases.items()}
    leaves = [*inputs[:2], *list(biases.values())[:1]]
    for leaf in leaves:
        leaf.requires_grad_()
    ids, weights = planted.completion_ids[::every], planted.weights[::every].double()
    loss, stats = dense(*inputs, weights, completion_ids=ids, **biases, **options)
    with torch.no_grad():
        for hidden, weight in (inputs[:2], inputs[2:]):
            assert_clear(logits_of(hidden, weight, None, 1.0, None, 1.0), options["top_k"])
    return loss, stats, torch.autograd.grad(loss, leaves)


def assert_near(errors: dict[str, float], place: Place, dtype: torch.dtype) -> None:
    """Losses and gradients within the errors of a place."""
    for name, value in errors.items():
        limits = place.loss_errors if name in ("loss", "per_token") else place.gradient_errors
        assert value < limits[dtype], name
