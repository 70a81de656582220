"""Does the loss of a trainer lead to its teacher? Every form of it on the student's own text; also `verify-loss`."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from ..losses.divergences import DIVERGENCES
from ..losses.fused import distillation_loss
from ..losses.next_token import NextToken
from ..losses.objective import Objective, Tokens
from ..trainers.looks.rollouts import Rollout, Scored, only_block, score
from .findings import PAPER, Finding, number
from .loss_check import TOP_KS, LossCheck, LossRow, cosine_of, forms_of, judge, tail_finding
from .state import Preflight


# Positions that are compared; the rest of a long rollout says little more.
MAX_TOKENS = 2048
# K of the forms beside the configured one in a pre-flight, which has less room than `verify-loss`.
PREFLIGHT_TOP_KS = (1, 20)


@dataclass(frozen=True)
class LossReport:
    """What `check_loss` finds.

    Attributes:
        rows: of the configured loss, then of the other forms.
        exact_loss: the divergence over the whole vocabulary, nats per token.
        divergence: its name.
        num_tokens: compared positions.
        block: name of the parameters of `block_cosine`, and how many numbers they hold.
        twin_loss, twin_gradient: of the code that trains, where the student is its own teacher: the loss (nats per
            token) and the largest entry of its gradient in the hidden states.
    """

    rows: list[LossRow]
    exact_loss: float
    divergence: str
    num_tokens: int
    block: tuple[str, int]
    twin_loss: float
    twin_gradient: float


def run(preflight: Preflight) -> list[Finding]:
    """Compare the gradient of the configured loss with the exact one."""
    trainer = preflight.trainer
    with preflight.over_batches("Gradients of the loss") as done:
        report = check_loss(trainer, preflight.rollouts, top_ks=PREFLIGHT_TOP_KS, on_batch=done)
    preflight.details["loss"] = figures_of(report, trainer.args, prompts=preflight.num_completions)
    word, sentence = judge(report.rows, report.exact_loss)
    row = report.rows[0]
    figure = f"left at the teacher {row.gradient_at_teacher:.1e}, cosine {number(row.agreement)}"
    threshold = f"0 at the teacher ({PAPER}, eq. 12)"
    return [
        Finding("gradient", word, figure, sentence, threshold, value=row.agreement),
        tail_finding(row.tail_pull, trainer.args.loss_top_k),
    ]


def table(figures: dict[str, Any]) -> Table | None:
    """One row for each form of the loss."""
    return rows_table(figures["loss"]["rows"]) if "loss" in figures else None


def heading(figures: dict[str, Any]) -> str:
    """What was compared, as `verify-loss` prints it above the table; `figures` are its JSON."""
    name, size = figures["block"]
    return (
        f"{figures['num_tokens']} positions of {figures['prompts']} prompts, answered by the student. Exact: the "
        f"{DIVERGENCES[figures['divergence']].title} over the whole vocabulary, {figures['exact_loss']:.4f} nats a "
        f"token.\nParameter block: {name} ({size:,} numbers).\nConfigured: {figures['configured']}.\n"
    )


def rows_table(rows: Sequence[dict[str, Any]]) -> Table:
    """One line for each form of the loss, the configured one in bold; `rows` as in the JSON."""
    grid = Table(box=None, pad_edge=False)
    grid.add_column("loss", no_wrap=True)
    for column in ("K", "nats", "cosine\nlogits", "cosine\nblock", "norm", "bias", "student\noutside"):
        grid.add_column(column, justify="right", no_wrap=True)
    grid.add_column("teacher\noutside", justify="right", no_wrap=True)
    for row in (LossRow(**row) for row in rows):
        cells = (
            row.name,
            "" if row.top_k is None else str(row.top_k),
            number(row.loss, ".4f"),
            number(row.cosine),
            number(row.block_cosine),
            number(row.norm_ratio),
            number(row.bias),
            number(row.student_outside),
            number(row.teacher_outside),
        )
        grid.add_row(*cells, style=None if grid.row_count else "bold")
    return grid


def figures_of(report: LossReport, args, *, prompts: int) -> dict[str, Any]:
    """The check as JSON; `args` are the trainer's, `prompts` how many were answered."""
    word, advice = judge(report.rows, report.exact_loss)
    figures = asdict(report) | {"prompts": prompts, "configured": configuration(args)}
    return figures | {"verdict": word, "advice": advice}


def configuration(args) -> str:
    """The configured loss in the words of a recipe."""
    if args.loss_support == "sampled":
        return "loss_support: sampled"
    if args.loss_support == "full":
        return f"loss_support: full, divergence: {args.divergence}"
    text = f"divergence: {args.divergence}, loss_support: {args.loss_support}, loss_top_k: {args.loss_top_k}"
    return f"{text}, loss_tail: {args.loss_tail}, stop_gradient: {str(args.stop_gradient).lower()}"


def check_loss(
    trainer,
    rollouts: Sequence[Rollout],
    *,
    top_ks: Sequence[int] = TOP_KS,
    max_tokens: int = MAX_TOKENS,
    on_batch: Callable[[], None] = lambda: None,
) -> LossReport:
    """Compare the gradient of a trainer's loss, and of its other forms, with the exact one.

    Args:
        trainer: an OPDTrainer that does not train.
        rollouts: from `roll_out`.
        top_ks: K of the other forms.
        max_tokens: positions to compare, evenly spread over the rollouts.
        on_batch: called after each rollout.

    Raises:
        ValueError: a served teacher that sends TopK log-probabilities alone, or no token that the loss is taken on.
    """
    check = LossCheck(forms_of(trainer.objective, top_ks=top_ks, vocab_size=trainer.num_rows))
    total = sum(int(rollout.kept.sum()) for rollout in rollouts)
    if total == 0:
        raise ValueError("the student's completions have no token that the loss is taken on. Look at its answers.")
    twin_loss, twin_gradient = 0.0, 0.0
    graphs: list[tuple[Tensor, dict[str, Tensor]]] = []
    with only_block(trainer.model) as block:
        for rollout in rollouts:
            for scored in score(trainer, rollout):
                part = thin_out(scored, max_tokens / total)
                gradients = check.add(detached(part), part.teacher, part.tokens)
                graphs.append((part.student.hidden_states, gradients))
                loss, gradient = as_its_own_teacher(part, trainer.objective)
                twin_loss, twin_gradient = twin_loss + loss, max(twin_gradient, gradient)
            on_batch()
        if check.num_tokens == 0:
            raise ValueError(
                "no token of the student's answers can be compared with the teacher's. Look at its answers."
            )
        cosines = block_cosines(graphs, list(block.values()), [form.key for form in check.forms])
    return LossReport(
        rows=check.rows(cosines),
        exact_loss=check.exact_loss,
        divergence=check.divergence,
        num_tokens=check.num_tokens,
        block=(common_name(list(block)), sum(x.numel() for x in block.values())),
        twin_loss=twin_loss / check.num_tokens,
        twin_gradient=twin_gradient,
    )


def thin_out(scored: Scored, share: float) -> Scored:
    """Evenly spaced positions, about a share of them and at least one."""
    n = len(scored.student)
    if share >= 1 or n == 0:
        return scored
    count = max(1, round(n * share))
    at = torch.linspace(0, n - 1, count, device=scored.kept.device).long()
    return replace(
        scored,
        student=scored.student.select(at),
        teacher=scored.teacher.select(at),
        tokens=scored.tokens.rows(at),
    )


def detached(scored: Scored) -> NextToken:
    """The student's distributions without their graph."""
    return replace(scored.student, hidden_states=scored.student.hidden_states.detach())


def as_its_own_teacher(scored: Scored, objective: Objective) -> tuple[float, float]:
    """Sum of the loss, and largest gradient, of the code that trains where the student is its own teacher."""
    hidden_states = scored.student.hidden_states.detach().requires_grad_()
    student = NextToken(hidden_states, scored.student.head)
    tokens = Tokens(scored.tokens.weights, scored.tokens.ids)
    with torch.enable_grad():
        loss, _ = distillation_loss(student, student, tokens, replace(objective, extrapolation=1.0))
        (gradient,) = torch.autograd.grad(loss, hidden_states)
    return loss.item(), gradient.abs().max().item()


def block_cosines(
    graphs: Sequence[tuple[Tensor, dict[str, Tensor]]], block: Sequence[Tensor], keys: Sequence[str]
) -> dict[str, float | None]:
    """Cosine with the exact gradient, in the parameters of a block, of each form.

    One form at a time: the gradient of a block can be large.
    """

    def gradient_of(key: str) -> list[Tensor]:
        total = [torch.zeros_like(x, dtype=torch.float32) for x in block]
        for hidden_states, gradients in graphs:
            by_hidden = gradients[key].to(hidden_states.dtype)
            found = torch.autograd.grad(
                hidden_states, block, by_hidden, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for x, gradient in zip(total, found, strict=True):
                x += gradient
        return total

    exact = gradient_of("")
    return {key: cosine_of(gradient_of(key), exact) for key in keys}


def common_name(names: Sequence[str]) -> str:
    """The module that holds all these parameters.

    >>> common_name(["model.layers.1.mlp.up.weight", "model.layers.1.mlp.down.weight"])
    'model.layers.1.mlp'
    """
    parts = [name.split(".")[:-1] for name in names]
    same = []
    for at in zip(*parts, strict=False):
        if len(set(at)) > 1:
            break
        same.append(at[0])
    return ".".join(same)
