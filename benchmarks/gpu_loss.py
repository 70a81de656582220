"""The stage `loss` of gpu.py: the loss step at the size of an 8B model, in groups whose cases take turns.

Every case computes the loss and the gradients of hidden states and head (`frozen`: of hidden states alone), on random
data. "Products" are the matrix products of whole vocabularies that a case of ours cannot do without: at the measured
rate of the card they are the floor of its time.
"""

import importlib.util
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from gpu_ceilings import ceilings, profile
from gpu_children import OUT_OF_MEMORY, Send, what_failed
from gpu_lines import TRL, Deadline
from loss import OURS, dense, liger, make_inputs, ours, products_alone, step, trl_kernel
from measure import extra_memory, spread, take_turns

from opd_trl.losses import chunk_size_for


SIZES = {
    "full": {"tokens": 8192, "vocab": 151936, "hidden": 4096, "dtype": "bfloat16", "long": 32768, "rounds": 11},
    "small": {"tokens": 48, "vocab": 512, "hidden": 32, "dtype": "bfloat16", "long": 96, "rounds": 1},
}
TOP_K = {"full": (1, 5, 20, 37, 64, 100, 256), "small": (1, 20)}
MIB = {"full": (128, 256, 512, 1024, 2048, 4096), "small": (1,)}
SHORT = {name: name.removeprefix("ours, ") for name in OURS}
# Seconds that a group may take before its first case has a line: to compile, to draw inputs.
START_SECONDS = 15


@dataclass(frozen=True)
class Case:
    """One way to compute a loss.

    Attributes:
        run: from the inputs to gradients.
        products: of whole vocabularies that it needs; None: not counted.
        seconds: to leave for its first call.
    """

    run: Callable[[dict[str, torch.Tensor]], None]
    products: int | None = None
    seconds: float = 2.0


@dataclass(frozen=True)
class Group:
    """Cases that take turns on the same inputs.

    Attributes:
        tokens: of the inputs.
        cases: by their names in the tables.
        profiled: list the kernels of the cases in place of timing them.
    """

    name: str
    tokens: int
    cases: dict[str, Case]
    profiled: bool = False


def measure(send: Send, size: str, device: str, done: set[str], deadline: Deadline) -> None:
    """In a child: measure the open cases of all groups, in their order, until the time is over."""
    if "ceilings" not in done:
        send(("ceilings", ceilings(size, device)))
    for group in groups(size, device):
        todo = {name: case for name, case in group.cases.items() if f"{group.name}: {name}" not in done}
        if not todo or not deadline.leaves(START_SECONDS):
            continue
        args = Namespace(**SIZES[size] | {"tokens": group.tokens, "device": device})
        inputs = make_inputs(args)
        own = {"group": group.name, "tokens": group.tokens}
        for name, content in (kernels if group.profiled else times)(todo, inputs, args, deadline):
            send((f"{group.name}: {name}", {"name": name, **own, **content}))
        del inputs
        if device == "cuda":
            torch.cuda.empty_cache()


def groups(size: str, device: str) -> list[Group]:
    """All of them, the most important first."""
    setting = SIZES[size]
    tokens, long = setting["tokens"], setting["long"]
    own = {SHORT[name]: our_case(size, **options) for name, options in OURS.items()}
    own["full vocabulary, frozen head"] = our_case(size, support="full", frozen=True)
    products = {f"{n} products alone": products_case(size, device, n) for n in (4, 3)}
    others = {
        TRL: Case(trl_kernel, seconds=60),
        "TRL kernel, frozen head": Case(partial(trl_kernel, frozen=True)),
        "dense autograd, Top-20": Case(partial(dense, top_k=20)),
        "dense autograd, full": Case(partial(dense, top_k=None)),
    }
    names = ("renormalised Top-20 (default)", "stop-gradient Top-20, dropped tail", "full vocabulary", "sampled token")
    at_length = {name: own[name] for name in names}
    at_length |= {name: (products | others)[name] for name in ("4 products alone", TRL, "dense autograd, Top-20")}
    found = [
        Group("main", tokens, {**own, **products, **others}),
        Group("long", long, at_length),
        Group("kernels", tokens, own, profiled=True),
        Group("top_k", tokens, dict(top_k_cases(size))),
        Group("loss_memory_mib", tokens, dict(budget_cases(size, device))),
    ]
    if importlib.util.find_spec("liger_kernel"):
        fused = {"Liger fused JSD": Case(partial(liger, compiled=False))}
        if device == "cuda":
            fused["Liger fused JSD, compiled"] = Case(partial(liger, compiled=True), seconds=90)
        found.append(Group("liger", tokens, {TRL: others[TRL], **fused}))
    return found


def our_case(size: str, *, chunk_size: int | None = None, frozen: bool = False, **options: Any) -> Case:
    """A case of ours, and how many products it needs: with few ids two of four are sparse."""
    top_k, vocab, hidden = options.get("top_k", 20), SIZES[size]["vocab"], SIZES[size]["hidden"]
    sparse = options.get("tail", "renormalize") == "renormalize" and "support" not in options
    products = 2 if sparse and top_k * hidden <= vocab else 3 if frozen else 4
    return Case(partial(ours, chunk_size=chunk_size, frozen=frozen, **options), products)


def products_case(size: str, device: str, count: int) -> Case:
    chunk = chunk_size_for(SIZES[size]["vocab"], torch.device(device))
    return Case(partial(products_alone, chunk_size=chunk, frozen=count == 3), count)


def top_k_cases(size: str) -> Iterator[tuple[str, Case]]:
    """Both tails against K; one token has no renormalised loss."""
    for top_k in TOP_K[size]:
        yield f"dropped tail, K={top_k}", our_case(size, tail="drop", top_k=top_k)
        if top_k > 1:
            yield f"renormalised, K={top_k}", our_case(size, tail="renormalize", top_k=top_k)


def budget_cases(size: str, device: str) -> Iterator[tuple[str, Case]]:
    """Three losses against the memory for logits, which sets the tokens of a chunk."""
    kinds = {"renormalised": {}, "dropped tail": {"tail": "drop"}, "full vocabulary": {"support": "full"}}
    for mib in MIB[size]:
        chunk = chunk_size_for(SIZES[size]["vocab"], torch.device(device), budget=mib * 2**20)
        for name, options in kinds.items():
            yield f"{name}, {mib} MiB", our_case(size, chunk_size=chunk, **options)


def times(cases: dict[str, Case], inputs, args: Namespace, deadline: Deadline) -> Iterator[tuple[str, dict]]:
    """Memory of each case in its second call, then seconds of all, in turns, as far as there is time."""
    first, fitting, turn = {}, {}, 0.0
    for name, case in cases.items():
        if not deadline.leaves(case.seconds + (args.rounds + 1) * turn):
            continue
        run = partial(step, inputs, case.run)
        content = tried(partial(memory_and_seconds, run, args.device))
        if "failed" in content:
            free(inputs, args.device)
            yield name, content
            continue
        turn += content.pop("call")
        flops = 2 * args.tokens * args.vocab * args.hidden * (case.products or 0)
        first[name], fitting[name] = content | {"products": case.products, "flops": flops}, run
    for name, seconds in take_turns(fitting, rounds=args.rounds, device=args.device).items():
        yield name, {"seconds": spread(seconds), **first[name]}


def memory_and_seconds(run: Callable[[], None], device: str) -> dict[str, Any]:
    """Of the second call; the first one compiles."""
    run()
    before = time.perf_counter()
    return {"extra_mib": extra_memory(run, device=device), "call": time.perf_counter() - before}


def kernels(cases: dict[str, Case], inputs, args: Namespace, deadline: Deadline) -> Iterator[tuple[str, dict]]:
    """The most expensive kernels of each case."""
    for name, case in cases.items():
        if deadline.leaves(START_SECONDS):
            yield name, tried(partial(kernels_of, partial(step, inputs, case.run), args.device))


def kernels_of(run: Callable[[], None], device: str) -> dict[str, Any]:
    run()
    return {"kernels": profile(run, device)}


def tried(measured: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a measurement gives, or how it failed; whose traceback, which holds tensors, is gone by then."""
    try:
        return measured()
    except Exception as error:
        traceback.print_exc()
        return {"failed": what_failed(error)}


def free(inputs: dict[str, torch.Tensor], device: str) -> None:
    """Give back what a failed case left."""
    for tensor in inputs.values():
        tensor.grad = None
    if device == "cuda":
        torch.cuda.empty_cache()


def run(children, results, *, size: str, device: str, deadline: Deadline) -> list[str]:
    """The stage: measure what has no line yet; return what failed, other than by running out of memory."""
    if not importlib.util.find_spec("liger_kernel"):
        print("liger-kernel is not installed: its cases are left out (pip install --no-deps liger-kernel).")
    failed, done = [], results.done()
    everything = {"ceilings"} | {f"{group.name}: {name}" for group in groups(size, device) for name in group.cases}
    if everything <= done:
        return []
    for case, content in children.run(measure, size, device, done, deadline, name="loss", seconds=deadline.limit):
        if content.get("failed", OUT_OF_MEMORY) != OUT_OF_MEMORY:
            failed.append(f"{case}: {content['failed']}")
            continue
        results.add(case, **content)
    return failed
