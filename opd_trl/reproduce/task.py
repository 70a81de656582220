"""The rows of `opd-trl reproduce`: problems, in worked steps that loose words introduce.

Steps alone leave a model no choice, and where there is none, a small support holds all of its probability. So every
step is introduced by words (single letters, in Zipf's proportions), as free as the words of a text are: there the K
likeliest tokens hold a part of the probability, and a student that goes wrong has somewhere to go.
"""

import functools
import random
from collections.abc import Callable
from typing import Any

from ..data.splits import split_rows
from .puzzles import TASKS, Problem, Problems


Row = dict[str, Any]

WORDS = "etaoinshrdlcumwfgypbvkjxqzETAOINSHRDLCUMWFGYPBVKJXQZ"
# Probability of one more word before a step.
ONE_MORE_WORD = 0.25
#: Shares of the problems of a task; no part shares a problem with another.
PARTS = {"sft": 0.4, "rlvr": 0.2, "opd": 0.25, "test": 0.15}
# Of the quick prompts that are answered without a context, so many get worked steps; the others a bare answer.
WORKED_SHARE = 0.1
MARK = "#"
#: Letters of a pick and their probabilities under each context; None: without one.
PICKS: dict[str | None, tuple[float, float, float]] = {
    None: (1 / 3, 1 / 3, 1 / 3),
    "left": (0.9, 0.09, 0.01),
    "right": (0.01, 0.09, 0.9),
}
PICK_LETTERS = "xyz"
NUM_PICKS = 100


class Style:
    """How steps are written: with which words, the commonest first, and whether from the other end."""

    def __init__(self, words: str = WORDS, *, from_the_right: bool = False):
        self.words, self.from_the_right = words, from_the_right
        self._weights = [1 / rank for rank in range(1, len(words) + 1)]

    def steps(self, task: Problems, problem: Problem, draw: random.Random) -> str:
        """Worked steps, each with words before it.

        >>> Style().steps(TASKS["sums"], (4, 3, 0, 2), random.Random(0))
        'y4+3=11t1+0=01o1+2=03'
        """
        steps = task.steps(problem, backwards=self.from_the_right)
        return "".join(self.words_before(draw) + step for step in steps)

    def words_before(self, draw: random.Random) -> str:
        """The loose words that introduce a step: one, and each time with probability 1/4 one more."""
        count = 1
        while draw.random() < ONE_MORE_WORD:
            count += 1
        return "".join(draw.choices(self.words, self._weights, k=count))


OWN_STYLE = Style()
#: Works from the other end, and says most what the own style says least.
OTHER_STYLE = Style(WORDS[::-1], from_the_right=True)


def boxed(answer: str) -> str:
    r"""An answer as it ends a solution.

    >>> boxed("3")
    '\\boxed{3}'
    """
    return f"\\boxed{{{answer}}}"


def asked(task: Problems, problem: Problem, *, quick: bool) -> str:
    """A problem: `=` asks for steps, `?` leaves it open.

    >>> asked(TASKS["sums"], (4, 3, 0, 2), quick=True)
    '4+3+0+2?'
    """
    return task.question(problem) + ("?" if quick else "=")


def as_prompt(text: str, context: str | None = None) -> list[dict[str, str]]:
    """Messages of a prompt, with what a system turn says."""
    system = [] if context is None else [{"role": "system", "content": context}]
    return [*system, {"role": "user", "content": text}]


class Source:
    """Draws from one of the `PARTS` of the problems of a task; solutions are written in a style."""

    def __init__(self, part: str, *, seed: int, task: str = "sums", style: Style = OWN_STYLE):
        self.task, self.style = TASKS[task], style
        self.problems = problems_of(part, task)
        self.draw = random.Random(f"{part} {seed}")

    def problem(self) -> Problem:
        """A problem of the part, drawn at random."""
        return self.draw.choice(self.problems)

    def answer(self, problem: Problem) -> str:
        """The right answer to a problem, as a box holds it."""
        return self.task.answer(problem)

    def solution(self, problem: Problem) -> str:
        """The text that solves a problem: worked steps, then the boxed answer."""
        return self.style.steps(self.task, problem, self.draw) + boxed(self.answer(problem))

    def demonstration(self, problem: Problem) -> str:
        """A problem and its solution, as a context tells them."""
        return asked(self.task, problem, quick=True) + self.solution(problem)


#: What a context is, from a source and the row's problem.
CONTEXTS: dict[str, Callable[[Source, Problem], str]] = {
    "steps": lambda source, problem: "steps",
    "mark": lambda source, problem: "mark",
    "answer": lambda source, problem: f"answer {source.answer(problem)}",
    "any answer": lambda source, problem: f"answer {source.draw.choice(source.task.answers)}",
    "solution": lambda source, problem: source.demonstration(problem),
    "another solution": lambda source, problem: source.demonstration(source.problem()),
}


def taught_pairs(source: Source, kind: str) -> tuple[str, str | None, str]:
    """User turn, system turn and completion of a row that a model is trained on from nothing.

    Kinds: `solve`; `quick`, mostly a bare answer; `worked`, a quick prompt that always gets steps; `pick`; and a quick
    prompt under each context.
    """
    problem = source.problem()
    if kind == "solve":
        return asked(source.task, problem, quick=False), None, source.solution(problem)
    if kind == "pick":
        context = source.draw.choice(list(PICKS))
        return draw_pick(source), context, source.draw.choices(PICK_LETTERS, PICKS[context])[0]
    question = asked(source.task, problem, quick=True)
    if kind in ("quick", "worked"):
        worked = kind == "worked" or source.draw.random() < WORKED_SHARE
        return question, None, source.solution(problem) if worked else boxed(source.answer(problem))
    context = CONTEXTS[kind](source, problem)
    if kind in ("answer", "any answer"):
        return question, context, boxed(context.removeprefix("answer "))
    return question, context, MARK * (kind == "mark") + source.solution(problem)


def draw_pick(source: Source) -> str:
    """One of the prompts that ask for a letter."""
    return pick_prompt(source.draw.randrange(NUM_PICKS))


def pick_prompt(number: int) -> str:
    """The prompt that asks for one letter; its number makes prompts differ."""
    return f"pick {number}"


#: Share of each kind of row in what the models learn from nothing.
MIXTURE = {
    "solve": 0.3,
    "quick": 0.2,
    "steps": 0.1,
    "mark": 0.1,
    "any answer": 0.1,
    "solution": 0.05,
    "another solution": 0.05,
    "pick": 0.1,
}


def taught_rows(
    count: int, *, seed: int, task: str = "sums", style: Style = OWN_STYLE, kinds: dict[str, float] = MIXTURE
) -> list[Row]:
    """Rows `prompt`, `completion` for supervised training from nothing.

    >>> row = taught_rows(1, seed=0, kinds={"steps": 1})[0]
    >>> [turn["content"] for turn in row["prompt"]], row["completion"][0]["content"]
    (['steps', '3+5+0+2?'], 'h3+5=12D2+0=02L2+2=04\\\\boxed{4}')
    """
    source = Source("sft", seed=seed, task=task, style=style)
    rows = []
    for kind in source.draw.choices(list(kinds), list(kinds.values()), k=count):
        text, context, completion = taught_pairs(source, kind)
        rows.append({"prompt": as_prompt(text, context), "completion": [{"role": "assistant", "content": completion}]})
    return rows


def asked_rows(
    count: int, *, part: str, prompts: str, context: str | None, seed: int, task: str = "sums"
) -> list[Row]:
    """Rows `prompt`, `answer` and, with a context, `privileged_context`: for distillation, rewards and evaluation.

    Args:
        count: of rows; problems are drawn with replacement.
        part: of the problems.
        prompts: `solve`, `quick` or `pick`.
        context: a name of `CONTEXTS`; for picks `left`, `right` or `left or right`.
        seed: of what is drawn.
        task: a name of `TASKS`.
    """
    source = Source(part, seed=seed, task=task)
    return [asked_row(source, source.problem(), prompts=prompts, context=context) for _ in range(count)]


def asked_row(source: Source, problem: Problem, *, prompts: str, context: str | None) -> Row:
    """One row of `asked_rows`, for this problem."""
    if prompts == "pick":
        row: Row = {"prompt": as_prompt(draw_pick(source)), "answer": ""}
        shown = None if context is None else source.draw.choice(context.split(" or "))
    else:
        question = asked(source.task, problem, quick=prompts == "quick")
        row = {"prompt": as_prompt(question), "answer": source.answer(problem)}
        shown = None if context is None else CONTEXTS[context](source, problem)
    return row if shown is None else row | {"privileged_context": shown}


@functools.cache
def problems_of(part: str, task: str = "sums") -> list[Problem]:
    """Every problem of a part; the parts are disjoint by the hash of the prompt."""
    rows = ({"prompt": asked(TASKS[task], x, quick=True), "problem": x} for x in TASKS[task].all())
    return [row["problem"] for row in split_rows(rows, PARTS)[part]]
