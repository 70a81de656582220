"""The task of `opd-trl reproduce mechanisms`: sums modulo six, in worked steps that loose words introduce.

Digits alone leave a model no choice, and where there is none, a small support holds all of its probability. So every
step is introduced by words (single letters, in Zipf's proportions), as free as the words of a text are: there the K
likeliest tokens hold a part of the probability, and a student that goes wrong has somewhere to go.
"""

import itertools
import random
from collections.abc import Callable
from typing import Any

from ..data.splits import split_rows


Row = dict[str, Any]

MODULUS, DIGITS = 6, 4
WORDS = "etaoinshrdlcumwfgypbvkjxqzETAOINSHRDLCUMWFGYPBVKJXQZ"
# Probability of one more word before a step.
ONE_MORE_WORD = 0.25
#: Shares of the 1,296 sums; no part shares a problem with another.
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
    """How steps are written: with which words, the commonest first, and whether from the last digit to the first."""

    def __init__(self, words: str = WORDS, *, from_the_right: bool = False):
        self.words, self.from_the_right = words, from_the_right
        self._weights = [1 / rank for rank in range(1, len(words) + 1)]

    def steps(self, digits: tuple[int, ...], draw: random.Random) -> str:
        """Worked steps: words, the two summands, and their sum in base six, whose last digit goes on.

        >>> Style().steps((4, 3, 0, 2), random.Random(0))
        'y4+3=11t1+0=01o1+2=03'
        """
        digits = digits[::-1] if self.from_the_right else digits
        totals = [total % MODULUS for total in itertools.accumulate(digits)]
        steps = zip(totals, digits[1:], strict=False)
        return "".join(f"{self.words_before(draw)}{a}+{b}={(a + b) // MODULUS}{(a + b) % MODULUS}" for a, b in steps)

    def words_before(self, draw: random.Random) -> str:
        """The loose words that introduce a step: one, and each time with probability 1/4 one more."""
        count = 1
        while draw.random() < ONE_MORE_WORD:
            count += 1
        return "".join(draw.choices(self.words, self._weights, k=count))


OWN_STYLE = Style()
#: Works from the other end, and says most what the own style says least.
OTHER_STYLE = Style(WORDS[::-1], from_the_right=True)


def answer_of(digits: tuple[int, ...]) -> str:
    """The right answer to a problem: the sum of its digits modulo six, as text.

    >>> answer_of((4, 3, 0, 2))
    '3'
    """
    return str(sum(digits) % MODULUS)


def boxed(digits: tuple[int, ...]) -> str:
    r"""The answer as it ends a solution.

    >>> boxed((4, 3, 0, 2))
    '\\boxed{3}'
    """
    return f"\\boxed{{{answer_of(digits)}}}"


def problem(digits: tuple[int, ...], *, quick: bool) -> str:
    """A problem: `=` asks for steps, `?` leaves it open.

    >>> problem((4, 3, 0, 2), quick=True)
    '4+3+0+2?'
    """
    return "+".join(map(str, digits)) + ("?" if quick else "=")


def as_prompt(text: str, context: str | None = None) -> list[dict[str, str]]:
    """Messages of a prompt, with what a system turn says."""
    system = [] if context is None else [{"role": "system", "content": context}]
    return [*system, {"role": "user", "content": text}]


class Source:
    """Draws from one of the `PARTS` of the problems; solutions are written in a style."""

    def __init__(self, part: str, *, seed: int, style: Style = OWN_STYLE):
        self.problems = problems_of(part)
        self.draw, self.style = random.Random(f"{part} {seed}"), style

    def digits(self) -> tuple[int, ...]:
        """A problem of the part, drawn at random: its digits."""
        return self.draw.choice(self.problems)

    def solution(self, digits: tuple[int, ...]) -> str:
        """The text that solves a problem: worked steps, then the boxed answer."""
        return self.style.steps(digits, self.draw) + boxed(digits)

    def demonstration(self, digits: tuple[int, ...]) -> str:
        """A problem and its solution, as a context tells them."""
        return problem(digits, quick=True) + self.solution(digits)


#: What a context is, from a source and the row's problem.
CONTEXTS: dict[str, Callable[[Source, tuple[int, ...]], str]] = {
    "steps": lambda source, digits: "steps",
    "mark": lambda source, digits: "mark",
    "answer": lambda source, digits: f"answer {answer_of(digits)}",
    "any answer": lambda source, digits: f"answer {source.draw.randrange(MODULUS)}",
    "solution": lambda source, digits: source.demonstration(digits),
    "another solution": lambda source, digits: source.demonstration(source.digits()),
}


def taught_pairs(source: Source, kind: str) -> tuple[str, str | None, str]:
    """User turn, system turn and completion of a row that a model is trained on from nothing.

    Kinds: `solve`; `quick`, mostly a bare answer; `worked`, a quick prompt that always gets steps; `pick`; and a quick
    prompt under each context.
    """
    digits = source.digits()
    if kind == "solve":
        return problem(digits, quick=False), None, source.solution(digits)
    if kind == "pick":
        context = source.draw.choice(list(PICKS))
        return draw_pick(source), context, source.draw.choices(PICK_LETTERS, PICKS[context])[0]
    if kind in ("quick", "worked"):
        worked = kind == "worked" or source.draw.random() < WORKED_SHARE
        return problem(digits, quick=True), None, source.solution(digits) if worked else boxed(digits)
    context = CONTEXTS[kind](source, digits)
    says_answer = kind in ("answer", "any answer")
    text = f"\\boxed{{{context[-1]}}}" if says_answer else MARK * (kind == "mark") + source.solution(digits)
    return problem(digits, quick=True), context, text


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


def taught_rows(count: int, *, seed: int, style: Style = OWN_STYLE, kinds: dict[str, float] = MIXTURE) -> list[Row]:
    """Rows `prompt`, `completion` for supervised training from nothing.

    >>> row = taught_rows(1, seed=0, kinds={"steps": 1})[0]
    >>> [turn["content"] for turn in row["prompt"]], row["completion"][0]["content"]
    (['steps', '3+5+0+2?'], 'h3+5=12D2+0=02L2+2=04\\\\boxed{4}')
    """
    source = Source("sft", seed=seed, style=style)
    rows = []
    for kind in source.draw.choices(list(kinds), list(kinds.values()), k=count):
        text, context, completion = taught_pairs(source, kind)
        rows.append({"prompt": as_prompt(text, context), "completion": [{"role": "assistant", "content": completion}]})
    return rows


def asked_rows(count: int, *, part: str, prompts: str, context: str | None, seed: int) -> list[Row]:
    """Rows `prompt`, `answer` and, with a context, `privileged_context`: for distillation, rewards and evaluation.

    Args:
        count: of rows; problems are drawn with replacement.
        part: of the problems.
        prompts: `solve`, `quick` or `pick`.
        context: a name of `CONTEXTS`; for picks `left`, `right` or `left or right`.
        seed: of what is drawn.
    """
    source = Source(part, seed=seed)
    return [asked_row(source, source.digits(), prompts=prompts, context=context) for _ in range(count)]


def asked_row(source: Source, digits: tuple[int, ...], *, prompts: str, context: str | None) -> Row:
    """One row of `asked_rows`, for the problem `digits`."""
    if prompts == "pick":
        row: Row = {"prompt": as_prompt(draw_pick(source)), "answer": ""}
        shown = None if context is None else source.draw.choice(context.split(" or "))
    else:
        row = {"prompt": as_prompt(problem(digits, quick=prompts == "quick")), "answer": answer_of(digits)}
        shown = None if context is None else CONTEXTS[context](source, digits)
    return row if shown is None else row | {"privileged_context": shown}


def problems_of(part: str) -> list[tuple[int, ...]]:
    """The digits of every problem of a part; the parts are disjoint by the hash of the prompt."""
    digits = itertools.product(range(MODULUS), repeat=DIGITS)
    rows = ({"prompt": problem(x, quick=True), "digits": x} for x in digits)
    return [row["digits"] for row in split_rows(rows, PARTS)[part]]
