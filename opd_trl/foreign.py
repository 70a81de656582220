"""Numbers and JSON that others have written: what is out of bounds is a ValueError in one line. Standard library."""

import argparse
import json
import math
import re
from collections.abc import Callable, Iterable
from typing import Any


#: Lists and mappings within one another, in JSON and YAML: rows of real data sets have 10 at most.
MOST_NESTED = 100
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_OPENING = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def parse_json(text: str | bytes, *, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """The value of a JSON text. Python's reader, but nothing is deeper than `MOST_NESTED`, whatever Python bears.

    Args:
        text: UTF-8 where it is bytes.
        parse_constant: called with NaN, Infinity and -Infinity, which are numbers without it.

    Raises:
        ValueError: not JSON, not UTF-8, nested too deep, or a whole number of more digits than Python reads.

    Example:
        >>> parse_json('{"a": [1]}')
        {'a': [1]}
        >>> parse_json("[" * 100_000)
        Traceback (most recent call last):
        ValueError: lists and mappings are nested deeper than 100
    """
    if nested_too_deep(text.encode("utf-8", "replace") if isinstance(text, str) else text):
        raise ValueError(f"lists and mappings are nested deeper than {MOST_NESTED}")
    return json.loads(text, parse_constant=parse_constant)


def nested_too_deep(text: bytes) -> bool:
    """Are lists and mappings of a JSON text nested deeper than `MOST_NESTED`? Pairs are taken away from the inside.

    >>> nested_too_deep(b"[" * 100 + b"]" * 100), nested_too_deep(b"[" * 101 + b"]" * 101), nested_too_deep(b"[" * 999)
    (False, True, True)
    """
    if text.count(b"[") + text.count(b"{") <= MOST_NESTED:
        return False
    brackets = _STRING.sub(b"", text).translate(_OPENING, delete=_NO_BRACKETS)
    for _ in range(MOST_NESTED):
        if b"[]" not in brackets:
            break
        brackets = brackets.replace(b"[]", b"")
    return brackets.count(b"[") > MOST_NESTED or b"[]" in brackets


def first_too_deep(lines: Iterable[bytes]) -> int | None:
    """The number, from 1 on, of the first line that nests too deep by itself; None where none does."""
    return next((number for number, line in enumerate(lines, start=1) if nested_too_deep(line)), None)


def number(text: str) -> float:
    """A finite number, as the flags of commands take it; raises ArgumentTypeError for anything else.

    >>> number("0.3"), number("1e-5")
    (0.3, 1e-05)
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {text!r}")
    return value


def is_missing(value: Any) -> bool:
    """Does a value stand for none: None, or NaN, as tables of numbers write what is missing?

    >>> is_missing(None), is_missing(float("nan")), is_missing(""), is_missing(0.0), is_missing([])
    (True, True, False, False, False)
    """
    return value is None or (isinstance(value, float) and math.isnan(value))
