"""Numbers, times and settings as the page writes them."""

import json
import shlex
from typing import Any


NONE = "-"


def duration(seconds: float) -> str:
    """A span of time, in its two largest units.

    >>> duration(0.42), duration(8.4), duration(95), duration(7500), duration(200_000)
    ('0.42 s', '8.4 s', '1 min 35 s', '2 h 5 min', '2 d 7 h')
    """
    if seconds < 60:
        return f"{seconds:.2g} s"
    for unit, size, below, step in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            whole, rest = divmod(int(seconds), size)
            return f"{whole} {unit}" + (f" {rest // step} {below}" if rest // step else "")
    raise AssertionError(seconds)


def ago(seconds: float) -> str:
    """How long something is past, in its largest unit.

    >>> ago(4), ago(200), ago(90_000)
    ('4 s ago', '3 min ago', '1 d ago')
    """
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return f"{int(seconds)} s ago"


def number(value: Any) -> str:
    """A value of the log as tables show it, with four significant digits.

    >>> number(0.123456), number(0.0000021), number(1234567.0), number(3), number(None)
    ('0.1235', '2.1e-06', '1,234,567', '3', '-')
    """
    if value is None:
        return NONE
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if value == int(value) and abs(value) < 1e12:
        return f"{int(value):,}"
    return (
        f"{value:.4g}" if 1e-4 <= abs(value) < 1e5 else f"{value:,.0f}" if 1e5 <= abs(value) < 1e12 else f"{value:.3g}"
    )


def change(first: float, last: float, unit: str) -> str:
    """How a figure moved; a share in `%`.

    >>> change(0.8512, 0.1534, "nats per token"), change(0.018, 0.9, "%"), change(21.3, 1700.2, "tokens")
    ('0.851 -> 0.153 nats per token', '2 % -> 90 %', '21.3 -> 1,700 tokens')
    """
    if unit == "%":
        return f"{first:.0%} -> {last:.0%}".replace("%", " %")
    ends = (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" for value in (first, last))
    return f"{' -> '.join(ends)} {unit}".rstrip()


def setting(value: Any) -> str:
    """A value of the configuration as YAML would have it.

    >>> setting(True), setting(None), setting("mixed"), setting([1, "a"])
    ('true', 'null', 'mixed', '[1, "a"]')
    """
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def teachers(value: Any) -> str:
    """The teachers of a run, each with its name where there are several.

    >>> teachers({"": "the student (base)"}), teachers({"math": "m", "code": "c"}), teachers({})
    ('the student (base)', 'math: m, code: c', '-')
    """
    if not isinstance(value, dict) or not value:
        return NONE
    return ", ".join(f"{name}: {model}" if name else str(model) for name, model in value.items())


def command_line(argv: list[Any]) -> str:
    """Arguments as a shell takes them.

    >>> command_line(["opsd", "--privileged_context", "be kind"])
    "opsd --privileged_context 'be kind'"
    """
    return shlex.join(map(str, argv))
