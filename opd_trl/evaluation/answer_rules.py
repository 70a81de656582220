"""Does an answer follow a rule? Judged strictly: collapsed text must not pass."""

import re
from collections.abc import Callable, Iterable
from itertools import pairwise


Rule = Callable[[str], bool]


def one_sentence(start: str, *, min_words: int = 2, max_repetition: float = 1 / 3) -> Rule:
    """A rule: one finished sentence that starts with `start`, and says something.

    After `start` there are at least `min_words` words and one full stop or exclamation mark, at the very end (a
    closing quotation mark may follow); `start` does not come again, in any case of letters; and at most
    `max_repetition` of the word pairs have occurred before. A looser check is satisfied by a student that has
    collapsed to "Arr, aye, aye, aye".

    Example:
        >>> rule = one_sentence("Arr,")
        >>> rule("Arr, the capital be Oslo."), rule("Arr, aye, aye, aye, aye."), rule("The capital is Oslo.")
        (True, False, False)
        >>> rule("Arr, the capital be Oslo. It lies by the sea."), rule("Arr, the capital be")
        (False, False)
    """

    def follows(answer: str) -> bool:
        answer = answer.strip()
        if not (answer.startswith(start) and re.fullmatch(r"[^.!?]+[.!][\"']?", answer[len(start) :])):
            return False
        words = words_of(answer[len(start) :])
        return len(words) >= min_words and _word(start) not in words and repetition(words) <= max_repetition

    return follows


def words_of(text: str) -> list[str]:
    """Its words between blanks, in lower case, without signs.

    >>> words_of("Arr, it BE so.")
    ['arr', 'it', 'be', 'so']
    """
    return [_word(word) for word in text.split()]


def repetition(words: list[str]) -> float:
    """Share of the word pairs that have occurred before; 0 for fewer than two words.

    >>> repetition(["a", "b", "a", "b", "a"])
    0.5
    """
    pairs = list(pairwise(words))
    return (len(pairs) - len(set(pairs))) / len(pairs) if pairs else 0.0


def compliance(answers: Iterable[str], rule: Rule) -> float:
    """Share of the answers that follow the rule.

    Example:
        >>> compliance(["Arr, it be so.", "It is so."], one_sentence("Arr,"))
        0.5
    """
    verdicts = [rule(answer) for answer in answers]
    if not verdicts:
        raise ValueError("no answers to judge: compliance of an empty list has no value.")
    return sum(verdicts) / len(verdicts)


def _word(text: str) -> str:
    return re.sub(r"\W", "", text).lower()
