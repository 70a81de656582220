"""Ways to compute a loss and the gradients of hidden states and head: ours, TRL's, Liger's, and plain autograd."""

from collections.abc import Callable

import torch
from torch import Tensor

from opd_trl.losses import chunked_support_loss


Inputs = dict[str, Tensor]


def make_inputs(tokens: int, vocab: int, hidden: int, dtype: str, device: str) -> Inputs:
    """Hidden states and heads of student and teacher, from a fixed seed."""
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    inputs = {name: torch.randn(tokens, hidden, device=device).to(kind) for name in ("student", "teacher")}
    for name in ("student_head", "teacher_head"):
        inputs[name] = torch.randn(vocab, hidden, device=device).mul_(0.05).to(kind)
    inputs["weights"] = torch.full((tokens,), 1 / tokens, device=device)
    inputs["ids"] = torch.randint(vocab, (tokens,), device=device)
    inputs["student"].requires_grad_()
    inputs["student_head"].requires_grad_()
    return inputs


def student_head(inputs, frozen: bool) -> Tensor:
    return inputs["student_head"].detach() if frozen else inputs["student_head"]


def ours(inputs: Inputs, *, chunk_size: int | None, frozen: bool = False, **options) -> None:
    loss, _ = chunked_support_loss(
        inputs["student"],
        student_head(inputs, frozen),
        inputs["teacher"],
        inputs["teacher_head"],
        inputs["weights"],
        completion_ids=inputs["ids"],
        chunk_size=chunk_size,
        **options,
    )
    loss.backward()


def products_alone(inputs, *, chunk_size: int, frozen: bool = False) -> None:
    """Two projections and two gradient products, of which a frozen head needs one, chunk by chunk."""
    student, head = inputs["student"].detach(), inputs["student_head"].detach()
    grad_head = None if frozen else torch.zeros_like(head)
    for rows in torch.arange(student.size(0)).split(chunk_size):
        rows = slice(int(rows[0]), int(rows[-1]) + 1)
        logits = student[rows] @ head.mT
        _ = inputs["teacher"][rows] @ inputs["teacher_head"].mT
        _ = logits @ head
        if grad_head is not None:
            grad_head.addmm_(logits.mT, student[rows])


def trl_kernel(inputs, *, frozen: bool = False) -> None:
    """Reverse KL (beta = 1) over the vocabulary, as DistillationTrainer calls it."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    student, teacher = (inputs["student"], student_head(inputs, frozen)), (inputs["teacher"], inputs["teacher_head"])
    divergence, _ = ChunkedDivergenceFunction.apply(*student, None, *teacher, None, 1.0, 1.0, 1.0, None, 1.0, None)
    divergence.mean().backward()


def dense(inputs, *, top_k: int | None, frozen: bool = False) -> None:
    """Both [tokens, vocabulary] tensors and autograd, softmax in float32."""
    student = (inputs["student"] @ student_head(inputs, frozen).T).float().log_softmax(-1)
    with torch.no_grad():
        teacher = (inputs["teacher"] @ inputs["teacher_head"].T).float().log_softmax(-1)
    if top_k is not None:
        ids = student.detach().topk(top_k, dim=-1).indices
        student, teacher = (x.gather(-1, ids) for x in (student, teacher))
        student, teacher = (x - x.logsumexp(-1, keepdim=True) for x in (student, teacher))
    (student.exp() * (student - teacher)).sum(-1).mean().backward()


def liger(inputs: Inputs, *, compiled: bool) -> None:
    """Liger's fused Jensen-Shannon loss over the vocabulary."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(compiled=compiled, weight_hard_loss=0.0, weight_soft_loss=1.0, beta=1.0)
    labels = inputs["ids"]
    loss(inputs["student"], inputs["student_head"], inputs["teacher"], inputs["teacher_head"], labels).backward()


def step(inputs: Inputs, case: Callable[[Inputs], None]) -> None:
    """One call of a case, the gradients of the last one cleared."""
    for tensor in inputs.values():
        tensor.grad = None
    case(inputs)
