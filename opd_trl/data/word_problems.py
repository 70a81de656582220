r"""Word problems of two or three steps that a small pretrained model can learn, in two styles of working out.

`Sam has 4 balloons, loses 3, finds 9 more and doubles them. How many now?` One in two SFT completions works it out in
the first style; the others state the answer straight away, which a small model can hardly do in its head. So a reward
has something to bring out. Who was taught the second style alone solves as much and writes otherwise: a mismatched
teacher.
"""

import random
from collections.abc import Iterator
from typing import NamedTuple

from .files import Row
from .splits import split_rows
from .toy_task import Task


NAMES = (
    "Ada",
    "Anna",
    "Ben",
    "Eva",
    "Hugo",
    "Ivan",
    "Jack",
    "Leo",
    "Lily",
    "Max",
    "Mia",
    "Nina",
    "Omar",
    "Paul",
    "Rosa",
    "Ruth",
    "Sam",
    "Sara",
    "Tom",
    "Zoe",
)
THINGS = (
    "apples",
    "balloons",
    "beads",
    "books",
    "buttons",
    "cards",
    "coins",
    "cookies",
    "flowers",
    "marbles",
    "pencils",
    "shells",
    "stamps",
    "stones",
)
VERBS = {
    "+": ("buys {} more", "finds {} more", "gets {} from a friend"),
    "-": ("gives {} away", "loses {}", "sells {}"),
    "*": ("{} them",),
}
MULTIPLY = {2: "doubles", 3: "triples"}
#: Problems that are drawn, the same for every seed, and the shares of what each stage trains on and none of them sees.
POOL = 8000
WORD_PARTS = {"sft": 0.4, "rlvr": 0.25, "opd": 0.3, "test": 0.05}
#: Share of the SFT completions that work the problem out.
WORKED_SHARE = 0.5


class Step(NamedTuple):
    """One step of a problem: `before` `operation` `number`, e.g. 4 - 3."""

    before: int
    operation: str
    number: int

    @property
    def after(self) -> int:
        """The result of the step, e.g. 1 for 4 - 3."""
        results = {"+": self.before + self.number, "-": self.before - self.number, "*": self.before * self.number}
        return results[self.operation]


def draw_steps(draw: random.Random) -> list[Step]:
    """Two or three steps; no total is below 1 or above 20."""
    steps: list[Step] = []
    total = draw.randint(2, 9)
    for _ in range(draw.choice((2, 3))):
        possible = {"+": min(9, 20 - total), "-": min(9, total - 1), "*": min(3, 20 // total)}
        operation = draw.choice([sign for sign in "++--*" if possible[sign] >= 2])
        steps.append(Step(total, operation, draw.randint(2, possible[operation])))
        total = steps[-1].after
    return steps


def story(steps: list[Step], draw: random.Random) -> str:
    """The problem as a text for the model, with a name and things that are drawn.

    >>> story([Step(4, "-", 3), Step(1, "+", 9)], random.Random(1))
    'Ben has 4 buttons, gives 3 away and gets 9 from a friend. How many now?'
    """
    numbers = [MULTIPLY[step.number] if step.operation == "*" else step.number for step in steps]
    parts = [draw.choice(VERBS[step.operation]).format(n) for step, n in zip(steps, numbers, strict=True)]
    start = f"{draw.choice(NAMES)} has {steps[0].before} {draw.choice(THINGS)}"
    return f"{', '.join([start, *parts[:-1]])} and {parts[-1]}. How many now?"


def equations(steps: list[Step]) -> str:
    """The first style of working out.

    >>> equations([Step(4, "-", 3), Step(1, "+", 9)])
    '4-3=1, 1+9=10'
    """
    return ", ".join(f"{step.before}{step.operation}{step.number}={step.after}" for step in steps)


def sentences(steps: list[Step]) -> str:
    """The second style of working out.

    >>> sentences([Step(4, "-", 3), Step(1, "+", 9)])
    'We start with 4. Take away 3, that is 1. Add 9, that is 10.'
    """
    words = {"+": "Add", "-": "Take away", "*": "Multiply by"}
    told = [f"{words[step.operation]} {step.number}, that is {step.after}." for step in steps]
    return " ".join([f"We start with {steps[0].before}.", *told])


def problem_row(steps: list[Step], question: str, *, worked: bool) -> Row:
    r"""One problem, with all that any stage needs.

    Returns:
        `prompt`; `completion` in the first style, or the bare answer where not `worked`; `other`, a completion in the
        second style; `answer`, and `solution` (privileged context).

    Example:
        >>> row = problem_row([Step(4, "-", 3), Step(1, "+", 9)], "Sam has ...", worked=True)
        >>> row["completion"][0]["content"], row["answer"], row["solution"]
        ('4-3=1, 1+9=10: \\boxed{10}', '10', '4-3=1, 1+9=10: 10')
        >>> row["other"][0]["content"]
        'We start with 4. Take away 3, that is 1. Add 9, that is 10. \\boxed{10}'
    """
    answer = str(steps[-1].after)
    box = f"\\boxed{{{answer}}}"

    def said(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    return {
        "prompt": [{"role": "system", "content": "Solve."}, {"role": "user", "content": question}],
        "completion": said(f"{equations(steps)}: {box}" if worked else box),
        "other": said(f"{sentences(steps)} {box}"),
        "answer": answer,
        "solution": f"{equations(steps)}: {answer}",
    }


def problems() -> Iterator[tuple[list[Step], str]]:
    """`POOL` problems, no two of them with the same words."""
    draw, seen = random.Random(0), set()
    while len(seen) < POOL:
        steps = draw_steps(draw)
        question = story(steps, draw)
        if question not in seen:
            seen.add(question)
            yield steps, question


def word_problems(seed: int) -> dict[str, list[Row]]:
    """The problems in `WORD_PARTS`, which are disjoint by the hash of the prompt; `other` has the prompts of `sft`.

    The parts are the same for every seed; the seed sets their order and which completions are worked.
    """
    draw = random.Random(seed)
    rows = [problem_row(*problem, worked=draw.random() < WORKED_SHARE) for problem in problems()]
    draw.shuffle(rows)
    parts = split_rows(rows, WORD_PARTS)
    usual = ("prompt", "answer", "solution")
    return {
        "sft": [{"prompt": row["prompt"], "completion": row["completion"]} for row in parts["sft"]],
        "other": [{"prompt": row["prompt"], "completion": row["other"]} for row in parts["sft"]],
        **{part: [{name: row[name] for name in usual} for row in parts[part]] for part in ("rlvr", "opd", "test")},
    }


WORD_PROBLEMS = Task("word_problems", word_problems, tokenizer=None)
