"""`verify-loss` on a trainer: every form of its loss on rollouts of its own student."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..losses.fused import distillation_loss
from ..losses.next_token import NextToken
from ..losses.objective import Objective, Tokens
from . import findings
from .findings import Finding
from .flight import Flight
from .loss_check import CLOSE, TOP_KS, LossCheck, LossRow, cosine_of, forms_of, judge, judge_tail
from .rollouts import Rollout, Scored, only_block, score


# Positions that are compared; the rest of a long rollout says little more.
MAX_TOKENS = 2048


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
    return dataclasses.replace(
        scored,
        student=scored.student.select(at),
        teacher=scored.teacher.select(at),
        tokens=scored.tokens.rows(at),
    )


def detached(scored: Scored):
    """The student's distributions without their graph."""
    return dataclasses.replace(scored.student, hidden_states=scored.student.hidden_states.detach())


def as_its_own_teacher(scored: Scored, objective: Objective) -> tuple[float, float]:
    """Sum of the loss, and largest gradient, of the code that trains where the student is its own teacher."""
    hidden_states = scored.student.hidden_states.detach().requires_grad_()
    student = NextToken(hidden_states, scored.student.head)
    tokens = Tokens(scored.tokens.weights, scored.tokens.ids)
    with torch.enable_grad():
        loss, _ = distillation_loss(student, student, tokens, dataclasses.replace(objective, extrapolation=1.0))
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


# K of the rows beside the configured loss.
TOP_KS = (1, 20)


def loss(flight: Flight) -> None:
    """Mechanism 2: the row of `verify-loss`."""
    with flight.over_batches("Gradients of the loss") as done:
        found = check_loss(flight.trainer, flight.rollouts, top_ks=TOP_KS, on_batch=done)
    word, sentence = judge(found.rows, found.exact_loss)
    row = found.rows[0]
    agreement = row.cosine if row.block_cosine is None else row.block_cosine
    agreement_text = "-" if agreement is None else f"{agreement:.3f}"
    figure = f"left at the teacher {row.gradient_at_teacher:.1e}, cosine {agreement_text}"
    threshold = f"0 at the teacher ({findings.PAPER}, eq. 12); cosine above {CLOSE} ({findings.OURS})"
    flight.findings.append(Finding("loss", "gradient", word, figure, sentence, threshold, value=agreement))
    flight.findings.append(judge_tail(row.tail_pull, flight.trainer.args.loss_top_k))
    flight.details["loss"] = found
