"""The loss step against TRL's kernel, dense autograd and Liger, and what it costs against K, N, V and the chunk.

    make bench        # N=1024, V=49152, H=576, float32: the head of SmolLM2-135M on two CPU cores
    python benchmarks/loss.py --tokens 4096 --rounds 5 --no-sweeps --json runs/bench/loss.json

It is also the stage `loss` of gpu.py, at the size of an 8B model. Every case computes the loss and the gradients of
hidden states and head (`frozen head`: of hidden states alone) on random data, and the cases of a group take turns.
"Products" are the matrix products of whole vocabularies that a case of ours cannot do without: the floor of its time.
"""

import argparse
import functools
import importlib.util
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from children import FOREVER, OUT_OF_MEMORY, Children, Send, what_failed
from gpu_ceilings import ceilings, profile
from lines import Deadline, Results
from loss_cases import Inputs, dense, liger, make_inputs, ours, products_alone, step, trl_kernel
from measure import conditions, extra_memory, spread, take_turns, write_json

from opd_trl.losses import chunk_size_for


@dataclass(frozen=True)
class Setting:
    """The size of the inputs, and what is compared.

    Attributes:
        tokens, vocab, hidden, dtype: of the inputs; `long`: tokens of a second comparison.
        rounds: turns of every case after the two that warm up.
        sweeps: quantity -> its values.
        chunk_size: tokens a chunk; None: from the memory budget.
    """

    tokens: int
    vocab: int
    hidden: int
    dtype: str = "bfloat16"
    long: int | None = None
    rounds: int = 3
    sweeps: dict[str, tuple[int, ...]] = field(default_factory=dict)
    device: str = "cpu"
    chunk_size: int | None = None


FULL_SWEEPS = {"top_k": (1, 5, 20, 37, 64, 100, 256), "loss_memory_mib": (128, 256, 512, 1024, 2048, 4096)}
SMALL_SWEEPS = {"top_k": (1, 20), "tokens": (24,), "vocab": (256,), "chunk_size": (16,), "loss_memory_mib": (1,)}
CPU_SWEEPS = {
    "top_k": (1, 5, 20, 100, 256),
    "tokens": (256, 512, 1024, 2048, 4096),
    "vocab": (8192, 16384, 49152, 151936),
    "chunk_size": (32, 64, 128, 256, 512, 1024),
}
SIZES = {
    "full": Setting(8192, 151936, 4096, long=32768, rounds=11, sweeps=FULL_SWEEPS),
    "small": Setting(48, 512, 32, long=96, rounds=1, sweeps=SMALL_SWEEPS),
    "cpu": Setting(1024, 49152, 576, "float32", sweeps=CPU_SWEEPS),
}
DROP = {"tail": "drop"}
OURS = {
    "renormalised Top-20 (default)": {},
    "default, frozen head": {"frozen": True},
    "stop-gradient Top-20, dropped tail": DROP,
    "dropped tail, frozen head": DROP | {"frozen": True},
    "Top-20 and the sampled token's tail": {"tail": "sample"},
    "mixed on the union, tail bucket": {"tail": "bucket", "support": "union", "divergence": "mixed"},
    "full vocabulary": {"support": "full"},
    "full vocabulary, frozen head": {"support": "full", "frozen": True},
    "sampled token": {"support": "sampled"},
}
SWEPT = {"renormalised": {}, "dropped tail": DROP, "full vocabulary": {"support": "full"}}
# The cases that ratios are taken to.
TRL, DENSE = "TRL kernel", "dense autograd, Top-20"
AT_LENGTH = (
    "renormalised Top-20 (default)",
    "stop-gradient Top-20, dropped tail",
    "full vocabulary",
    "sampled token",
    "4 products alone",
    TRL,
    DENSE,
)
# From the size of the inputs to them; a case's name, and what was measured.
InputsOf = Callable[..., Inputs]
Named = tuple[str, dict[str, Any]]
# Seconds that a group may take before its first case has a line: to compile, to draw inputs.
START_SECONDS = 15


@dataclass(frozen=True)
class Case:
    """One way to compute a loss.

    Attributes:
        run: from the inputs to gradients.
        setting: of the inputs.
        products: of whole vocabularies that it needs; None: not counted.
        seconds: to leave for its first call.
    """

    run: Callable[[Inputs], None]
    setting: Setting
    products: int | None = None
    seconds: float = 2.0


def groups(setting: Setting) -> dict[str, dict[str, Case]]:
    """Groups of cases, the most important first; the cases of `kernels` are profiled in place of timed."""
    own = {name: our_case(setting, **options) for name, options in OURS.items()}
    chunk = setting.chunk_size or chunk_size_for(setting.vocab, torch.device(setting.device))
    products = {
        f"{n} products alone": Case(partial(products_alone, chunk_size=chunk, frozen=n == 3), setting, n)
        for n in (4, 3)
    }
    others = {
        TRL: Case(trl_kernel, setting, seconds=60),
        "TRL kernel, frozen head": Case(partial(trl_kernel, frozen=True), setting),
        DENSE: Case(partial(dense, top_k=20), setting),
        "dense autograd, full": Case(partial(dense, top_k=None), setting),
        "dense autograd, full, frozen head": Case(partial(dense, top_k=None, frozen=True), setting),
    }
    found = {"main": {**own, **products, **others}}
    if setting.long:
        long = replace(setting, tokens=setting.long)
        found["long"] = {name: replace(found["main"][name], setting=long) for name in AT_LENGTH}
        found["kernels"] = own
    found |= {name: dict(swept(setting, name, values)) for name, values in setting.sweeps.items()}
    if importlib.util.find_spec("liger_kernel"):
        found["liger"] = {TRL: others[TRL], "Liger fused JSD": Case(partial(liger, compiled=False), setting)}
        if setting.device == "cuda":
            compiled = Case(partial(liger, compiled=True), setting, seconds=90)
            found["liger"]["Liger fused JSD, compiled"] = compiled
    return found


def our_case(setting: Setting, *, frozen: bool = False, **options: Any) -> Case:
    """A case of ours, and how many products it needs: with few ids two of four are sparse."""
    sparse = options.get("tail", "renormalize") == "renormalize" and "support" not in options
    products = 3 if frozen else 4
    if sparse and options.get("top_k", 20) * setting.hidden <= setting.vocab:
        products = 2
    return Case(partial(ours, chunk_size=setting.chunk_size, frozen=frozen, **options), setting, products)


def swept(setting: Setting, name: str, values: tuple[int, ...]) -> Iterator[tuple[str, Case]]:
    """Cases of ours against one quantity, the others as given; one token has no renormalised loss."""
    for value in values:
        for loss, options in SWEPT.items():
            if name == "top_k":
                case = our_case(setting, **options, top_k=value)
            elif name == "loss_memory_mib":
                chunk = chunk_size_for(setting.vocab, torch.device(setting.device), budget=value * 2**20)
                case = our_case(replace(setting, chunk_size=chunk), **options)
            else:
                case = our_case(replace(setting, **{name: value}), **options)
            is_loss = value > 1 or (name, loss) != ("top_k", "renormalised")
            if is_loss and (loss != "full vocabulary" or name == "loss_memory_mib"):
                yield f"{loss}, {value}", case


def measure(send: Send, setting: Setting, done: set[str], deadline: Deadline) -> None:
    """In a child: measure the open cases of all groups, in their order, until the time is over."""
    if "ceilings" not in done:
        send(("ceilings", ceilings(setting.device, large=setting.hidden > 1000)))
    for group, cases in groups(setting).items():
        todo = {name: case for name, case in cases.items() if f"{group}: {name}" not in done}
        if not todo or not deadline.leaves(START_SECONDS):
            continue
        inputs_of = functools.cache(make_inputs)
        for name, content in (kernels if group == "kernels" else times)(todo, inputs_of, setting, deadline):
            about = {"name": name, "group": group, "tokens": todo[name].setting.tokens}
            send((f"{group}: {name}", about | content))
        del inputs_of
        if setting.device == "cuda":
            torch.cuda.empty_cache()


def times(cases: dict[str, Case], inputs_of: InputsOf, setting: Setting, deadline: Deadline) -> Iterator[Named]:
    """Memory of each case in its second call, then seconds of all, in turns, as far as there is time."""
    first, fitting, turn = {}, {}, 0.0
    for name, case in cases.items():
        if not deadline.leaves(case.seconds + setting.rounds * turn):
            continue
        run, size = bound(case, inputs_of), case.setting
        content = tried(partial(memory_and_seconds, run, setting.device))
        if "failed" in content:
            yield name, content
            continue
        turn += content.pop("call")
        flops = 2 * size.tokens * size.vocab * size.hidden * (case.products or 0)
        first[name], fitting[name] = content | {"products": case.products, "flops": flops}, run
    for name, seconds in take_turns(fitting, rounds=setting.rounds, device=setting.device).items():
        yield name, {"seconds": spread(seconds), **first[name]}


def kernels(cases: dict[str, Case], inputs_of: InputsOf, setting: Setting, deadline: Deadline) -> Iterator[Named]:
    """The most expensive kernels of each case."""
    for name, case in cases.items():
        if deadline.leaves(START_SECONDS):
            yield name, tried(partial(kernels_of, bound(case, inputs_of), setting.device))


def bound(case: Case, inputs_of: InputsOf) -> Callable[[], None]:
    """A case with its inputs."""
    size = case.setting
    return partial(step, inputs_of(size.tokens, size.vocab, size.hidden, size.dtype, size.device), case.run)


def memory_and_seconds(run: Callable[[], None], device: str) -> dict[str, Any]:
    """Of the second call; the first one compiles."""
    run()
    before = time.perf_counter()
    return {"extra_mib": extra_memory(run, device=device), "call": time.perf_counter() - before}


def kernels_of(run: Callable[[], None], device: str) -> dict[str, Any]:
    """The kernels of the second call."""
    run()
    return {"kernels": profile(run, device)}


def tried(measured: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a measurement gives, or how it failed; whose traceback, which holds tensors, is gone by then."""
    try:
        return measured()
    except Exception as error:
        traceback.print_exc()
        failed = {"failed": what_failed(error)}
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return failed


def memory_of(send: Send, setting: Setting, group: str, name: str) -> None:
    """In a child: the memory of the first call of a case."""
    send(extra_memory(bound(groups(setting)[group][name], make_inputs), device=setting.device))


def run(children: Children, results: Results, *, size: str, device: str, deadline: Deadline) -> list[str]:
    """The stage of gpu.py: measure what has no line yet; return what failed, other than by running out of memory."""
    setting, done, failed = replace(SIZES[size], device=device), results.done(), []
    everything = {"ceilings"} | {f"{group}: {name}" for group, cases in groups(setting).items() for name in cases}
    if everything <= done:
        return []
    for case, content in children.run(measure, setting, done, deadline, name="loss", seconds=deadline.limit):
        if content.get("failed", OUT_OF_MEMORY) == OUT_OF_MEMORY:
            results.add(case=case, **content)
        else:
            failed.append(f"{case}: {content['failed']}")
    return failed


def main(argv: list[str] | None = None) -> None:
    """Measure on this CPU and print tables."""
    from pages import loss

    size = SIZES["cpu"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("tokens", "vocab", "hidden", "rounds"):
        parser.add_argument(f"--{name}", type=int, default=getattr(size, name), help="(%(default)s)")
    parser.add_argument("--chunk-size", type=int, help="tokens a chunk; default: from the memory budget")
    parser.add_argument("--sweeps", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=Path, default=Path("runs/bench/loss.json"))
    args = vars(parser.parse_args(argv))
    path, sweeps = args.pop("json"), CPU_SWEEPS if args.pop("sweeps") else {}
    setting, children, lines = replace(size, **args, sweeps=sweeps), Children(path.parent / "logs", "cpu"), []
    print(", ".join((where := conditions("cpu")).values()))
    for case, content in children.run(measure, setting, {"ceilings"}, Deadline.after(FOREVER), name="loss"):
        if content["group"] == "main":  # in the measuring process the allocator has kept blocks of other cases
            content["extra_mib"] = children.call(memory_of, setting, "main", content["name"], name="memory")
        lines.append({"case": case, **content})
    print("\n\n".join(filter(None, loss(lines))))
    write_json(path, conditions=where, setting=args, lines=lines)


if __name__ == "__main__":
    main()
