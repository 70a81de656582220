"""What a training command prints of each log line: one line of the figures that one looks at."""

from collections.abc import Mapping
from typing import Any

from transformers import PrinterCallback, ProgressCallback


DIVERGENCE = "distillation/per_token_divergence"
#: Figure -> its name on the screen, in this order.
SHOWN = {
    DIVERGENCE: "divergence",
    "reward": "reward",
    "entropy": "entropy",
    "completions/mean_length": "tokens",
    "completions/clipped_ratio": "cut off",
    "learning_rate": "lr",
    "step_time": "s/step",
}
SHARES = ("completions/clipped_ratio",)


def short_line(step: int, steps: int, figures: Mapping[str, Any]) -> str:
    """A log line as the screen shows it; a line of something else (an evaluation, the end) with all its figures.

    >>> short_line(20, 200, {"loss": 0.2, DIVERGENCE: 0.21236, "completions/clipped_ratio": 0.625, "entropy": 4.5})
    'step  20/200  divergence 0.2124  entropy 4.5  cut off 62%'
    >>> short_line(200, 200, {"eval_loss": 0.123456, "epoch": 1})
    'step 200/200  eval_loss 0.1235  epoch 1'
    """
    names = SHOWN if DIVERGENCE in figures else {name: name for name in figures if name != "total_flos"}
    shown = {name: figures[name] for name in names if name in figures}
    texts = [f"{names[name]} {f'{value:.0%}' if name in SHARES else in_short(value)}" for name, value in shown.items()]
    return "  ".join([f"step {step:>{len(str(steps))}}/{steps}", *texts])


def in_short(value: Any) -> str:
    """A number in four digits; anything else as it is, cut behind 100 characters."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:100]


class ShortLines(ProgressCallback):
    """transformers' progress bar, over short lines."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(short_line(state.global_step, state.max_steps, logs))


class ShortPrints(PrinterCallback):
    """Short lines alone, where there is no bar (`disable_tqdm`)."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_local_process_zero:
            print(short_line(state.global_step, state.max_steps, logs), flush=True)


def shorten_lines(trainer) -> None:
    """Let a trainer print short lines, where its run log keeps every figure; without one they stay whole."""
    if not trainer.args.monitor:
        return
    for whole, short in ((ProgressCallback, ShortLines), (PrinterCallback, ShortPrints)):
        if trainer.pop_callback(whole) is not None:
            trainer.add_callback(short)
