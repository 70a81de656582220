"""What a run comes to on prompts that it is not trained on, in its own log: `monitor_eval_prompts`."""

import statistics

from transformers import TrainerCallback

from .held_out import HeldOut, hold_out


#: Added to the seed of a run: what is drawn for the looks is not what the run draws.
SEED = 6271
#: Log names begin with it.
PREFIX = "held_out/"


class WatchHeldOut(TrainerCallback):
    """Looks at held-out rows when training begins and every so many steps, and logs the means: `held_out/...`.

    A divergence on the run's own rollouts says little: it is that of the loss, on prompts that have just been trained
    on. These rows are taken out of the training set, and both models are compared over the whole vocabulary.

    Args:
        trainer: an OPDTrainer that has not begun; its training set is left with the other rows.

    Raises:
        ValueError: see `hold_out` and `HeldOut`.
    """

    def __init__(self, trainer):
        self.trainer, self.steps = trainer, trainer.args.monitor_eval_steps
        seed = trainer.args.seed + SEED
        rows = hold_out(trainer, trainer.args.monitor_eval_prompts, seed=seed)
        self.held_out = HeldOut(trainer, rows, judge=None, seed=seed)

    def look(self) -> None:
        """Look, and leave the means to the next line of the log."""
        for name, values in self.held_out.measure().items():
            known = [value for value in values if value == value]
            if known:
                self.trainer.train_metrics[PREFIX + name].append(statistics.fmean(known))

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.look()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps == 0:
            self.look()
