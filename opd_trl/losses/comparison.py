"""What objectives do to the same logits: their gradients beside the exact one, chunk by chunk."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .divergences import as_pair, check_beta, divergence_named
from .fused import block_loss
from .head import LogitGradient, chunk_size_for, chunks
from .mixture import Mixture
from .next_token import FromLogits, NextToken, take
from .objective import Objective, Tokens


@dataclass(frozen=True)
class TokenGradients:
    """What one objective gives for each of N tokens; detached, float32.

    Attributes:
        loss: `(N,)`, the divergence that the objective reports, nats.
        squared_norm: `(N,)`, |dL/dz|^2 over the vocabulary.
        dot: `(N,)`, with the exact gradient.
        student_mass, teacher_mass: `(N,)`, on the support.
        tail_pull: `(N,)`, how fast a step along -dL/dz lowers the student's probability outside its own TopK.
        exact_tail_pull: `(N,)`, the same along the exact gradient.
        hidden: `(N, H)`, dL/dh in the student's hidden states.
    """

    loss: Tensor
    squared_norm: Tensor
    dot: Tensor
    student_mass: Tensor
    teacher_mass: Tensor
    tail_pull: Tensor
    exact_tail_pull: Tensor
    hidden: Tensor


def exact_logit_gradient(
    student_logits: Tensor, teacher_logits: Tensor, *, divergence: str = "reverse_kl", beta: float = 0.5
) -> tuple[Tensor, Tensor]:
    """The divergence over the whole vocabulary and its gradient in the student's logits, by autograd of its terms.

    For the reverse KL dL/dz_j = p_j (r_j - sum_V p r), with r = log p - log q.

    Args:
        student_logits, teacher_logits: `(n, V)`.
        divergence, beta: as in `support_divergence`.

    Returns:
        `(n,)` nats, and `(n, V)`.

    Example:
        >>> import torch
        >>> value, gradient = exact_logit_gradient(torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]).log())
        >>> value, gradient
        (tensor([0.1438]), tensor([[-0.2747,  0.2747]]))
    """
    terms = divergence_named(divergence).terms
    check_beta(beta)
    logits = student_logits.detach().requires_grad_()
    with torch.enable_grad():
        value = terms(*as_pair(logits.log_softmax(-1), teacher_logits.log_softmax(-1)), beta=beta).sum(-1)
        (gradient,) = torch.autograd.grad(value.sum(), logits)
    return value.detach(), gradient


@torch.no_grad()
def compare_gradients(
    student: NextToken,
    teacher: NextToken | Mixture,
    tokens: Tokens,
    objectives: Mapping[str, Objective],
    *,
    divergence: str = "reverse_kl",
    beta: float = 0.5,
    temperature: float = 1.0,
    chunk_size: int | None = None,
) -> tuple[TokenGradients, dict[str, TokenGradients]]:
    """The exact gradient of a divergence, and that of each objective, on the same tokens.

    Args:
        student, teacher: over the same V ids.
        tokens: the N sampled tokens.
        objectives: name -> objective; the code that trains forms their gradients, all at the given `temperature`.
        divergence, beta: of the exact gradient, see `exact_logit_gradient`.
        temperature: of both distributions.
        chunk_size: positions projected at once; by default from the memory budget of the loss.

    Returns:
        of the exact gradient (masses 1, `dot` and pull with itself, K = 1), and of each objective.
    """
    head, transform = student.head, student.head.transform(temperature)
    if chunk_size is None:
        chunk_size = max(1, chunk_size_for(head.weight.size(0), head.weight.device) // 4)
    names = ("", *objectives)
    parts: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in names}
    for rows in chunks(len(student), chunk_size):
        logits, teacher_logits = student.logits(rows, temperature), teacher.logits(rows, temperature)
        value, exact = exact_logit_gradient(logits, teacher_logits, divergence=divergence, beta=beta)
        one = torch.ones_like(value)
        found: dict[str, tuple[Tensor, LogitGradient, Tensor, Tensor]] = {"": (value, LogitGradient(exact), one, one)}
        for name, objective in objectives.items():
            found[name] = run_objective(objective, logits, teacher_logits, tokens.rows(rows))
        log_probs, of_name = logits.log_softmax(-1), {"": 1} | {name: x.top_k for name, x in objectives.items()}
        tails = {k: OutsideTopK.of(log_probs, k) for k in set(of_name.values())}
        exact_pulls = {k: tail.pull(LogitGradient(exact)) for k, tail in tails.items()}
        for name, (loss, gradient, *masses) in found.items():
            of_exact, at = take(exact, gradient.ids), take(logits, gradient.ids)
            raw = LogitGradient(transform.chain(gradient.values, at), gradient.ids)
            squared_norm = gradient.values.square().sum(-1)
            dot = (gradient.values * of_exact).sum(-1)
            pulls = tails[of_name[name]].pull(gradient), exact_pulls[of_name[name]]
            parts[name].append((loss, squared_norm, dot, *masses, *pulls, raw.to_hidden(head.weight).float()))
    gathered = {name: TokenGradients(*map(torch.cat, zip(*parts[name], strict=True))) for name in names}
    return gathered.pop(""), gathered


@dataclass(frozen=True)
class OutsideTopK:
    """What lies outside the student's TopK at n positions.

    Attributes:
        log_probs: `(n, V)`, the student's.
        least: `(n, 1)`, log-probability of the last token inside.
        mass: `(n,)`, probability outside.
    """

    log_probs: Tensor
    least: Tensor
    mass: Tensor

    @classmethod
    def of(cls, log_probs: Tensor, top_k: int) -> "OutsideTopK":
        """Take apart log-probabilities `(n, V)`."""
        inside = log_probs.topk(min(top_k, log_probs.size(-1)), dim=-1).values
        return cls(log_probs, inside[:, -1:], 1 - inside.exp().sum(-1))

    def pull(self, gradient: LogitGradient) -> Tensor:
        """-dm/dt for m, the mass outside, and dz/dt = -g: sum_outside p g - m sum_V p g. `(n,)`."""
        at = take(self.log_probs, gradient.ids)
        flow = at.exp() * gradient.values
        return (flow * (at < self.least)).sum(-1) - self.mass * flow.sum(-1)


def run_objective(
    objective: Objective, logits: Tensor, teacher_logits: Tensor, tokens: Tokens
) -> tuple[Tensor, LogitGradient, Tensor, Tensor]:
    """Reported divergence `(n,)`, gradient in the logits, and both masses `(n,)` of an objective."""
    teacher = FromLogits.of(teacher_logits, min(objective.top_k, logits.size(-1)))
    # A hidden size of 0 keeps the gradient on the support wherever it is zero off it.
    _, gradient, (loss, _, student_mass, teacher_mass, *_) = block_loss(
        logits, teacher, tokens, objective, want_gradient=True, hidden_size=0
    )
    return loss, gradient, student_mass, teacher_mass
