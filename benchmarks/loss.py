"""The loss step against TRL's kernel, dense autograd and Liger, and what it costs against K, N, V and the chunk.

    make bench        # N=1024, V=49152, H=576, float32: the head of SmolLM2-135M on two CPU cores
    python benchmarks/loss.py --tokens 4096 --rounds 5 --no-sweeps --json runs/bench/loss.json

Every case computes the loss and the gradients of hidden states and head (`frozen head`: of hidden states alone), and
the cases take turns. "products alone" are the matrix products that a case of ours needs, and nothing else: the floor.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from measure import alternate, conditions, extra_memory, in_fresh_process, print_table, write_json
from torch import Tensor

from opd_trl.losses import chunk_size_for, chunked_support_loss


DROP = {"tail": "drop"}
OURS = {
    "ours, renormalised Top-20 (default)": {},
    "ours, default, frozen head": {"frozen": True},
    "ours, stop-gradient Top-20, dropped tail": DROP,
    "ours, dropped tail, frozen head": DROP | {"frozen": True},
    "ours, mixed on the union, tail bucket": {"tail": "bucket", "support": "union", "divergence": "mixed"},
    "ours, full vocabulary": {"support": "full"},
    "ours, sampled token": {"support": "sampled"},
}
TRL, DENSE = "TRL 1.16 kernel (full)", "dense, Top-20"


def make_inputs(args) -> dict[str, Tensor]:
    """Hidden states and heads of student and teacher, from a fixed seed."""
    torch.manual_seed(0)
    n, v, h = args.tokens, args.vocab, args.hidden
    device, dtype = args.device, getattr(torch, args.dtype)
    inputs = {name: torch.randn(n, h, device=device).to(dtype) for name in ("student", "teacher")}
    heads = ("student_head", "teacher_head")
    inputs |= {name: torch.randn(v, h, device=device).mul_(0.05).to(dtype) for name in heads}
    inputs["weights"] = torch.full((n,), 1 / n, device=args.device)
    inputs["ids"] = torch.randint(v, (n,), device=args.device)
    inputs["student"].requires_grad_()
    inputs["student_head"].requires_grad_()
    return inputs


def student_head(inputs, frozen: bool) -> Tensor:
    return inputs["student_head"].detach() if frozen else inputs["student_head"]


def ours(inputs, *, chunk_size: int | None, frozen: bool = False, **options) -> None:
    loss, _ = chunked_support_loss(
        inputs["student"],
        student_head(inputs, frozen),
        inputs["teacher"],
        inputs["teacher_head"],
        inputs["weights"],
        completion_ids=inputs["ids"],
        chunk_size=chunk_size,
        **options,
    )
    loss.backward()


def products_alone(inputs, *, chunk_size: int, frozen: bool = False) -> None:
    """Two projections and two gradient products, of which a frozen head needs one, chunk by chunk."""
    student, head = inputs["student"].detach(), inputs["student_head"].detach()
    grad_head = None if frozen else torch.zeros_like(head)
    for rows in torch.arange(student.size(0)).split(chunk_size):
        rows = slice(int(rows[0]), int(rows[-1]) + 1)
        logits = student[rows] @ head.mT
        _ = inputs["teacher"][rows] @ inputs["teacher_head"].mT
        _ = logits @ head
        if grad_head is not None:
            grad_head.addmm_(logits.mT, student[rows])


def trl_kernel(inputs, *, frozen: bool = False) -> None:
    """Reverse KL (beta = 1) over the vocabulary, as DistillationTrainer calls it."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    student, teacher = (inputs["student"], student_head(inputs, frozen)), (inputs["teacher"], inputs["teacher_head"])
    divergence, _ = ChunkedDivergenceFunction.apply(*student, None, *teacher, None, 1.0, 1.0, 1.0, None, 1.0, None)
    divergence.mean().backward()


def dense(inputs, *, top_k: int | None, frozen: bool = False) -> None:
    """Both [tokens, vocabulary] tensors and autograd, softmax in float32."""
    student = (inputs["student"] @ student_head(inputs, frozen).T).float().log_softmax(-1)
    with torch.no_grad():
        teacher = (inputs["teacher"] @ inputs["teacher_head"].T).float().log_softmax(-1)
    if top_k is not None:
        ids = student.detach().topk(top_k, dim=-1).indices
        student, teacher = (x.gather(-1, ids) for x in (student, teacher))
        student, teacher = (x - x.logsumexp(-1, keepdim=True) for x in (student, teacher))
    (student.exp() * (student - teacher)).sum(-1).mean().backward()


def liger(inputs, *, compiled: bool | None = None) -> None:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    if compiled is None:
        compiled = inputs["student"].is_cuda
    loss = LigerFusedLinearJSDLoss(compiled=compiled, weight_hard_loss=0.0, weight_soft_loss=1.0, beta=1.0)
    labels = inputs["ids"]
    loss(inputs["student"], inputs["student_head"], inputs["teacher"], inputs["teacher_head"], labels).backward()


def make_cases(args, inputs) -> dict[str, Callable[[], None]]:
    """Name -> one step, its gradients cleared first."""
    own = args.chunk_size or chunk_size_for(args.vocab, inputs["student"].device)
    cases = {name: partial(ours, chunk_size=args.chunk_size, **options) for name, options in OURS.items()}
    cases |= {
        "4 products alone": partial(products_alone, chunk_size=own),
        TRL: trl_kernel,
        "TRL 1.16 kernel, frozen head": partial(trl_kernel, frozen=True),
        DENSE: partial(dense, top_k=20),
        "dense, full": partial(dense, top_k=None),
        "dense, full, frozen head": partial(dense, top_k=None, frozen=True),
    }
    try:
        import liger_kernel  # noqa: F401

        cases["Liger fused JSD (full)"] = liger
    except ImportError:
        print("liger-kernel is not installed: its rows are left out (pip install --no-deps liger-kernel).")
    return {name: partial(step, inputs, case) for name, case in cases.items()}


def step(inputs: dict[str, Tensor], case: Callable[[dict[str, Tensor]], None]) -> None:
    for tensor in inputs.values():
        tensor.grad = None
    case(inputs)


def memory_of(args, name: str) -> int:
    """On a CPU each case has a process of its own."""
    if args.device == "cuda":
        return extra_memory(make_cases(args, make_inputs(args))[name], device="cuda")
    setting = []
    for option in ("tokens", "vocab", "hidden", "dtype", "chunk_size"):
        if getattr(args, option) is not None:
            setting += [f"--{option.replace('_', '-')}", str(getattr(args, option))]
    return int(in_fresh_process(__file__, *setting, "--memory-of", name))


def compare(args) -> dict[str, dict[str, float]]:
    seconds = alternate(make_cases(args, make_inputs(args)), rounds=args.rounds, device=args.device)
    rows = {
        name: {
            "to_trl": median / seconds[TRL],
            "to_dense": median / seconds[DENSE],
            "extra_mib": memory_of(args, name),
            "seconds": median,
        }
        for name, median in seconds.items()
    }
    chunk = args.chunk_size or chunk_size_for(args.vocab, torch.device(args.device))
    print_table(
        f"N={args.tokens} V={args.vocab} H={args.hidden} {args.dtype}, {chunk} tokens a chunk",
        ("case", "time / TRL's", "time / dense Top-20", "extra peak memory, MiB", "median, s"),
        ([name, *row.values()] for name, row in rows.items()),
    )
    return rows


SWEEPS = {
    "top_k": ("K", (1, 5, 20, 100, 256)),
    "tokens": ("N", (256, 512, 1024, 2048, 4096)),
    "vocab": ("V", (8192, 16384, 49152, 151936)),
    "chunk_size": ("tokens a chunk", (32, 64, 128, 256, 512, 1024)),
}


def sweep(args, name: str) -> list[dict[str, float]]:
    """Time of default and dropped tail against one quantity, the others as given; ratios to its first value."""
    label, values = SWEEPS[name]
    cases, inputs = {}, make_inputs(args)
    for value in values:
        setting = argparse.Namespace(**vars(args) | ({} if name == "top_k" else {name: value}))
        if name in ("tokens", "vocab"):
            inputs = make_inputs(setting)
        for tail in ("renormalize", "drop"):
            # One token has no renormalised loss: K starts at 2 there.
            options = {"tail": tail, "top_k": max(value, 2 if tail == "renormalize" else 1)} if name == "top_k" else {}
            case = partial(ours, chunk_size=setting.chunk_size, **{"tail": tail} | options)
            cases[tail, value] = partial(step, inputs, case)
    seconds = alternate(cases, rounds=args.rounds, device=args.device)
    rows = [{label: value} | {tail: seconds[tail, value] for tail in ("renormalize", "drop")} for value in values]
    first = rows[0]
    print_table(
        f"Cost against {label}",
        (label, "renormalised, s", "ratio to the first", "dropped tail, s", "ratio to the first"),
        (
            (
                row[label],
                row["renormalize"],
                row["renormalize"] / first["renormalize"],
                row["drop"],
                row["drop"] / first["drop"],
            )
            for row in rows
        ),
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--chunk-size", type=int, help="default: from the memory budget")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every case after the one that warms up")
    parser.add_argument("--sweeps", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=Path, default=Path("runs/bench/loss.json"))
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here. `make bench` measures on the CPU.")
    if args.memory_of:
        print(extra_memory(make_cases(args, make_inputs(args))[args.memory_of], device=args.device))
        return
    where = conditions(args.device)
    print(", ".join(where.values()))
    rows = compare(args)
    sweeps = {name: sweep(args, name) for name in SWEEPS} if args.sweeps else {}
    setting = {k: v for k, v in vars(args).items() if k not in ("json", "memory_of", "sweeps")}
    write_json(args.json, conditions=where, setting=setting, rows=rows, sweeps=sweeps)


if __name__ == "__main__":
    main()
