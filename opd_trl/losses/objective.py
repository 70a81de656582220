"""What a block of logits contributes: its loss, the gradient in its logits, figures per token."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .distribution import TeacherBlock, normalize
from .gradients import LogitGradient
from .sampled import sampled_token_loss
from .support import Divergence, Tail, combine_supports, is_member, support_divergence
from .topk import top_ids


LossSupport = Literal["student", "teacher", "intersection", "union", "full", "sampled"]


@dataclass(frozen=True)
class Objective:
    """The options of `support_divergence` and the support on which it is taken."""

    top_k: int
    support: LossSupport
    divergence: Divergence
    beta: float
    tail: Tail
    stop_gradient: bool
    pointwise_clip: float | None

    def choose_ids(
        self, student_ids: Tensor, teacher_ids: Tensor, completion_ids: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Ids `(n, K)` of the support (None: all) and their mask (None: all belong to it)."""
        if self.support == "full":
            return None, None
        if self.support == "sampled":
            return completion_ids.unsqueeze(-1), None
        return combine_supports(student_ids, teacher_ids, support=self.support)

    def per_token(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The loss of each token and the divergence that is reported, from log-probabilities on the support."""
        if self.support == "sampled":
            return sampled_token_loss(student, teacher).squeeze(-1), (student - teacher).squeeze(-1)
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
        token_weights: Tensor,
        completion_ids: Tensor | None,
        *,
        want_gradient: bool,
        hidden_size: int,
    ) -> tuple[Tensor, LogitGradient | None, tuple[Tensor, ...]]:
        """Loss of a block, its gradient in `logits`, and the figures of `STATS`.

        With g_k = dL/dlog p_k: dL/dz_j = g_j 1_S(j) - p_j sum_k g_k.

        Args:
            logits: `(n, V)`, at the loss temperature.
            teacher: its distributions for the same tokens.
            token_weights: `(n,)`.
            completion_ids: `(n,)`, for the sampled support.
            want_gradient: without it the second result is None.
            hidden_size: H of the student.
        """
        student_ids, teacher_ids = top_ids(logits, self.top_k), teacher.top_ids
        ids, mask = self.choose_ids(student_ids, teacher_ids, completion_ids)
        teacher_log_probs = teacher.at(ids)
        probs, log_normalizer = normalize(logits, student_ids)
        student = (logits if ids is None else logits.gather(-1, ids)) - log_normalizer
        entropy = log_normalizer.squeeze(-1) - torch.linalg.vecdot(probs, logits)
        overlap = is_member(student_ids, teacher_ids).to(logits.dtype).mean(-1)
        masses = [(x.exp() if mask is None else x.exp() * mask).sum(-1) for x in (student, teacher_log_probs)]

        with torch.set_grad_enabled(want_gradient):
            student.requires_grad_(want_gradient)
            values, reported = self.per_token(student, teacher_log_probs, mask)
            loss = (values * token_weights).sum()
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
        return loss.detach(), gradient, (reported.detach(), entropy, *masses, overlap)
