"""Is the teacher who it is said to be? Asked with a fixed text: at step 0, at every evaluation and at every save."""

import torch
from torch import Tensor
from transformers import TrainerCallback

from ..teachers import PROBE_TEXT, LiveTeacher, Teacher
from .scoring import score_tokens


# Tokens of the text: enough to tell two models apart, and no visible time.
PROBE_TOKENS = 32
# Mean difference in nats a token beyond rounding, in float32 and in 16 bits. The same weights give the same numbers.
BEYOND_ROUNDING = (1e-3, 0.1)
# What NaN counts as, so that a teacher that becomes NaN has moved.
NOT_A_NUMBER = -1e4


class TeacherGuard(TrainerCallback):
    """Stops a self-distillation whose teacher is not the student at step 0, or moves though it is frozen.

    Another model that teaches cannot move: it shares no weight with the student.

    Args:
        trainer: with its teacher and its objective.

    Raises:
        ValueError: the teacher is another model than the student as it was given.
        RuntimeError: a frozen teacher has moved; from `train` and `evaluate`.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.at_start: Tensor | None = None
        if not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):  # they place the weights as training begins
            self._begin(step=0)

    def on_train_begin(self, args, state, control, **kwargs):
        if self.at_start is None:
            self._begin(step=state.global_step)
        else:
            self._compare(state.global_step)

    def on_evaluate(self, args, state, control, **kwargs):
        self._compare(state.global_step)

    def on_save(self, args, state, control, **kwargs):
        self._compare(state.global_step)

    def _begin(self, *, step: int) -> None:
        """Write down what the teacher says, and compare it with the student before any step."""
        self.at_start = self._ask(self.trainer.teacher)
        apart = 0.0 if step else self._nats_apart(self.at_start, self._ask(LiveTeacher()))
        if apart:
            raise ValueError(
                f"the teacher (teacher_model_kind={self.trainer.args.teacher_model_kind!r}) is not the student at "
                f"step 0: their log-probabilities of a test sentence are {apart:.3g} nats a token apart. The adapter "
                "may have been initialised in a way that changes the base model and cannot be repeated. Set "
                "init_lora_weights=True, or use OPDTrainer with a copy of the model as teacher_model."
            )

    def _compare(self, step: int) -> None:
        """Raise RuntimeError for a frozen teacher that says something else than at the start."""
        if self.at_start is None or not self.trainer.teacher.is_frozen:
            return
        apart = self._nats_apart(self._ask(self.trainer.teacher), self.at_start)
        if apart:
            raise RuntimeError(
                f"the teacher has moved: at step {step} its log-probabilities of a test sentence are {apart:.3g} nats "
                "a token from those at the start. Something trains or rewrites weights that it reads, such as a part "
                "of the base model that was unfrozen after the trainer was built, or an adapter that was merged. "
                "Leave these weights alone, or use OPDTrainer with a copy of the model as teacher_model."
            )

    def _nats_apart(self, one: Tensor, other: Tensor) -> float:
        """Mean difference in nats a token; 0 where it is rounding."""
        args, dtype = self.trainer.args, self.trainer.model.dtype
        rounding = BEYOND_ROUNDING[args.bf16 or args.fp16 or dtype not in (torch.float32, torch.float64)]
        difference = (one.nan_to_num(NOT_A_NUMBER) - other.nan_to_num(NOT_A_NUMBER)).abs().mean().item()
        return difference if difference > rounding else 0.0

    def _ask(self, teacher: Teacher) -> Tensor:
        """Its log-probabilities of the second half of the test sentence."""
        ids = self.trainer.tokenizer.encode(PROBE_TEXT, add_special_tokens=False)[:PROBE_TOKENS]
        prompt, completion = torch.tensor([ids], device=self.trainer.accelerator.device).tensor_split(2, dim=1)
        batch = {"prompt_ids": prompt, "completion_ids": completion}
        masks = {name.replace("ids", "mask"): torch.ones_like(x) for name, x in batch.items()}
        return score_tokens(self.trainer, teacher, batch | masks)
