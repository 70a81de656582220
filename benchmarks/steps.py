"""Whole training steps, phase by phase: ours against TRL's DistillationTrainer, SDFTTrainer and GRPOTrainer.

    make bench
    python benchmarks/steps.py --rounds 5 --completion-tokens 128 --pair opsd
    python benchmarks/steps.py --pair opsd --ours --context-tokens 150 1000 4000

Same model, prompts and seed; full fine-tuning with a separate teacher (OPD), LoRA with the adapters off as teacher
(OPSD). Each trainer has a process of its own. On a CPU, in float32, the trainers take turns, one optimizer step at a
time. `--lengths equal`: every completion has the same length, since EOS is not sampled before it; `log-normal`: drawn
completions of drawn lengths stand in for generation, the same for every trainer. With several contexts, the cases of
all contexts take turns.

It is also the stage `steps` of gpu.py: models of the shapes of Qwen3-0.6B (student) and Qwen3-1.7B (teacher) with
random weights, in bfloat16, and two kinds of lengths: `equal`, really generated; `log-normal`, where completions of
drawn lengths stand in for generation, the same for every trainer, so that these steps have no time of generation.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from children import OUT_OF_MEMORY, ChildError, Children, Send
from gpu_models import FIRST_PLAIN_ID, prepare
from lines import Deadline, Line, Results
from measure import conditions, spread, write_json
from rich.progress import track
from trainers import CONTEXT, PAIRS, Setup, build_trainer


SIZES = {
    "full": {"prompts": 8, "accumulation": 4, "equal": 128, "mean": 200, "longest": 1024, "rounds": 3},
    "small": {"prompts": 2, "accumulation": 1, "equal": 4, "mean": 4, "longest": 12, "rounds": 1},
}
# Characters, which are tokens here: before each question, and of the privileged context.
TEXTS = {"full": {"preface": 180, "context": 2000}, "small": {"preface": 10, "context": 40}}
LENGTHS = ("equal", "log-normal")
SPREAD = 1.0  # standard deviation of the logarithm of a length
# Seconds to leave for a case: start, models, steps.
CASE_SECONDS = {"equal": 50, "log-normal": 40}
TRAINERS = tuple(name for pair in PAIRS.values() for name in pair)
# TRL's and our defaults.
FIRST = ("DistillationTrainer", "OPDTrainer (default)", "SDFTTrainer, topk_logits", "OPSDTrainer (default)")


@dataclass(frozen=True)
class Task:
    """A trainer and what it is given.

    Attributes:
        lengths: `equal`, `log-normal`, or `longest` for completions that stand in and all have the longest length.
        mean: of log-normal lengths.
        limit_mib: memory of the process in place of the whole card's; on a CPU what its growth is compared with.
    """

    trainer: str
    setup: Setup
    lengths: str = "equal"
    mean: int = 0
    limit_mib: int | None = None


def run(children: Children, results: Results, *, size: str, device: str, home: Path, deadline: Deadline) -> list[str]:
    """The stage: measure what has no line yet; return what failed, other than by running out of memory."""
    done = results.done()
    todo = [(lengths, name) for lengths, name in cases(size) if f"{lengths}: {name}" not in done]
    paths, failed = prepare(children, home / "models", size, device) if todo else {}, []
    for number, (lengths, name) in enumerate(todo):
        if not deadline.leaves(CASE_SECONDS[lengths]):
            continue
        case = f"{lengths}: {name}"
        task = task_of(name, lengths, size, device, paths, home)
        try:
            content = measured(children, task, name=f"steps-{number}", seconds=deadline.limit)
            results.add(case=case, lengths=lengths, trainer=name, **content)
        except ChildError as error:
            failed.append(f"{case}: {error}")
    return failed


def cases(size: str) -> list[tuple[str, str]]:
    """Lengths and trainers, the most important first; in a dry run one trainer with completions that stand in."""
    if size == "small":
        return [("log-normal", "OPSDTrainer (default)"), *(("equal", name) for name in TRAINERS)]
    rest = [name for name in TRAINERS if name not in FIRST]
    return [(lengths, name) for names in (FIRST, rest) for lengths in LENGTHS for name in names]


def task_of(name: str, lengths: str, size: str, device: str, paths: dict[str, str], home: Path) -> Task:
    """The work of one case."""
    setting = SIZES[size]
    setup = Setup(
        **paths,
        output=home / "trainer",
        prompts=setting["prompts"],
        accumulation=setting["accumulation"],
        completion_tokens=setting["equal" if lengths == "equal" else "longest"],
        same_length=lengths == "equal",
        steps=setting["rounds"] + 1,
        device=device,
        dtype="bfloat16",
        **{name: "x" * length for name, length in TEXTS[size].items()},
    )
    return Task(name, setup, lengths, setting["mean"])


def measured(children: Children, task: Task, **options: Any) -> Line:
    """What the steps of a task took, or that it ran out of memory.

    Raises:
        ChildError: it failed otherwise.
    """
    try:
        return summary(list(children.run(measure, task, **options)))
    except ChildError as error:
        if str(error) != OUT_OF_MEMORY:
            raise
        return {"failed": OUT_OF_MEMORY}


def measure(send: Send, task: Task) -> None:
    """In a child: train, and send what each step took."""
    from phases import phases_of

    if task.setup.device == "cuda" and task.limit_mib is not None:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, task.limit_mib * 2**20 / total))
    trainer = build_trainer(task.trainer, task.setup)
    with phases_of(trainer, None if task.lengths == "equal" else stand_in(task), send, task.limit_mib):
        trainer.train()


def summary(steps: list[dict[str, Any]]) -> Line:
    """Over the steps after the first, which warms up: seconds, of each phase too, and MiB."""
    kept = [step["phases"] for step in steps[1:] or steps]
    parts = {
        "seconds": kept[0].keys(),
        "without_generation": kept[0].keys() - {"generation"},
        "loss_and_backward": ("teacher", "student", "loss", "backward"),
    }
    line = {name: spread([sum(step[phase] for phase in phases) for step in kept]) for name, phases in parts.items()}
    extra = spread([step["extra_mib"] for step in steps[1:] or steps])["median"]
    line["phases"] = {phase: spread([step[phase] for step in kept])["median"] for phase in kept[0]}
    return line | {name: value for name, value in steps[-1].items() if name != "phases"} | {"extra_mib": extra}


def stand_in(task: Task) -> Callable[..., torch.Tensor]:
    """A `generate` that returns random completions of drawn lengths, each call with its own seed."""
    longest, calls = task.setup.completion_tokens, iter(range(10**9))

    def generate(model, input_ids: torch.Tensor, *, generation_config: Any, **options: Any) -> torch.Tensor:
        rows, vocab = input_ids.size(0), model.config.vocab_size
        end, pad = torch.as_tensor(generation_config.eos_token_id).flatten()[0], generation_config.pad_token_id
        seed = next(calls)
        lengths = torch.full((rows,), longest) if task.lengths == "longest" else draw_lengths(rows, task, seed)
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(FIRST_PLAIN_ID, vocab, (rows, int(lengths.max())), generator=generator)
        places, last = torch.arange(ids.size(1)), lengths.unsqueeze(1) - 1
        ids[places == last], ids[places > last] = end, pad
        return torch.cat([input_ids, ids.to(input_ids.device)], dim=1)

    return generate


def draw_lengths(rows: int, task: Task, seed: int) -> torch.Tensor:
    """Log-normal lengths of the mean `task.mean`, cut to 1 ... the longest."""
    normal = torch.randn(rows, generator=torch.Generator().manual_seed(seed))
    logarithms = normal * SPREAD + torch.tensor(float(task.mean)).log() - SPREAD**2 / 2
    return logarithms.exp().round().long().clamp(1, task.setup.completion_tokens)


def in_turns(children: Children, tasks: list[tuple[Task, int]]) -> list[Line]:
    """Tasks, each with the tokens of its context, in a process each: one optimizer step in turn."""
    running, steps = [], tasks[0][0].setup.steps
    for number, (task, _) in enumerate(tasks):
        home = task.setup.output / str(number)  # one run writes to a folder
        own = replace(task, setup=replace(task.setup, output=home))
        running.append(children.run(measure, own, name=f"steps-{number}-{task.trainer}"))
    turns = track(zip(*running, strict=True), description="measuring", total=steps, transient=True)
    found = zip(tasks, zip(*turns, strict=True), strict=True)
    return [{"trainer": task.trainer, "context": context, **summary(list(own))} for (task, context), own in found]


def main(argv: list[str] | None = None) -> None:
    """Measure on this CPU and print tables."""
    from pages import step_table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="path; default: the demo's SmolLM2-135M, V=49152")
    parser.add_argument("--prompts", type=int, default=16, help="of a micro-batch")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches of a step")
    parser.add_argument("--completion-tokens", type=int, default=64, help="of each completion, or of the longest one")
    parser.add_argument("--lengths", choices=LENGTHS, default="equal")
    parser.add_argument("--mean-tokens", type=int, default=100, help="of completions with log-normal lengths")
    parser.add_argument("--context-tokens", type=int, nargs="+", default=[20], help="of the privileged context, about")
    parser.add_argument("--rounds", type=int, default=3, help="steps of every trainer after the one that warms up")
    parser.add_argument("--pair", choices=sorted(PAIRS), help="default: all")
    parser.add_argument("--ours", action="store_true", help="leave TRL's trainers out: ratios are to the first line")
    parser.add_argument("--json", type=Path, default=Path("runs/bench/steps.json"))
    args = parser.parse_args(argv)
    if args.model is None:
        from opd_trl.reproduce.demo_model import prepare_model

        args.model = str(prepare_model(Path("runs/demo/model")))
    print(", ".join((where := conditions("cpu")).values()))
    folder = args.json.parent
    setup = Setup(
        student=args.model,
        teacher=args.model,
        output=folder / "trainer",
        prompts=args.prompts,
        accumulation=args.accumulation,
        completion_tokens=args.completion_tokens,
        same_length=args.lengths == "equal",
        steps=args.rounds + 1,
    )
    setups = {tokens: replace(setup, context=CONTEXT + " and" * max(0, tokens - 20)) for tokens in args.context_tokens}
    children, rows = Children(folder / "logs", "cpu"), {}
    for pair in [args.pair] if args.pair else PAIRS:
        names, contexts = PAIRS[pair][args.ours :], args.context_tokens if pair == "opsd" else args.context_tokens[:1]
        cases = [
            (Task(name, setups[tokens], args.lengths, args.mean_tokens), tokens)
            for tokens in contexts
            for name in names
        ]
        rows[pair] = in_turns(children, cases)
        title = f"{args.prompts} prompts x {args.accumulation}, {args.completion_tokens} completion tokens a step"
        print(f"\n{title}, {args.lengths}\n\n{step_table(rows[pair])}")
    setting = {key: value for key, value in vars(args).items() if key not in ("pair", "json")}
    write_json(args.json, conditions=where, setting=setting, rows=rows)


if __name__ == "__main__":
    main()
