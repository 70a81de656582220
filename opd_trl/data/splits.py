"""Parts of a data set by the hash of the prompt: disjoint whatever the order of the rows or the machine."""

import hashlib
import unicodedata
from collections.abc import Iterable
from typing import Any

from .files import DataError, Row


#: The name of what is in no part.
REST = "rest"
# Signs that stand higher or lower, by the tag of their decomposition.
_MARKS = {"<super>": "^", "<sub>": "_", "<fraction>": " "}


def prompt_text(prompt: str | list[dict[str, Any]]) -> str:
    """The text that makes a prompt what it is: all turns but the system's, one below the other.

    >>> prompt_text([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}])
    '1 + 1?'
    """
    if isinstance(prompt, str):
        return prompt
    return "\n".join(str(turn["content"]) for turn in prompt if turn["role"] != "system")


def prompt_key(prompt: str | list[dict[str, Any]]) -> str:
    """The prompt with what does not matter taken away: Unicode forms, case, runs of blanks.

    Two rows of one key are duplicates, and fall into the same part.

    >>> prompt_key("  What is\\n2 + 2? ") == prompt_key("what is 2 + 2?")
    True
    >>> prompt_key("x²") == prompt_key("x^2"), prompt_key("x²") == prompt_key("x2")
    (True, False)
    """
    return " ".join(unicodedata.normalize("NFKC", spelt_out(prompt_text(prompt))).casefold().split())


def spelt_out(text: str) -> str:
    """The text with a mark before raised and lowered signs and a blank before fractions, which NFKC would flatten.

    >>> spelt_out("x¹⁰ + y₁"), unicodedata.normalize("NFKC", "x¹⁰ + y₁")
    ('x^¹⁰ + y_₁', 'x10 + y1')
    """
    if text.isascii():
        return text
    marks = [_MARKS.get(unicodedata.decomposition(sign).partition(" ")[0], "") for sign in text]
    before = ["", *marks]
    return "".join(mark * (mark != last) + sign for mark, last, sign in zip(marks, before, text, strict=False))


def parse_parts(text: str) -> dict[str, float]:
    """Name of each part -> its share, from a text such as `sft=0.4,rlvr=0.3,opd=0.3`.

    Raises:
        DataError: no such form, a share outside (0, 1], a name given twice, `rest`, or shares of more than 1 together.

    Example:
        >>> parse_parts("sft=0.4,opd=0.6")
        {'sft': 0.4, 'opd': 0.6}
    """
    parts: dict[str, float] = {}
    for piece in text.split(","):
        name, _, share = piece.strip().partition("=")
        try:
            value = float(share)
        except ValueError:
            value = -1.0
        if not name.isidentifier() or name == REST or not 0 < value <= 1 or name in parts:
            raise DataError(
                f"--parts {text!r}: {piece.strip()!r} is not a part. Expected name=share with shares above 0 and up "
                "to 1 and every name once, e.g. sft=0.4,rlvr=0.3,opd=0.3."
            )
        parts[name] = value
    if sum(parts.values()) > 1 + 1e-9:
        raise DataError(
            f"--parts {text!r}: the shares add up to {sum(parts.values()):g}, at most 1 is there to share."
        )
    return parts


def position(prompt: str | list[dict[str, Any]], *, salt: str = "") -> float:
    r"""A fixed number in [0, 1) for every prompt: the first 53 bits of SHA-256 of salt and key, over $2^{53}$.

    >>> round(position("2 + 2?"), 6) == round(position(" 2  + 2?"), 6)
    True
    """
    digest = hashlib.sha256(f"{salt}\n{prompt_key(prompt)}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def part_of(prompt: str | list[dict[str, Any]], parts: dict[str, float], *, salt: str = "") -> str | None:
    r"""The part that a prompt belongs to, or None for the rest where the shares add up to less than 1.

    The part is the one whose interval of cumulated shares holds the prompt's `position`. It depends on the prompt, the
    salt and the shares (in their order) alone.

    Args:
        prompt: text or messages; only its `prompt_key` counts.
        parts: share of each part.
        salt: another one gives another split.

    Example:
        >>> part_of("2 + 2?", {"sft": 0.4, "rlvr": 0.3, "opd": 0.3})
        'sft'
    """
    here, upper = position(prompt, salt=salt), 0.0
    for name, share in parts.items():
        upper += share
        if here < upper:
            return name
    return list(parts)[-1] if upper >= 1 - 1e-9 else None


def split_rows(rows: Iterable[Row], parts: dict[str, float], *, salt: str = "") -> dict[str, list[Row]]:
    """Rows by part, in their order; the rest, if any, is under `rest`. Raises DataError where a part gets no row."""
    split: dict[str, list[Row]] = {name: [] for name in parts}
    for row in rows:
        split.setdefault(part_of(row["prompt"], parts, salt=salt) or REST, []).append(row)
    empty = [name for name in parts if not split[name]]
    if empty:
        raise DataError(
            f"no row falls into {', '.join(empty)} ({sum(map(len, split.values()))} rows in all). Give more rows, or "
            "larger shares."
        )
    return split
