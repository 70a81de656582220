"""The loss step against TRL's kernel, dense autograd and Liger: time alternately in one process, memory one by one.

    make bench                                   # N=1024, V=49152, H=576, float32: the head of SmolLM2-135M
    python benchmarks/loss.py --tokens 4096 --rounds 5 --json runs/bench/loss.json

Every case computes the loss and the gradients of hidden states and head (`frozen`: of hidden states alone). Times are
medians; ratios are taken within the run, since a shared machine makes seconds incomparable between runs. Peak memory
is the growth of the resident set over that before the step, each case in a fresh process (Linux).
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

from opd_trl.losses import chunked_support_loss


OURS = {
    "ours, renormalised Top-20 (default)": {},
    "ours, default, frozen head": {"frozen": True},
    "ours, stop-gradient Top-20, dropped tail": {"tail": "drop"},
    "ours, Top-1, dropped tail": {"tail": "drop", "top_k": 1},
    "ours, Top-256, dropped tail": {"tail": "drop", "top_k": 256},
    "ours, mixed on the union, tail bucket": {"tail": "bucket", "support": "union", "divergence": "mixed"},
    "ours, full vocabulary": {"support": "full"},
    "ours, sampled token": {"support": "sampled"},
}
TRL, DENSE, DENSE_FULL, LIGER = "TRL 1.16 kernel (full)", "dense, Top-20", "dense, full", "Liger fused JSD (full)"


def make_inputs(args) -> dict[str, Tensor]:
    """Hidden states and heads of student and teacher, from a fixed seed."""
    torch.manual_seed(0)
    n, v, h = args.tokens, args.vocab, args.hidden
    inputs = {name: torch.randn(n, h) for name in ("student", "teacher")}
    inputs |= {name: torch.randn(v, h).mul_(0.05) for name in ("student_head", "teacher_head")}
    inputs["weights"] = torch.full((n,), 1 / n)
    inputs["ids"] = torch.randint(v, (n,))
    inputs["student"].requires_grad_()
    inputs["student_head"].requires_grad_()
    return inputs


def ours(inputs, *, chunk_size: int, frozen: bool = False, **options) -> None:
    head = inputs["student_head"].detach() if frozen else inputs["student_head"]
    loss, _ = chunked_support_loss(
        inputs["student"],
        head,
        inputs["teacher"],
        inputs["teacher_head"],
        inputs["weights"],
        completion_ids=inputs["ids"],
        chunk_size=chunk_size,
        **options,
    )
    loss.backward()


def trl_kernel(inputs) -> None:
    """Reverse KL (beta = 1) over the vocabulary, as DistillationTrainer calls it."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    student, teacher = (inputs["student"], inputs["student_head"]), (inputs["teacher"], inputs["teacher_head"])
    divergence, _ = ChunkedDivergenceFunction.apply(*student, None, *teacher, None, 1.0, 1.0, 1.0, None, 1.0, None)
    divergence.mean().backward()


def dense(inputs, *, top_k: int | None) -> None:
    """Both [tokens, vocabulary] tensors and autograd."""
    student = (inputs["student"] @ inputs["student_head"].T).log_softmax(-1)
    with torch.no_grad():
        teacher = (inputs["teacher"] @ inputs["teacher_head"].T).log_softmax(-1)
    if top_k is not None:
        ids = student.detach().topk(top_k, dim=-1).indices
        student, teacher = (x.gather(-1, ids) for x in (student, teacher))
        student, teacher = (x - x.logsumexp(-1, keepdim=True) for x in (student, teacher))
    (student.exp() * (student - teacher)).sum(-1).mean().backward()


def liger(inputs) -> None:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(compiled=False, weight_hard_loss=0.0, weight_soft_loss=1.0, beta=1.0)
    labels = inputs["ids"]
    loss(inputs["student"], inputs["student_head"], inputs["teacher"], inputs["teacher_head"], labels).backward()


def make_cases(args) -> dict[str, Callable]:
    cases: dict[str, Callable] = {
        name: (lambda inputs, options=options: ours(inputs, chunk_size=args.chunk_size, **options))
        for name, options in OURS.items()
    }
    cases |= {TRL: trl_kernel, DENSE: lambda x: dense(x, top_k=20), DENSE_FULL: lambda x: dense(x, top_k=None)}
    try:
        import liger_kernel  # noqa: F401
    except ImportError:
        return cases
    return cases | {LIGER: liger}


def clear_gradients(inputs: dict[str, Tensor]) -> None:
    for tensor in inputs.values():
        tensor.grad = None


def measure_time(args) -> dict[str, float]:
    """Median seconds of each case, the cases taking turns."""
    inputs, cases = make_inputs(args), make_cases(args)
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(args.rounds + 1):  # the first turn warms up
        for name, case in cases.items():
            clear_gradients(inputs)
            start = time.perf_counter()
            case(inputs)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def status(field: str) -> int:
    """A figure of /proc/self/status in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) // 1024


def measure_memory_here(args, name: str) -> int:
    """Growth of the peak resident set during one case, in MiB."""
    inputs, case = make_inputs(args), make_cases(args)[name]
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = status("VmRSS")
    case(inputs)
    return status("VmHWM") - before


def measure_memory(args, name: str) -> int:
    command = [sys.executable, __file__, "--memory-of", name]
    for option in ("tokens", "vocab", "hidden", "chunk_size"):
        command += [f"--{option.replace('_', '-')}", str(getattr(args, option))]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--chunk-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("runs/bench/loss.json"))
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(measure_memory_here(args, args.memory_of))
        return

    seconds = measure_time(args)
    rows = {
        name: {"seconds": median, "to_trl": median / seconds[TRL], "to_dense": median / seconds[DENSE]}
        for name, median in seconds.items()
    }
    for name in rows:
        rows[name]["extra_mib"] = measure_memory(args, name)
    print(
        f"N={args.tokens} V={args.vocab} H={args.hidden} float32, {args.chunk_size} tokens a chunk; {date.today()}, "
    )
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    print("| case | time / TRL's | time / dense Top-20 | extra peak memory, MiB | median, s |")
    print("|---|---|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {row['to_trl']:.2f} | {row['to_dense']:.2f} | {row['extra_mib']} | {row['seconds']:.2f} |")
    args.json.parent.mkdir(parents=True, exist_ok=True)
    setting = {k: v for k, v in vars(args).items() if k not in ("json", "memory_of")}
    args.json.write_text(json.dumps({"setting": setting, "torch": torch.__version__, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
