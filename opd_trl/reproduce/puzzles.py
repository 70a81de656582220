"""What the tiny models of a study work on: sums modulo six, and digits to sort, both in worked steps."""

import itertools
from collections.abc import Iterable, Sequence
from typing import ClassVar, Protocol


Problem = tuple[int, ...] | tuple[str, ...]


class Problems(Protocol):
    """A kind of problems, none of which occurs twice; `answers` are all answers that any of them has."""

    answers: Sequence[str]

    def all(self) -> Iterable[Problem]:
        """Every problem that there is."""

    def question(self, problem: Problem) -> str:
        """It, as a user asks it."""

    def answer(self, problem: Problem) -> str:
        """The right answer to a problem, as a box holds it."""

    def steps(self, problem: Problem, *, backwards: bool) -> list[str]:
        """The steps to its answer, from the one end or from the other."""


class Sums:
    """Four digits to add up modulo six: 1,296 problems."""

    modulus: ClassVar[int] = 6
    digits: ClassVar[int] = 4
    answers: Sequence[str] = tuple(map(str, range(modulus)))

    def all(self) -> Iterable[Problem]:
        return itertools.product(range(self.modulus), repeat=self.digits)

    def question(self, problem: Problem) -> str:
        """The digits with plus signs.

        >>> Sums().question((4, 3, 0, 2))
        '4+3+0+2'
        """
        return "+".join(map(str, problem))

    def answer(self, problem: Problem) -> str:
        """Their sum modulo six.

        >>> Sums().answer((4, 3, 0, 2))
        '3'
        """
        return str(sum(map(int, problem)) % self.modulus)

    def steps(self, problem: Problem, *, backwards: bool) -> list[str]:
        """Two summands and their sum in base six, whose last digit goes on.

        >>> Sums().steps((4, 3, 0, 2), backwards=False)
        ['4+3=11', '1+0=01', '1+2=03']
        """
        digits = [int(x) for x in (problem[::-1] if backwards else problem)]
        totals = [total % self.modulus for total in itertools.accumulate(digits)]
        pairs = zip(totals, digits[1:], strict=False)
        return [f"{a}+{b}={(a + b) // self.modulus}{(a + b) % self.modulus}" for a, b in pairs]


class Sorting:
    """Six of eight digits to put in order: 20,160 problems, with answers of about 40 tokens."""

    digits: ClassVar[str] = "12345678"
    count: ClassVar[int] = 6
    answers: Sequence[str] = tuple(map("".join, itertools.combinations(digits, count)))

    def all(self) -> Iterable[Problem]:
        return itertools.permutations(self.digits, self.count)

    def question(self, problem: Problem) -> str:
        """The digits in the order in which they stand.

        >>> Sorting().question(("4", "1", "3"))
        '413'
        """
        return "".join(map(str, problem))

    def answer(self, problem: Problem) -> str:
        """The digits sorted.

        >>> Sorting().answer(("4", "1", "3"))
        '134'
        """
        return "".join(sorted(map(str, problem)))

    def steps(self, problem: Problem, *, backwards: bool) -> list[str]:
        """The smallest digit that is left (the largest one, backwards), and what then is left.

        >>> Sorting().steps(("4", "1", "3"), backwards=False), Sorting().steps(("4", "1", "3"), backwards=True)
        (['1|43', '3|4'], ['4|13', '3|1'])
        """
        left, steps = [str(digit) for digit in problem], []
        while len(left) > 1:
            taken = max(left) if backwards else min(left)
            left.remove(taken)
            steps.append(f"{taken}|{''.join(left)}")
        return steps


#: Name in the settings of a study -> its problems.
TASKS: dict[str, Problems] = {"sums": Sums(), "sorting": Sorting()}
