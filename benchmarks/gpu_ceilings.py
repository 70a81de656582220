"""What a card can do at most, measured: bytes and products in a second. And the kernels of a call."""

import re
from collections.abc import Callable
from typing import Any

import torch
from measure import spread, take_turns


TOP = 10


def ceilings(device: str, *, large: bool) -> dict[str, Any]:
    """Bandwidth of a copy on the device, bytes read and written, and the rate of a bfloat16 product of random data."""
    count, side = (4 * 2**30, 8192) if large else (2**22, 128)
    source = torch.randint(256, (count,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    left, right = (torch.randn(side, side, device=device).to(torch.bfloat16) for _ in range(2))
    cases = {"copy": lambda: target.copy_(source), "product": lambda: left @ right}
    take_turns(cases, rounds=1, device=device)
    seconds = take_turns(cases, rounds=10 if large else 2, device=device)
    return {
        "bytes_per_second": 2 * count / min(seconds["copy"]),
        "flops_per_second": 2 * side**3 / min(seconds["product"]),
        "copy_seconds": spread(seconds["copy"]),
        "product_seconds": spread(seconds["product"]),
    }


def profile(case: Callable[[], None], device: str) -> list[dict[str, Any]]:
    """The most expensive kernels of one call: name, share of the time of all kernels, milliseconds, calls."""
    on_cuda = device == "cuda"
    activity = torch.profiler.ProfilerActivity.CUDA if on_cuda else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as found:
        case()
        if on_cuda:
            torch.cuda.synchronize()
    field = "self_device_time_total" if on_cuda else "self_cpu_time_total"  # microseconds
    events = sorted(found.key_averages(), key=lambda event: getattr(event, field), reverse=True)
    total = sum(getattr(event, field) for event in events)
    return [
        {
            "name": short(event.key),
            "share": round(getattr(event, field) / total, 4),
            "ms": round(getattr(event, field) / 1000, 3),
            "calls": event.count,
        }
        for event in events[:TOP]
        if getattr(event, field)
    ]


def short(name: str, limit: int = 90) -> str:
    """A kernel's name without namespaces and argument types.

    >>> short("void at::native::vectorized_elementwise_kernel<4, at::native::exp_kernel_cuda(x)::{lambda()#2}>(int)")
    'vectorized_elementwise_kernel<4, exp_kernel_cuda'
    """
    name = re.sub(r"\(anonymous namespace\)::|at::native::|at::cuda::|at::|c10::|std::|^void ", "", name)
    return name.partition("(")[0][:limit]
