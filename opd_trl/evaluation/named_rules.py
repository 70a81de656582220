"""Rules by name, as on a command line: `one_sentence:Arr,`, `json:answer`, `max_words:20`."""

from collections.abc import Callable
from typing import NamedTuple

from ..spelling import did_you_mean
from . import checkers
from .answer_rules import Rule, one_sentence


class RuleName(NamedTuple):
    """A rule that has a name.

    Args:
        build: from the text behind the colon, None where there is none, to the rule.
        usage: how it is written.
        about: what it asks for.
    """

    build: Callable[[str | None], Rule]
    usage: str
    about: str


def _text(build: Callable[[str], Rule]) -> Callable[[str | None], Rule]:
    def from_text(argument: str | None) -> Rule:
        if not argument or not argument.strip():
            raise ValueError("a text is needed behind the colon")
        return build(argument)

    return from_text


def _number(text: str | None) -> int:
    if text is None or not text.strip().isdecimal() or int(text) < 1:
        raise ValueError(f"a whole number above 0 is needed behind the colon, got {text!r}")
    return int(text)


def _plain(build: Callable[[], Rule]) -> Callable[[str | None], Rule]:
    def from_nothing(argument: str | None) -> Rule:
        if argument is not None:
            raise ValueError(f"it takes nothing behind a colon, got {argument!r}")
        return build()

    return from_nothing


def _keys(argument: str | None) -> Rule:
    keys = [] if argument is None else [key.strip() for key in argument.split(",")]
    if not all(keys):
        raise ValueError(f"the keys are separated by commas, got {argument!r}")
    return checkers.json_object(*keys)


def _optional_number(build: Callable[[int | None], Rule]) -> Callable[[str | None], Rule]:
    return lambda argument: build(None if argument is None else _number(argument))


RULES = {
    "one_sentence": RuleName(_text(one_sentence), "one_sentence:START", "one sentence that starts with START"),
    "json": RuleName(_keys, "json or json:KEY,KEY", "one JSON object and nothing else; of exactly these keys"),
    "bullets": RuleName(_optional_number(checkers.bullets), "bullets or bullets:N", "a list of bullets, nothing else"),
    "numbered": RuleName(_optional_number(checkers.numbered), "numbered or numbered:N", "a list numbered from 1"),
    "starts_with": RuleName(_text(checkers.starts_with), "starts_with:TEXT", "starts with TEXT and goes on"),
    "ends_with": RuleName(_text(checkers.ends_with), "ends_with:TEXT", "says something and ends with TEXT"),
    "max_words": RuleName(lambda text: checkers.max_words(_number(text)), "max_words:N", "at most N words"),
    "min_words": RuleName(lambda text: checkers.min_words(_number(text)), "min_words:N", "at least N words"),
    "uppercase": RuleName(_plain(checkers.uppercase), "uppercase", "no lower-case letter"),
    "lowercase": RuleName(_plain(checkers.lowercase), "lowercase", "no capital letter"),
    "language": RuleName(_text(checkers.language), "language:CODE", "in a language: en, de, fr, zh-cn, ..."),
    "refusal": RuleName(_plain(checkers.refusal), "refusal", "begins by refusing, judged by its words"),
    "no_refusal": RuleName(_plain(checkers.no_refusal), "no_refusal", "says something, does not begin by refusing"),
    "regex": RuleName(_text(checkers.matches), "regex:PATTERN", "PATTERN is found; as strict as you write it"),
}


def parse_rule(text: str) -> Rule:
    """Return the rule that a text names.

    Args:
        text: a name of `RULES`, with its argument behind the first colon.

    Raises:
        ValueError: no such name, or an argument that does not fit; the message says how it is written.

    Example:
        >>> parse_rule("max_words:3")("It is Oslo.")
        True
        >>> parse_rule("max_word:3")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: 'max_word:3' names no rule: did you mean max_words? The rules are one_sentence:START, ...
    """
    name, colon, argument = text.partition(":")
    if name not in RULES:
        listed = ", ".join(rule.usage for rule in RULES.values())
        parts = (f"{text!r} names no rule:", did_you_mean(name, RULES), f"The rules are {listed}.")
        raise ValueError(" ".join(filter(None, parts)))
    try:
        return RULES[name].build(argument if colon else None)
    except ValueError as error:
        raise ValueError(f"rule {text!r}: {str(error).rstrip('.')}. Write it {RULES[name].usage}.") from None
