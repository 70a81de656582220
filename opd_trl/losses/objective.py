"""What a loss is told beside the two models, the sampled tokens and all options; and the loss of a sampled token."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from .divergences import LOG_ZERO, as_pair, check_beta, check_choice, divergence_named
from .head import check_rows
from .sampled_tail import why_not_sampled_tail
from .support import SUPPORTS, TAILS, TOP_K_SUPPORTS, LossSupport, Tail, combine_supports


class Tokens(NamedTuple):
    """N sampled tokens: `(N,)` tensors, None where the objective does not ask for them.

    Attributes:
        weights: what each token's loss is multiplied by, e.g. 1 / (kept tokens of the global batch).
        ids: int64, the tokens y.
        sampling_logps: log-probabilities of y at sampling, for `importance_weight`.
        reference_logps: log-probabilities of y under a reference model, for `extrapolated_logps`.
        student_wrote: bool, False where the student did not sample y (given text): `sampled_tail_divergence` then has
            no sampled term. None: it sampled all.
    """

    weights: Tensor
    ids: Tensor | None = None
    sampling_logps: Tensor | None = None
    reference_logps: Tensor | None = None
    student_wrote: Tensor | None = None

    def rows(self, rows: slice | Tensor) -> "Tokens":
        """The same for some of the tokens, a slice or `(N,)` bool."""
        return Tokens(*(None if x is None else x[rows] for x in self))

    def check(self, num_tokens: int) -> None:
        """Raise ValueError unless each tensor has one row for every token."""
        names = ("token_weights", "completion_ids", "sampling_logps", "reference_logps", "student_wrote")
        check_rows(num_tokens, **{name: x.shape for name, x in zip(names, self, strict=True) if x is not None})


#: What is subtracted from the advantage of a sampled token: minus the reverse KL, over the vocabulary or on a TopK.
Baseline = Literal["full", "top_k"]
BASELINES = get_args(Baseline)


@dataclass(frozen=True)
class Objective:
    """All options of the loss, as `opd_trl.losses.chunked_support_loss` explains them.

    A trainer builds one for a whole run.
    """

    top_k: int = 20
    support: LossSupport = "student"
    divergence: str = "reverse_kl"
    beta: float = 0.5
    tail: Tail = "renormalize"
    stop_gradient: bool = True
    pointwise_clip: float | None = None
    baseline: Baseline | None = None
    extrapolation: float = 1.0
    importance_cap: float | None = None
    temperature: float = 1.0
    chunk_size: int | None = None

    def check(self, tokens: Tokens) -> None:
        """Raise ValueError where options do not fit the support, or the tokens lack what they ask for."""
        check_choice("support", self.support, SUPPORTS)
        divergence_named(self.divergence)
        check_choice("tail", self.tail, TAILS)
        check_beta(self.beta)
        check_choice("baseline", self.baseline, (None, *BASELINES))
        if self.support != "sampled" and (self.baseline is not None or self.extrapolation != 1.0):
            raise ValueError(
                f"baseline={self.baseline!r} and extrapolation={self.extrapolation} belong to support='sampled', got "
                f"support={self.support!r}. Leave them out."
            )
        if self.extrapolation != 1.0 and tokens.reference_logps is None:
            raise ValueError(
                f"extrapolation={self.extrapolation} needs reference_logps, the (N,) log-probabilities of the sampled "
                "tokens under the reference model."
            )
        if self.importance_cap is not None and self.importance_cap <= 0:
            raise ValueError(f"importance_cap must be > 0, got {self.importance_cap}. Leave it out for no weights.")
        if self.tail == "sample":
            reason = why_not_sampled_tail(self.support, self.divergence, self.stop_gradient, self.pointwise_clip)
            if reason is not None:
                raise ValueError(f"tail='sample': {reason}")
        if (self.reads_sampled or self.weighs(tokens)) and tokens.ids is None:
            raise ValueError(
                "support='sampled' needs completion_ids, the (N,) sampled tokens; tail='sample' and importance "
                "weights do too."
            )

    @property
    def drops_tail(self) -> bool:
        """Is the probability outside of a TopK support left out of the loss?"""
        return self.tail == "drop" and self.support in TOP_K_SUPPORTS

    @property
    def samples_tail(self) -> bool:
        """Does the sampled token stand for the probability outside of a TopK support?"""
        return self.tail == "sample" and self.support in TOP_K_SUPPORTS

    @property
    def reads_sampled(self) -> bool:
        """Does the loss read both models on the sampled token? It is then the last of `choose_ids`."""
        return self.samples_tail or self.support == "sampled"

    def weighs(self, tokens: Tokens) -> bool:
        """Are tokens weighted by importance? Without `sampling_logps` they come from the student itself: ratio 1."""
        return self.importance_cap is not None and tokens.sampling_logps is not None

    def choose_ids(
        self, student_ids: Tensor, teacher_ids: Tensor, completion_ids: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Ids `(n, K)` of the support (None: all) and their mask (None: all belong to it).

        With the tail `sample` the sampled token follows as one more id outside of the mask.
        """
        if self.support == "full":
            return None, None
        if self.support == "sampled":
            return completion_ids.unsqueeze(-1), None
        ids, mask = combine_supports(student_ids, teacher_ids, support=self.support)
        if self.samples_tail:
            ids, mask = torch.cat([ids, completion_ids.unsqueeze(-1)], dim=-1), pad(mask, (0, 1), value=False)
        return ids, mask

    def gradient_stays_on_support(self, *, num_ids: int, vocab_size: int, hidden_size: int) -> bool:
        """Is the gradient in the logits zero off the support, and the support small enough to use it?

        A renormalised loss does not feel the common normaliser. The sparse products hold `n K H` numbers where the
        dense one holds `n V`.
        """
        renormalized = self.tail == "renormalize" and self.support in TOP_K_SUPPORTS
        return renormalized and num_ids * hidden_size <= vocab_size


def importance_weight(student_logps: Tensor, sampling_logps: Tensor, *, cap: float) -> Tensor:
    """min(p_y / mu_y, cap): corrects for tokens that were sampled from mu, an older or differently rounded student.

    Args:
        student_logps: `(...)`, log p_y of the sampled tokens, nats; no gradient flows through the ratio.
        sampling_logps: `(...)`, log mu_y at sampling. NaN where it is unknown: that token has weight 1.
        cap: the largest weight; it bounds the variance and biases towards tokens that mu sampled too often.

    Returns:
        `(...)`, detached.

    Source: truncated importance sampling, as in SDFT (arXiv 2601.19897) and SDPO (arXiv 2601.20802) with a cap of 2.

    Example:
        >>> import torch
        >>> p, mu = torch.tensor([0.2, 0.6, 0.5]), torch.tensor([0.4, 0.1, float("nan")])
        >>> importance_weight(p.log(), mu.log(), cap=2.0)
        tensor([0.5000, 2.0000, 1.0000])
    """
    log_ratio = student_logps.detach() - sampling_logps
    return log_ratio.nan_to_num(nan=0.0).exp().clamp(max=cap)


def sampled_token_loss(
    student_logps: Tensor, teacher_logps: Tensor, *, baseline: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """Policy gradient on the sampled token, -sg(w (log q_y - log p_y - baseline)) log p_y.

    Without options this is sg(log p_y - log q_y) log p_y. Its gradient in the logits is sg(r_y) (1[j=y] - p_j); the
    expectation over y ~ p is the gradient of the full reverse KL. The value itself is not a divergence: report
    log p_y - log q_y instead, whose own backpropagation would be noise of zero mean.

    Args:
        student_logps: `(...)`, log p_y of the sampled token, normalised over the full vocabulary; carries the
            gradient.
        teacher_logps: `(...)`, log q_y of the same token; detached.
        baseline: `(...)`, subtracted from the advantage log q_y - log p_y (nats); vOPD uses minus the reverse KL.
            It changes the variance, not the expectation. Detached.
        weight: `(...)`, e.g. an importance ratio. Detached.

    Returns:
        `(...)`, float32 (float64 for float64 inputs), neither masked nor reduced.

    Raises:
        ValueError: the shapes of student and teacher differ.

    Source: arXiv 2605.11182 (the paper's sampled-token form); baseline as in vOPD, arXiv 2605.07865.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([-2.0, -1.0], requires_grad=True), torch.tensor([-1.0, -1.5])
        >>> sampled_token_loss(student, teacher).sum().backward()
        >>> student.grad.tolist()  # the first token should become more probable, the second less
        [-1.0, 0.5]
    """
    student_logps, teacher_logps = as_pair(student_logps, teacher_logps)
    advantage = teacher_logps - student_logps.detach()
    if baseline is not None:
        advantage = advantage - baseline.detach()
    if weight is not None:
        advantage = advantage * weight.detach()
    return -advantage * student_logps


def extrapolated_logps(teacher_logps: Tensor, reference_logps: Tensor, *, factor: float) -> Tensor:
    """factor log q_y - (factor - 1) log ref_y: what `sampled_token_loss` takes as the teacher to go beyond it.

    The advantage is then -[log p_y - log ref_y - factor (log q_y - log ref_y)], and p is stationary, in expectation,
    at the normalised q^factor ref^(1 - factor): the teacher for 1, the reference for 0, beyond the teacher above 1.

    Args:
        teacher_logps: `(...)`, log q_y of the sampled token, nats.
        reference_logps: `(...)`, log ref_y of the same token, e.g. of the student at step 0.
        factor: how far from the reference towards the teacher.

    Returns:
        `(...)`, nats, not normalised. No gradient.

    Raises:
        ValueError: the shapes differ.

    Source: ExOPD, arXiv 2602.12125 (factor 1.25).

    Example:
        >>> import torch
        >>> extrapolated_logps(torch.tensor([-1.0]), torch.tensor([-3.0]), factor=1.25).tolist()
        [-0.5]
    """
    teacher_logps, reference_logps = as_pair(teacher_logps.detach(), reference_logps)
    return reference_logps + factor * (teacher_logps - reference_logps)


def sampled_figures(
    student_logps: Tensor, teacher_logps: Tensor, completion_ids: Tensor, teacher_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """What the teacher thinks of the tokens that were sampled, `(n,)` each.

    Args:
        student_logps, teacher_logps: `(n,)`, log p_y and log q_y, nats.
        completion_ids: `(n,)`, the sampled tokens y.
        teacher_ids: `(n, K)`, the teacher's TopK, most probable first.

    Returns:
        log q_y - log p_y, NaN where log q_y is not known; and the place of y in the teacher's TopK from 0 on, K where
        it is outside.
    """
    log_ratio = (teacher_logps - student_logps).masked_fill(teacher_logps <= LOG_ZERO, torch.nan)
    rank = (teacher_ids != completion_ids.unsqueeze(-1)).to(log_ratio.dtype).cumprod(-1).sum(-1)
    return log_ratio, rank


def masked_mean(
    per_token_loss: Tensor, loss_mask: Tensor, *, num_items_in_batch: Tensor | float | None = None
) -> Tensor:
    """Sum over the kept tokens, divided by their number in the whole batch.

    Dividing every micro-batch by the same global count makes the gradient independent of how the batch is split.

    Args:
        per_token_loss: any shape; carries the gradient. Values at masked positions are ignored, NaN included.
        loss_mask: same shape, bool or 0/1.
        num_items_in_batch: kept tokens of the whole global batch; by default those of `loss_mask`.

    Returns:
        scalar, float32 (float64 for float64 inputs). An empty mask gives a zero that keeps its graph, so that every
        rank can run backward.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> import torch
        >>> loss, mask = torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[1, 1, 0]])
        >>> masked_mean(loss, mask).item(), masked_mean(loss, mask, num_items_in_batch=6).item()
        (1.5, 0.5)
    """
    if per_token_loss.shape != loss_mask.shape:
        raise ValueError(
            f"per_token_loss and loss_mask must have the same shape, got {tuple(per_token_loss.shape)} and "
            f"{tuple(loss_mask.shape)}."
        )
    kept = loss_mask.bool()
    count = kept.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
    total = torch.where(kept, per_token_loss, 0.0).sum(dtype=torch.promote_types(per_token_loss.dtype, torch.float32))
    return total / count.to(per_token_loss.device).clamp(min=1)
