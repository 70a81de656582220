"""Whole training steps on a CPU: OPDTrainer against TRL's DistillationTrainer, OPSDTrainer against TRL's SDFTTrainer.

    make bench
    python benchmarks/steps.py --rounds 5 --completion-tokens 128 --pair opsd

Same model, prompts and seed, float32; full fine-tuning with a separate teacher (OPD), LoRA with the adapters off as
teacher (OPSD). Every completion has the same length, since EOS is not sampled before it. Each trainer lives in a
process of its own and they take turns, one optimizer step at a time: generation, teacher, student, backward, AdamW.
Extra memory is the peak of loss and backward over what was resident before it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from measure import conditions, print_table, resident_mib, write_json
from rich.progress import track
from trainers import PAIRS, Setup, build_trainer


# Lines with which a worker answers; libraries print others.
ANSWER = "@"


def work(name: str, args) -> None:
    """Train in this process, one step for every line read; answer each with seconds and MiB."""
    from transformers import TrainerCallback

    trainer = build_trainer(
        name,
        Setup(
            student=args.model,
            teacher=args.model,
            output=args.json.parent / "trainer",
            prompts=args.prompts,
            completion_tokens=args.completion_tokens,
            steps=args.rounds + 1,
        ),
    )
    answer: dict[str, float] = {}

    class TakeTurns(TrainerCallback):
        def on_step_begin(self, *_, **__):
            sys.stdin.readline()
            answer["start"] = time.perf_counter()

        def on_step_end(self, *_, **__):
            seconds = time.perf_counter() - answer.pop("start")
            print(ANSWER + json.dumps({"seconds": seconds, **answer}), flush=True)

    # The batch is generated inside training_step, so the loss begins where compute_loss is called.
    compute_loss, training_step = trainer.compute_loss, trainer.training_step

    def compute_loss_from_here(*inputs, **options):
        Path("/proc/self/clear_refs").write_text("5")
        answer["resident"], answer["loss_from"] = resident_mib("VmRSS"), time.perf_counter()
        return compute_loss(*inputs, **options)

    def training_step_until_here(*inputs, **options):
        loss = training_step(*inputs, **options)
        answer["loss_seconds"] = time.perf_counter() - answer.pop("loss_from")
        answer["extra_mib"] = resident_mib("VmHWM") - answer.pop("resident")
        return loss

    trainer.compute_loss, trainer.training_step = compute_loss_from_here, training_step_until_here
    trainer.add_callback(TakeTurns())
    trainer.train()


class Worker:
    """A trainer in a process of its own."""

    def __init__(self, name: str, arguments: list[str]):
        self.name = name
        command = [sys.executable, __file__, *arguments, "--work", name]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.answers: list[dict[str, float]] = []

    def step(self) -> None:
        """One optimizer step; the answer is kept."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        output = []
        for line in self.process.stdout:
            if line.startswith(ANSWER):
                self.answers.append(json.loads(line[len(ANSWER) :]))
                return
            output.append(line)
        raise RuntimeError(f"{self.name} ended before its step did:\n{''.join(output)[-3000:]}")

    def medians(self) -> dict[str, float]:
        """Over the steps after the first, which warms up."""
        return {key: statistics.median(x[key] for x in self.answers[1:]) for key in self.answers[0]}


def compare(pair: str, args, arguments: list[str]) -> dict[str, dict[str, float]]:
    workers = [Worker(name, arguments) for name in PAIRS[pair]]
    try:
        for _ in track(range(args.rounds + 1), description=f"measuring {pair}", transient=True):
            for worker in workers:
                worker.step()
        rows = {worker.name: worker.medians() for worker in workers}
    finally:
        for worker in workers:
            worker.process.kill()
    first = next(iter(rows.values()))
    print_table(
        f"{args.prompts} prompts x {args.completion_tokens} completion tokens a step",
        ("trainer", "step, ratio", "loss + backward, ratio", "extra memory, ratio", "step, s", "loss, s", "MiB"),
        (
            [
                name,
                *(row[key] / first[key] for key in ("seconds", "loss_seconds", "extra_mib")),
                row["seconds"],
                row["loss_seconds"],
                int(row["extra_mib"]),
            ]
            for name, row in rows.items()
        ),
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="path; default: the demo's SmolLM2-135M, V=49152")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--completion-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="steps of every trainer after the one that warms up")
    parser.add_argument("--pair", choices=sorted(PAIRS), help="default: both")
    parser.add_argument("--json", type=Path, default=Path("runs/bench/steps.json"))
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE", "TRL_EXPERIMENTAL_SILENCE": "1"}
    if args.work:
        work(args.work, args)
        return
    if args.model is None:
        from opd_trl.reproduce.demo_model import prepare_model

        args.model = str(prepare_model(Path("runs/demo/model")))
    where = conditions("cpu")
    print(", ".join(where.values()))
    arguments = ["--model", args.model, "--prompts", str(args.prompts), "--rounds", str(args.rounds)]
    arguments += ["--completion-tokens", str(args.completion_tokens), "--json", str(args.json)]
    rows = {pair: compare(pair, args, arguments) for pair in ([args.pair] if args.pair else PAIRS)}
    setting = {key: getattr(args, key) for key in ("model", "prompts", "completion_tokens", "rounds")}
    write_json(args.json, conditions=where, setting=setting, rows=rows)


if __name__ == "__main__":
    main()
