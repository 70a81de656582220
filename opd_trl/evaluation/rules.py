"""Does an answer follow a rule? Judged strictly: collapsed text must not pass."""

import re
from collections.abc import Callable, Iterable


Rule = Callable[[str], bool]


def starts_and_ends(start: str, end: str, *, min_words: int = 2, max_repetition: float = 0.34) -> Rule:
    """A rule: the answer starts with `start`, ends with `end`, and says something in between.

    In between there are at least `min_words` words, neither `start` nor `end` comes again (in any case of letters),
    and no single word makes up more than `max_repetition` of them. A looser check is satisfied by a student that has
    collapsed to "Arr, aye, aye, aye".

    Example:
        >>> rule = starts_and_ends("Arr,", "Aye!")
        >>> rule("Arr, the capital be Oslo. Aye!"), rule("Arr, aye, aye, aye. Aye!"), rule("The capital is Oslo.")
        (True, False, False)
    """
    markers = {_word(start), _word(end)}

    def follows(answer: str) -> bool:
        answer = answer.strip()
        if not (answer.startswith(start) and answer.endswith(end)) or len(answer) < len(start) + len(end):
            return False
        words = [_word(word) for word in answer[len(start) : -len(end)].split()]
        if len(words) < min_words or markers & set(words):
            return False
        # Below four words one of them is always more than a third.
        return len(words) < 4 or max(map(words.count, words)) <= max_repetition * len(words)

    return follows


def compliance(answers: Iterable[str], rule: Rule) -> float:
    """Share of the answers that follow the rule.

    Example:
        >>> compliance(["Arr, it be so. Aye!", "Yes."], starts_and_ends("Arr,", "Aye!"))
        0.5
    """
    verdicts = [rule(answer) for answer in answers]
    if not verdicts:
        raise ValueError("no answers to judge: compliance of an empty list has no value.")
    return sum(verdicts) / len(verdicts)


def _word(text: str) -> str:
    return re.sub(r"\W", "", text).lower()
