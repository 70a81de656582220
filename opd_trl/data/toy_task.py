"""The toy task: five digits added up modulo six, step by step, for models that are trained from nothing.

Steps make it easy (each is one of 36 facts), and without them it stays at one in six: a sum modulo six is among the
hardest things for a small transformer to read off at once. So there is something for a reward to bring out.
"""

import itertools
import random

from .files import Row
from .splits import split_rows


MODULUS, DIGITS = 6, 5
#: Shares of the 7,776 sums: what each stage trains on, and what none of them sees.
TOY_PARTS = {"sft": 0.34, "rlvr": 0.3, "opd": 0.3, "test": 0.06}
#: Share of the SFT completions that write the steps out; the others state the answer straight away. A student trained
#: on both mostly guesses, though it can do better.
WORKED_SHARE = 0.25


def steps(digits: tuple[int, ...]) -> str:
    """The written-out sum modulo six, from left to right: each step in base six, the carry first, then dropped.

    The carry is what makes the facts quick to learn: a digit modulo six says nothing about either of its summands
    alone, and training stands still for hundreds of steps.

    >>> steps((4, 3, 0, 2, 5))
    '4+3=11,1+0=01,1+2=03,3+5=12'
    """
    totals = [total % MODULUS for total in itertools.accumulate(digits)]
    return ",".join(
        f"{a}+{b}={(a + b) // MODULUS}{(a + b) % MODULUS}" for a, b in zip(totals, digits[1:], strict=False)
    )


def addition_row(digits: tuple[int, ...], *, worked: bool = True) -> Row:
    r"""One sum, with all that any stage needs.

    Returns:
        `prompt` and `completion` (messages; with the steps or without), `answer`, and `solution` (the steps and the
        answer: privileged context).

    Example:
        >>> row = addition_row((4, 3, 0, 2, 5))
        >>> row["prompt"][0]["content"], row["completion"][0]["content"]
        ('4+3+0+2+5 mod 6', '4+3=11,1+0=01,1+2=03,3+5=12:\\boxed{2}')
        >>> addition_row((4, 3, 0, 2, 5), worked=False)["completion"][0]["content"]
        '\\boxed{2}'
        >>> row["answer"], row["solution"]
        ('2', '4+3=11,1+0=01,1+2=03,3+5=12:2')
    """
    answer = str(sum(digits) % MODULUS)
    text = (f"{steps(digits)}:" if worked else "") + f"\\boxed{{{answer}}}"
    return {
        "prompt": [{"role": "user", "content": "+".join(map(str, digits)) + f" mod {MODULUS}"}],
        "completion": [{"role": "assistant", "content": text}],
        "answer": answer,
        "solution": f"{steps(digits)}:{answer}",
    }


def addition(seed: int) -> dict[str, list[Row]]:
    """All sums of five digits in `TOY_PARTS`, which are disjoint by the hash of the prompt.

    The parts are the same for every seed, so that no seed trains on another one's test set; the seed sets their order
    and which completions are worked. `completion` stands in `sft` alone: the others learn without it.
    """
    draw = random.Random(seed)
    sums = itertools.product(range(MODULUS), repeat=DIGITS)
    rows = [addition_row(digits, worked=draw.random() < WORKED_SHARE) for digits in sums]
    draw.shuffle(rows)
    keep = {"sft": ("prompt", "completion")}
    return {
        part: [{name: row[name] for name in keep.get(part, ("prompt", "answer", "solution"))} for row in rows_of_part]
        for part, rows_of_part in split_rows(rows, TOY_PARTS).items()
    }


TASKS = {"addition": addition}
