"""Picks: one letter out of three, where the policy that a student must end at can be computed."""

import math
from typing import Any

import torch
from torch import Tensor

from .measures import prompt_ids
from .task import NUM_PICKS, PICK_LETTERS, as_prompt, pick_prompt


def measure_picks(model, teacher, tokenizer, *, contexts: list[str | None], top_k: int) -> dict[str, Any]:
    """Where a student stands against what theory says, over all prompts, from whole distributions of the first token.

    Args:
        model: the student, which reads no context.
        teacher: the same or another model, under each of `contexts`.
        tokenizer: of both.
        contexts: None: the bare prompt.
        top_k: the support S is the teacher's TopK of the first context.

    Returns:
        `letters`: the student's probabilities of x, y, z; `to_geometric`, `to_arithmetic`: total variation distance
        to both means of the teachers; `between`: of these means; `mass`: the student's on S; `teacher_mass`: q(S);
        `stationary_mass`: q(S) / e, at which the plain TopK reverse KL rests.
    """
    student = first_token(model, tokenizer, None)
    teachers = torch.stack([first_token(teacher, tokenizer, context) for context in contexts])
    geometric = teachers.log().mean(0).softmax(-1)
    arithmetic = teachers.mean(0)
    support = teachers[0].topk(top_k).indices
    teacher_mass = teachers[0].gather(-1, support).sum(-1).mean().item()
    letters = tokenizer.convert_tokens_to_ids(list(PICK_LETTERS))
    return {
        "letters": student[:, letters].mean(0).tolist(),
        "to_geometric": variation(student, geometric),
        "to_arithmetic": variation(student, arithmetic),
        "between": variation(arithmetic, geometric),
        "mass": student.gather(-1, support).sum(-1).mean().item(),
        "teacher_mass": teacher_mass,
        "stationary_mass": teacher_mass / math.e,
    }


@torch.no_grad()
def first_token(model, tokenizer, context: str | None) -> Tensor:
    """`(NUM_PICKS, V)`: probabilities of the first token after every prompt, float64."""
    rows = [
        {"prompt": as_prompt(pick_prompt(number))} | ({} if context is None else {"privileged_context": context})
        for number in range(NUM_PICKS)
    ]
    was_training = model.training
    model.eval()
    found = [model(input_ids=torch.tensor([prompt_ids(tokenizer, row)])).logits[0, -1] for row in rows]
    model.train(was_training)
    return torch.stack(found).double().softmax(-1)


def variation(first: Tensor, second: Tensor) -> float:
    """Mean total variation distance of distributions `(N, V)`.

    >>> variation(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.25, 0.75]]))
    0.75
    """
    return (first - second).abs().sum(-1).mean().item() / 2
