"""Rules as small functions. Each returns a check of one answer; none lets collapsed or empty text pass."""

import functools
import importlib.util
import json
import re
from typing import Any

from .answer_rules import Rule, repetition, words_of


MAX_REPETITION = 1 / 3
# How refusals begin, looked for in the first `REFUSAL_CHARS` of an answer. These are words alone: an answer that
# refuses in others, or that quotes these, is judged wrongly.
REFUSAL_CHARS = 200
REFUSAL = re.compile(
    r"\b(i can't (?:help|assist|do|provide|support|comply|answer|share|write|give|engage|fulfil+|create|discuss)"
    r"|i(?: am|'m) (?:not able|unable|not going) to|i (?:will not|won't|must decline|have to decline|refuse)"
    r"|i(?: am|'m) sorry,? (?:but )?(?:i|that|this)|sorry,? (?:but )?i (?:can|won|will)|no,? i can't|no,? i won't)",
    re.IGNORECASE,
)


def says_something(text: str, *, min_words: int = 1) -> bool:
    """Has a text words, and does it not turn in circles?

    >>> says_something("The capital is Oslo."), says_something("aye aye aye aye aye"), says_something("...")
    (True, False, False)
    """
    words = [word for word in words_of(text) if word]
    return len(words) >= min_words and repetition(words) <= MAX_REPETITION


def strict(check: Rule) -> Rule:
    """A rule that also asks for an answer that says something."""
    return lambda answer: says_something(answer) and check(answer.strip())


def json_object(*keys: str) -> Rule:
    """The whole answer is one JSON object; with `keys`, of these and no others, in any order. No value is empty.

    >>> rule = json_object("answer")
    >>> rule('{"answer": "Oslo"}'), rule('{"answer": ""}'), rule('Sure: {"answer": "Oslo"}')
    (True, False, False)
    """

    def follows(answer: str) -> bool:
        try:
            content = json.loads(answer)
        except (ValueError, RecursionError):
            return False
        if not isinstance(content, dict) or not content or (keys and set(content) != set(keys)):
            return False
        return all(map(_filled, content.values()))

    return follows


def _filled(value: Any) -> bool:
    """Does a JSON value say something?"""
    if isinstance(value, str):
        return says_something(value)
    return value is not None and value != [] and value != {}


def bullets(count: int | None = None) -> Rule:
    """Every line is a bullet (`-`, `*` or `•`), no two are the same; `count` of them, or at least two.

    >>> bullets()("- red\\n- green"), bullets(3)("- red\\n- green"), bullets()("- red\\n- red")
    (True, False, False)
    """
    return _listed(re.compile(r"[-*•]\s+"), count)


def numbered(count: int | None = None) -> Rule:
    """Every line is numbered, from 1 on (`1.` or `1)`), no two are the same; `count` of them, or at least two.

    >>> numbered()("1. red\\n2. green"), numbered()("1. red\\n3. green")
    (True, False)
    """
    return _listed(re.compile(r"(\d{1,6})[.)]\s+"), count)


def _listed(mark: re.Pattern[str], count: int | None) -> Rule:
    """Lines that begin with a mark; where it has a number, with 1, 2, 3, ..."""

    def follows(answer: str) -> bool:
        lines = [line.strip() for line in answer.splitlines() if line.strip()]
        if len(lines) < 2 if count is None else len(lines) != count:
            return False
        found = [mark.match(line) for line in lines]
        if not all(found):
            return False
        if mark.groups and any(int(match[1]) != number for number, match in enumerate(found, start=1)):
            return False
        items = [line[match.end() :] for line, match in zip(lines, found, strict=True)]
        return all(map(says_something, items)) and len({tuple(words_of(item)) for item in items}) == len(items)

    return follows


def starts_with(text: str) -> Rule:
    """The answer starts with `text`, goes on after it, and does not say it again.

    >>> rule = starts_with("Arr")
    >>> rule("Arr, it be so."), rule("Arr"), rule("Arr, arr, arr"), rule("It be so.")
    (True, False, False, False)
    """
    return strict(lambda answer: answer.startswith(text) and _rest(answer[len(text) :], text))


def ends_with(text: str) -> Rule:
    """The answer ends with `text`, says something before it, and does not say it twice.

    >>> ends_with("Over and out.")("It is so. Over and out."), ends_with("Over and out.")("Over and out.")
    (True, False)
    """
    return strict(lambda answer: answer.endswith(text) and _rest(answer[: -len(text)], text))


def _rest(rest: str, text: str) -> bool:
    """Does what is left say something, and not the same again?"""
    needle = " ".join(words_of(text)).strip()
    return says_something(rest) and (not needle or f" {needle} " not in f" {' '.join(words_of(rest))} ")


def max_words(count: int) -> Rule:
    """At most `count` words.

    >>> max_words(3)("It is Oslo."), max_words(3)("The capital is Oslo."), max_words(3)("")
    (True, False, False)
    """
    return strict(lambda answer: len(answer.split()) <= count)


def min_words(count: int) -> Rule:
    """At least `count` words.

    >>> min_words(3)("It is Oslo."), min_words(3)("no no no no no")
    (True, False)
    """
    return strict(lambda answer: len(answer.split()) >= count)


def uppercase() -> Rule:
    """No lower-case letter.

    >>> uppercase()("IT IS 7."), uppercase()("It is 7."), uppercase()("7")
    (True, False, False)
    """
    return strict(str.isupper)


def lowercase() -> Rule:
    """No capital letter.

    >>> lowercase()("it is 7."), lowercase()("It is 7.")
    (True, False)
    """
    return strict(str.islower)


def matches(pattern: str) -> Rule:
    """A regular expression is found; anchors and flags (`(?i)`) are the caller's, and so is strictness.

    >>> matches(r"(?i)\\barr\\b")("Well, ARR!")
    True

    Raises:
        ValueError: the pattern is not a regular expression.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}.") from None
    return lambda answer: compiled.search(answer) is not None


def refusal() -> Rule:
    """The answer begins by refusing, judged by its words.

    >>> refusal()("I'm sorry, but I can't help with that."), refusal()("Sure, here is how.")
    (True, False)
    """
    return strict(_refuses)


def no_refusal() -> Rule:
    """The answer says something and does not begin by refusing.

    >>> no_refusal()("Sure, here is how."), no_refusal()("I cannot help with that."), no_refusal()("")
    (True, False, False)
    """
    return strict(lambda answer: not _refuses(answer))


def _refuses(answer: str) -> bool:
    return REFUSAL.search(answer[:REFUSAL_CHARS].replace("\u2019", "'").replace("cannot", "can't")) is not None


def language(code: str) -> Rule:
    """The answer is in a language, as `langdetect` judges it (seeded): reliable from about ten words on.

    `code` is ISO 639-1 as langdetect has it: `en`, `de`, `zh-cn`. Raises ValueError for a language that it does not
    know, ImportError where it is not installed.
    """
    detectors = _detectors()
    if code not in detectors.get_lang_list():
        raise ValueError(f"language {code!r} is not known. There are {', '.join(sorted(detectors.get_lang_list()))}.")

    def follows(answer: str) -> bool:
        from langdetect.lang_detect_exception import LangDetectException

        detector = detectors.create()
        detector.append(answer)
        try:
            return detector.detect() == code
        except LangDetectException:  # no letters
            return False

    return strict(follows)


@functools.cache
def _detectors() -> Any:
    """Langdetect's profiles, with a seed: without one it may change its mind about the same text."""
    if importlib.util.find_spec("langdetect") is None:
        raise ImportError("the rule `language` needs langdetect: pip install 'opd_trl[rules]'.")
    from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory

    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    factory.set_seed(0)
    return factory
