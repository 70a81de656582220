"""Rows of a training set that stand in an evaluation set too, by word n-grams."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .files import Row
from .splits import prompt_key, prompt_text, spelt_out


#: Words that must agree in a row. Source: 13, as in GPT-3's report (arXiv 2005.14165, appendix C).
NGRAM = 13
#: A text of fewer words says too little: it counts only where the whole prompts are equal.
MIN_WORDS = 8
_WORD = re.compile(r"\w+")


class Match(NamedTuple):
    """Where a text was found: the evaluation row's name, and the words that agree."""

    name: str
    words: str


def words_of(text: str) -> list[str]:
    r"""The words of a text: letters and digits, without case, signs or LaTeX marks.

    >>> words_of(r"Find $\frac{1}{2}$ of X.")
    ['find', 'frac', '1', '2', 'of', 'x']
    """
    return _WORD.findall(unicodedata.normalize("NFKC", spelt_out(text)).casefold())


class Contamination:
    """Finds prompts that agree with an evaluation prompt.

    Two prompts agree where
    - they are equal (`prompt_key`), however short; or
    - `ngram` words in a row are the same; or
    - the shorter one has fewer words than that, but at least `min_words`, and the other one holds all of it.

    Args:
        evaluation: the prompts (text or messages) with a name each, such as `math500 row 12`.
        ngram: words in a row.
        min_words: shortest text that is looked for inside another one.

    Example:
        >>> test = [("What is the sum of the first ten odd numbers, please?", "test row 1")]
        >>> found = Contamination(test, ngram=6, min_words=4)
        >>> found.match("Alice asks: what is the sum of the first hundred odd numbers?").words
        'what is the sum of the'
        >>> found.match("What is the sum of two odd numbers?") is None
        True
    """

    def __init__(
        self, evaluation: Iterable[tuple[str | list, str]], *, ngram: int = NGRAM, min_words: int = MIN_WORDS
    ):
        if not 0 < min_words <= ngram:
            raise ValueError(f"ngram must be at least min_words = {min_words} and above 0, got {ngram}.")
        self.ngram, self.min_words = ngram, min_words
        self._equal: dict[str, str] = {}
        # By length of the gram: those of long evaluation texts, and the short texts as a whole.
        self._grams: dict[int, dict[tuple[str, ...], str]] = {n: {} for n in range(min_words, ngram + 1)}
        self._short: dict[int, dict[tuple[str, ...], str]] = {}
        for prompt, name in evaluation:
            self._add(prompt, name)

    def _add(self, prompt: str | list, name: str) -> None:
        self._equal.setdefault(prompt_key(prompt), name)
        words = words_of(prompt_text(prompt))
        for n, grams in self._grams.items():
            for gram in ngrams(words, n):
                grams.setdefault(gram, name)
        if self.min_words <= len(words) < self.ngram:
            self._short.setdefault(len(words), {}).setdefault(tuple(words), name)

    def match(self, prompt: str | list) -> Match | None:
        """The first agreement of a prompt with the evaluation set, or None. Linear in the length of the prompt."""
        name = self._equal.get(prompt_key(prompt))
        if name is not None:
            return Match(name, prompt_text(prompt)[:200])
        words = words_of(prompt_text(prompt))
        if self.min_words <= len(words) < self.ngram and (name := self._grams[len(words)].get(tuple(words))):
            return Match(name, " ".join(words))
        for n, known in ((self.ngram, self._grams[self.ngram]), *self._short.items()):
            for gram in ngrams(words, n):
                if gram in known:
                    return Match(known[gram], " ".join(gram))
        return None


def ngrams(words: list[str], n: int) -> Iterator[tuple[str, ...]]:
    """Every `n` words in a row, from the first on."""
    return (tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def evaluation_prompts(rows: Iterable[Row], source: str) -> Iterable[tuple[str | list, str]]:
    """Pairs of a row's prompt and its name, such as `math500 row 12`: what `Contamination` takes."""
    return ((row["prompt"], f"{source} row {number}") for number, row in enumerate(rows, start=1))
