"""What a model does: right answers to problems and how its text looks; and where its picks stand against theory.

A pick is one letter out of three, where the policy that a student must end at can be computed.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..diagnostics.metrics import repeated_trigrams, repetition
from ..evaluation.boxes import single_boxed_answer
from ..evaluation.graded import graded_text
from ..models.sampling import Completion, Sampling
from ..models.transformers_engine import TransformersEngine
from ..preflight.teacher_answers import own_generation
from ..privileged import get_builder
from .task import MARK, NUM_PICKS, PICK_LETTERS, Row, as_prompt, pick_prompt


BATCH = 192


def answer(
    model, tokenizer, rows: Sequence[Row], *, seeds: list[int], temperature: float, max_new_tokens: int = 64
) -> list[Completion]:
    """Answers to the prompts of rows; a row's privileged context is read as a system turn."""
    prompts = [prompt_ids(tokenizer, row) for row in rows]
    sampling = Sampling(temperature, top_p=1.0, top_k=0, max_new_tokens=max_new_tokens)
    found: list[Completion] = []
    was_training = model.training
    with own_generation(model):
        engine = TransformersEngine(model, tokenizer)
        for start in range(0, len(prompts), BATCH):
            found += engine.generate(prompts[start : start + BATCH], sampling, [*seeds, start])
    model.train(was_training)
    return found


def prompt_ids(tokenizer, row: Row) -> list[int]:
    """Token ids of what a model reads."""
    prompt, context = row["prompt"], row.get("privileged_context")
    if context is not None:
        prompt = get_builder("system_prompt")(prompt, context)
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)


def right_answer(completions: list, answer: list[str], **kwargs: Any) -> list[float]:
    r"""1.0 where the one boxed answer of a completion is the row's: a reward function, and the measure of the study.

    >>> right_answer([r"e4+3=11\boxed{1}", "1"], ["1", "1"])
    [1.0, 0.0]
    """
    texts = map(graded_text, completions)
    return [float(single_boxed_answer(text).answer == right) for text, right in zip(texts, answer, strict=True)]


def measure(model, tokenizer, rows: Sequence[Row], *, samples: int, max_new_tokens: int, seed: int) -> dict[str, Any]:
    """Figures of a model on problems, at temperature 1 unless said.

    Returns:
        `accuracy`; `greedy`: the same, decoded greedily; `length`: tokens; `cut_off`: share of answers that did not
        end; `repetition`: of 3-grams, of arXiv 2605.11182; `worked`: share with a step; `marked`: share that opens
        with the mark; `right`, `marks`: how many samples of each problem are right and are marked, a digit each.
    """
    options = {"max_new_tokens": max_new_tokens}
    many = [row for _ in range(samples) for row in rows]
    sampled = answer(model, tokenizer, many, seeds=[seed], temperature=1.0, **options)
    greedy = answer(model, tokenizer, rows, seeds=[seed], temperature=0.0, **options)
    texts = [completion.text for completion in sampled]
    right = right_answer(texts, [row["answer"] for row in many])
    marked = [float(text.startswith(MARK)) for text in texts]
    return {
        "accuracy": mean(right),
        "right": by_problem(right, len(rows)),
        "marks": by_problem(marked, len(rows)),
        "greedy": mean(right_answer([x.text for x in greedy], [row["answer"] for row in rows])),
        "length": mean([completion.num_tokens for completion in sampled]),
        "cut_off": mean([not completion.finished for completion in sampled]),
        "repetition": mean(trigram_repetition(tokenizer, texts)),
        "worked": mean(["=" in text for text in texts]),
        "marked": mean(marked),
    }


def by_problem(found: Sequence[float], problems: int) -> str:
    """How many samples of each problem have it, a digit each; the samples of a problem stand `problems` apart.

    >>> by_problem([1.0, 0.0, 1.0, 1.0], 2)
    '21'
    """
    return "".join(str(round(sum(found[place::problems]))) for place in range(problems))


def trigram_repetition(tokenizer, texts: Sequence[str]) -> list[float]:
    """Of each text that has a 3-gram."""
    ids = [torch.tensor(tokenizer.encode(text, add_special_tokens=False), dtype=torch.long) for text in texts]
    padded = pad_sequence(ids, batch_first=True)
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    found = repetition(repeated_trigrams(padded, mask), mask)
    return found[~found.isnan()].tolist()


def mean(values: Sequence[float]) -> float:
    """The mean of numbers, 0 where there are none."""
    return float(sum(values) / len(values)) if len(values) else 0.0


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
