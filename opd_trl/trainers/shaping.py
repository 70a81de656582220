"""The hook between distillation and GRPO's policy loss: its advantage, per token, by what the teacher says."""

from typing import Any

import torch
from torch import Tensor

from ..losses.advantages import ADVANTAGE_SHAPES
from ..losses.token_weights import SampledText
from ..teachers.scores import Scores
from .figures import by_token


@torch.no_grad()
def shaped_advantages(
    trainer, inputs: dict[str, Any], stats: dict[str, dict[str, Tensor]], scores: dict[str, Scores]
) -> Tensor:
    """The advantages of a micro-batch as `advantage_shaping` makes them `(B, T)`; TRL's own `(B,)` without it.

    The log-ratios are those of the distillation loss, whose pass is done. The log has the mean size of the change.

    Args:
        trainer: whose arguments say how, and whose metrics take the figure.
        inputs: the micro-batch.
        stats, scores: what the loss found, and which rows are whose; by teacher.
    """
    args, advantages = trainer.args, inputs["advantages"]
    if args.advantage_shaping is None:
        return advantages
    options = {"rlsd": {"share": args.rlsd_share, "clip": args.rlsd_clip}, "sdar": {"coef": args.sdar_coef}}
    log_ratio = by_token("sampled_log_ratio", stats, scores, inputs["loss_mask"].bool())
    text = SampledText(log_ratio.nan_to_num(nan=0.0), ~log_ratio.isnan())
    before = advantages.unsqueeze(-1)
    shaped = ADVANTAGE_SHAPES[args.advantage_shaping](before, text, **options[args.advantage_shaping])
    change = (shaped - before).abs()[text.kept]
    total, count = trainer.accelerator.reduce(torch.stack([change.sum(), text.kept.sum()]), reduction="sum").tolist()
    trainer.running_metrics["policy/shaped_by"].append(total / max(1.0, count))
    return shaped
