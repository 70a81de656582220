"""What the monitor costs: steps with it and without it take turns inside one training.

    python benchmarks/monitor.py                                   # a tiny Qwen3, 0.46 million parameters
    python benchmarks/monitor.py --model runs/demo/model --prompts 8 --completion-tokens 32 --steps 12

"On" is the default: figures, phases, rules and the run log at every step. "Off" computes none of them. A step lasts
until the next one begins, so that its log line counts. Two figures are given: the ratio of neighbouring steps on and
off, with the noise of the machine; and the share of the steps that are on which is spent inside the monitor's own
functions, which has little noise. The first figures of the sampled token come out of the loss itself, which
`benchmarks/loss.py` measures.
"""

import argparse
import functools
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from measure import QUIET, conditions, write_json
from trainers import Setup, build_trainer
from transformers import TrainerCallback

from opd_trl.data import toy_task
from opd_trl.reproduce.tables import markdown


HOOKS = ("on_log", "on_step_end", "on_epoch_end")
LIMIT = 0.03


class Turns(TrainerCallback):
    """Switches the monitor on and off from step to step: on, off, off, on."""

    def __init__(self, trainer):
        self.trainer, self.monitor = trainer, trainer.monitor
        self.seconds: list[tuple[bool, float]] = []
        self.inside: list[float] = []
        self.spent, self.is_on = 0.0, True
        for hook in HOOKS:
            setattr(self.monitor, hook, self.counted(getattr(self.monitor, hook)))
        trainer.figures.add = self.counted(trainer.figures.add)
        self.started: float | None = None

    def counted(self, function: Callable) -> Callable:
        """The function where the monitor is on, with its time; nothing where it is off."""

        @functools.wraps(function)
        def call(*args, **kwargs):
            if not self.is_on:
                return None
            before = time.perf_counter()
            result = function(*args, **kwargs)
            self.spent += time.perf_counter() - before
            return result

        return call

    def on_step_begin(self, args, state, control, **kwargs):
        self.close()
        self.is_on = state.global_step % 4 in (0, 3)
        self.trainer.monitor = self.monitor if self.is_on else None
        self.started = time.perf_counter()

    def on_train_end(self, args, state, control, **kwargs):
        self.close()

    def close(self) -> None:
        """Take down the step that ends here."""
        if self.started is not None:
            seconds = time.perf_counter() - self.started
            self.seconds.append((self.is_on, seconds))
            if self.is_on:
                self.inside.append(self.spent / seconds)
        self.spent = 0.0


def ratio(seconds: list[tuple[bool, float]]) -> tuple[float, float, float]:
    """Geometric mean of on / off over neighbouring pairs, with its 95 % interval (normal, of the logarithms)."""
    pairs = [dict(seconds[i : i + 2]) for i in range(0, len(seconds) - 1, 2)]
    logs = [math.log(pair[True] / pair[False]) for pair in pairs]
    mean, error = statistics.fmean(logs), statistics.stdev(logs) / math.sqrt(len(logs))
    return tuple(math.exp(mean + z * error) for z in (0.0, -1.96, 1.96))


def main(argv: list[str] | None = None) -> None:
    """Measure on this CPU and print a table; exit with an error where the monitor takes more than `LIMIT`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="path; student and teacher. Default: a tiny Qwen3 with random weights")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--completion-tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=60, help="measured, half of them with the monitor; two warm up")
    parser.add_argument("--json", type=Path, default=Path("runs/bench/monitor.json"))
    setting = vars(parser.parse_args(argv))
    path = setting.pop("json")
    os.environ |= QUIET
    with tempfile.TemporaryDirectory() as folder:
        paths = [setting["model"] or f"{folder}/{name}" for name in ("student", "teacher")]
        for seed, model in enumerate([] if setting["model"] else paths):
            toy_task.save(Path(model), seed=seed)
        size = (setting["prompts"], setting["completion_tokens"], setting["steps"] + 2)
        trainer = build_trainer("OPDTrainer (default)", Setup(*paths, Path(folder, "out"), *size))
        trainer.args.logging_steps = 1
        turns = Turns(trainer)
        trainer.add_callback(turns)
        trainer.train()
    found, low, high = ratio(turns.seconds[2:])
    share, worst = statistics.fmean(turns.inside[1:]), max(turns.inside[1:])
    off = statistics.median(x for is_on, x in turns.seconds[2:] if not is_on)
    print(", ".join((where := conditions("cpu")).values()))
    row = {"step without, s": f"{off:.2f}", "ratio on / off": f"{found:.3f}", "95 %": f"{low:.3f} to {high:.3f}"}
    row |= {"share inside the monitor, %": f"{100 * share:.2f}", "worst step, %": f"{100 * worst:.2f}"}
    print(
        f"\n{' x '.join(map(str, size[:2]))} completion tokens a step, {setting['steps']} steps\n\n{markdown([row])}"
    )
    result = {"seconds_off": off, "ratio": found, "low": low, "high": high, "share": share, "worst_share": worst}
    write_json(path, conditions=where, setting=setting, result=result)
    if share > LIMIT:
        raise SystemExit(f"the monitor takes {100 * share:.1f} % of a step, more than {100 * LIMIT:.0f} %.")


if __name__ == "__main__":
    main()
