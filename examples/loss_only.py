"""The losses without any trainer: a student distribution moves to its teacher on five tokens of a hundred.

    python examples/loss_only.py

Prints, for the plain TopK reverse KL and for its stop-gradient form, how much of the student's probability lies on
the support after 300 steps of gradient descent from a PERFECT student. The plain form drains it.
"""

import torch

from opd_trl.losses import reverse_kl, select_support, support_divergence


def train(*, stop_gradient: bool, steps: int = 300) -> tuple[float, float]:
    """Start at the teacher, descend, and return (mass on the support, full reverse KL)."""
    torch.manual_seed(0)
    teacher = (2 * torch.randn(100)).log_softmax(-1)
    logits = teacher.clone().requires_grad_()
    optimizer = torch.optim.SGD([logits], lr=1.0)
    for _ in range(steps):
        student = logits.log_softmax(-1)
        ids, _ = select_support(student, teacher, top_k=5, support="student")
        loss = support_divergence(
            student.gather(-1, ids), teacher.gather(-1, ids), tail="drop", stop_gradient=stop_gradient
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    student = logits.detach().log_softmax(-1)
    return student[ids].exp().sum().item(), reverse_kl(student, teacher).item()


def main() -> None:
    for name, stop_gradient in (("plain TopK", False), ("stop-gradient TopK", True)):
        mass, divergence = train(stop_gradient=stop_gradient)
        print(f"{name:20s} mass on the support {mass:.3f}   reverse KL to the teacher {divergence:.4f} nats")


if __name__ == "__main__":
    main()
