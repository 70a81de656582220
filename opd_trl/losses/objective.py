"""What a block of logits contributes: its loss, the gradient in its logits, figures per token."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from .divergences import LOG_ZERO, check_beta, extrapolated_logps, importance_weight, sampled_token_loss
from .head import LogitGradient, top_ids
from .support import Divergence, Tail, check_choice, combine_supports, is_member, support_divergence


class Tokens(NamedTuple):
    """N sampled tokens: `(N,)` tensors, None where the objective does not ask for them."""

    weights: Tensor
    ids: Tensor | None = None
    sampling_logps: Tensor | None = None
    reference_logps: Tensor | None = None

    def rows(self, rows: slice) -> "Tokens":
        """Some of the tokens."""
        return Tokens(*(None if x is None else x[rows] for x in self))


class TeacherBlock(Protocol):
    """The teacher's next-token distributions for `n` tokens."""

    top_ids: Tensor  #: (n, K) int64, its most probable ids, largest first

    def at(self, ids: Tensor | None) -> Tensor:
        """Log-probabilities `(n, k)` of `ids` `(n, k)`; `(n, V)` of the whole vocabulary where `ids` is None."""


class FromLogits(NamedTuple):
    """A distribution given by all its logits `(n, V)`."""

    logits: Tensor
    top_ids: Tensor

    @classmethod
    def of(cls, logits: Tensor, top_k: int) -> "FromLogits":
        return cls(logits, top_ids(logits, top_k))

    def at(self, ids: Tensor | None) -> Tensor:
        _, log_normalizer = normalize(self.logits, self.top_ids)
        return take(self.logits, ids) - log_normalizer


class FromTopK(NamedTuple):
    """A distribution known on some ids alone: `ids` and `log_probs` `(n, k)`, the first K of them its TopK."""

    top_ids: Tensor
    ids: Tensor
    log_probs: Tensor

    def at(self, ids: Tensor) -> Tensor:
        """As `TeacherBlock.at`; an id that is not known gets the log-probability of zero."""
        known, order = self.ids.sort(-1)
        found_at = torch.searchsorted(known, ids.contiguous()).clamp(max=known.size(-1) - 1)
        log_probs = self.log_probs.gather(-1, order).gather(-1, found_at)
        return log_probs.masked_fill(known.gather(-1, found_at) != ids, LOG_ZERO)


def normalize(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities `(n, V)` and log sum exp `(n, 1)` of logits whose TopK `ids` are known.

    The normaliser comes from the largest entry, whose probability is at least 1 / V: no further pass over the
    vocabulary. Student and teacher go through the same arithmetic, so that equal models give exactly equal numbers.
    """
    probs, first = logits.softmax(-1), ids[:, :1]
    return probs, logits.gather(-1, first) - probs.gather(-1, first).log()


def take(values: Tensor, ids: Tensor | None) -> Tensor:
    """The entries `(n, K)` of `(n, V)` at `ids`; all of them where `ids` is None."""
    return values if ids is None else values.gather(-1, ids)


LossSupport = Literal["student", "teacher", "intersection", "union", "full", "sampled"]
#: What is subtracted from the advantage of a sampled token: minus the reverse KL, over the vocabulary or on a TopK.
Baseline = Literal["full", "top_k"]


@dataclass(frozen=True)
class Objective:
    """The options of `support_divergence` and the support on which it is taken; those of the sampled token."""

    top_k: int
    support: LossSupport
    divergence: Divergence
    beta: float
    tail: Tail
    stop_gradient: bool
    pointwise_clip: float | None
    baseline: Baseline | None = None
    extrapolation: float = 1.0
    importance_cap: float | None = None

    def check(self, tokens: Tokens) -> None:
        """Raise ValueError where options do not fit the support, or the tokens lack what they ask for."""
        check_choice("support", self.support, get_args(LossSupport))
        check_beta(self.beta)
        check_choice("baseline", self.baseline, (None, *get_args(Baseline)))
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
        needs_ids = self.support == "sampled" or self.weighs(tokens)
        if needs_ids and tokens.ids is None:
            raise ValueError(
                "support='sampled' needs completion_ids, the (N,) sampled tokens, and importance weights do too."
            )

    def weighs(self, tokens: Tokens) -> bool:
        """Are tokens weighted by importance? Without `sampling_logps` they come from the student itself: ratio 1."""
        return self.importance_cap is not None and tokens.sampling_logps is not None

    def choose_ids(
        self, student_ids: Tensor, teacher_ids: Tensor, completion_ids: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Ids `(n, K)` of the support (None: all) and their mask (None: all belong to it)."""
        if self.support == "full":
            return None, None
        if self.support == "sampled":
            return completion_ids.unsqueeze(-1), None
        return combine_supports(student_ids, teacher_ids, support=self.support)

    def teacher_log_probs(
        self, teacher: TeacherBlock, ids: Tensor | None, completion_ids: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Those of the support `(n, K)` and of the sampled tokens `(n,)`, in one look-up of the teacher."""
        if completion_ids is None:
            return teacher.at(ids), None
        sampled = completion_ids.unsqueeze(-1)
        if ids is None:
            log_probs = teacher.at(None)
            return log_probs, log_probs.gather(-1, sampled).squeeze(-1)
        if self.support == "sampled":
            log_probs = teacher.at(ids)
            return log_probs, log_probs.squeeze(-1)
        log_probs = teacher.at(torch.cat([ids, sampled], dim=-1))
        return log_probs[:, :-1], log_probs[:, -1]

    def per_token(
        self, student: Tensor, teacher: Tensor, mask: Tensor | None, baseline: Tensor | None, reference: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The loss of each token and the divergence that is reported, from log-probabilities on the support."""
        if self.support == "sampled":
            student, teacher = student.squeeze(-1), teacher.squeeze(-1)
            target = teacher
            if self.extrapolation != 1.0:
                target = extrapolated_logps(teacher, reference, factor=self.extrapolation)
            return sampled_token_loss(student, target, baseline=baseline), student - teacher
        value = support_divergence(
            student,
            teacher,
            divergence=self.divergence,
            beta=self.beta,
            tail="drop" if self.support == "full" else self.tail,
            stop_gradient=self.stop_gradient,
            support_mask=mask,
            pointwise_clip=self.pointwise_clip,
        )
        return value, value

    def expected_advantage(
        self, probs: Tensor, logits: Tensor, log_normalizer: Tensor, student_ids: Tensor, teacher: TeacherBlock
    ) -> Tensor | None:
        """Minus the reverse KL `(n,)`, the mean of log q_y - log p_y over y ~ p; or that on the renormalised TopK."""
        if self.baseline is None:
            return None
        if self.baseline == "top_k":
            student = take(logits, student_ids)
            return -support_divergence(student, teacher.at(student_ids), tail="renormalize")
        return torch.linalg.vecdot(probs, teacher.at(None) - (logits - log_normalizer))

    def gradient_stays_on_support(self, *, num_ids: int, vocab_size: int, hidden_size: int) -> bool:
        """Is the gradient in the logits zero off the support, and the support small enough to use it?

        A renormalised loss does not feel the common normaliser. The sparse products hold `n K H` numbers where the
        dense one holds `n V`.
        """
        renormalized = self.tail == "renormalize" and self.support not in ("full", "sampled")
        return renormalized and num_ids * hidden_size <= vocab_size

    def __call__(
        self,
        logits: Tensor,
        teacher: TeacherBlock,
        tokens: Tokens,
        *,
        want_gradient: bool,
        hidden_size: int,
    ) -> tuple[Tensor, LogitGradient | None, tuple[Tensor, ...]]:
        """Loss of a block, its gradient in `logits`, and the figures of `STATS` and `SAMPLED_STATS`.

        With g_k = dL/dlog p_k: dL/dz_j = g_j 1_S(j) - p_j sum_k g_k.

        Args:
            logits: `(n, V)`, at the loss temperature.
            teacher: its distributions for the same tokens.
            tokens: the n sampled tokens.
            want_gradient: without it the second result is None.
            hidden_size: H of the student.
        """
        student_ids, teacher_ids = top_ids(logits, self.top_k), teacher.top_ids
        ids, mask = self.choose_ids(student_ids, teacher_ids, tokens.ids)
        teacher_log_probs, teacher_of_sampled = self.teacher_log_probs(teacher, ids, tokens.ids)
        probs, log_normalizer = normalize(logits, student_ids)
        student = take(logits, ids) - log_normalizer
        entropy = log_normalizer.squeeze(-1) - torch.linalg.vecdot(probs, logits)
        overlap = is_member(student_ids, teacher_ids).to(logits.dtype).mean(-1)
        weights, of_sampled = tokens.weights, ()
        if tokens.ids is not None:
            sampled = (take(logits, tokens.ids.unsqueeze(-1)) - log_normalizer).squeeze(-1)
            of_sampled = sampled_figures(sampled, teacher_of_sampled, tokens.ids, teacher_ids)
        if self.weighs(tokens):
            weights = weights * importance_weight(sampled, tokens.sampling_logps, cap=self.importance_cap)
        baseline = self.expected_advantage(probs, logits, log_normalizer, student_ids, teacher)
        masses = [(x.exp() if mask is None else x.exp() * mask).sum(-1) for x in (student, teacher_log_probs)]

        with torch.set_grad_enabled(want_gradient):
            student.requires_grad_(want_gradient)
            values, reported = self.per_token(student, teacher_log_probs, mask, baseline, tokens.reference_logps)
            loss = (values * weights).sum()
        gradient = None
        if want_gradient:
            (by_log_prob,) = torch.autograd.grad(loss, student)
            sizes = {"num_ids": student.size(-1), "vocab_size": logits.size(-1), "hidden_size": hidden_size}
            if self.gradient_stays_on_support(**sizes):
                gradient = LogitGradient(by_log_prob, ids)
            else:
                dense = probs.mul_(-by_log_prob.sum(-1, keepdim=True))
                dense = dense.add_(by_log_prob) if ids is None else dense.scatter_add_(-1, ids, by_log_prob)
                gradient = LogitGradient(dense)
        return loss.detach(), gradient, (reported.detach(), entropy, *masses, overlap, *of_sampled)


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
