"""What reaches the terminal: text of others cannot move its cursor, rewrite its lines or set its title."""

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from .credentials import hide


#: What no text may hold -> how it is spelt: control characters but tab and newline, marks that split lines or turn the
#: direction of writing, and halves of characters, which no encoding can write.
SPELT = {
    number: f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"
    for first, last in ((0, 8), (11, 31), (127, 159), (0x2028, 0x202E), (0x2066, 0x2069), (0xD800, 0xDFFF))
    for number in range(first, last + 1)
}
#: What a progress bar writes to move: back to the start of its line, and up to another bar's.
BACK = re.compile(r"\r+")
UP = re.compile("(?:\x1b\\[A)+")


def printable(text: str) -> str:
    """A text with its control characters spelt out.

    >>> print(printable("one\\x1b[2Jtwo\\r"))
    one\\x1b[2Jtwo\\x0d
    """
    return text.translate(SPELT)


def one_line(text: str, most: int) -> str:
    """A text of others for the middle of a sentence: printable, on one line, cut behind `most` characters."""
    text = printable(" ".join(text[: 4 * most].split()))
    return text if len(text) <= most else text[:most] + " ..."


class Screen:
    """A text stream that writes what is printable, without the key and passwords; else the stream behind it.

    The moves of a progress bar pass: a return at the start of a write, and a write that only goes up.
    """

    def __init__(self, stream: TextIO):
        self.rich_proxied_file = stream  # rich writes here: it makes escapes of its own, and none of its texts' pass

    def write(self, text: str) -> int:
        """Write a text; returns its length."""
        back = BACK.match(text)
        moves = text if UP.fullmatch(text) else back[0] if back else ""
        self.rich_proxied_file.write(moves + hide(printable(text[len(moves) :])))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each text."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


@contextlib.contextmanager
def guarded_screen() -> Iterator[None]:
    """Within, everything that this process prints goes through a `Screen`: prints, logs and errors.

    After an exception it stays so, for the traceback that is still to come.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream if isinstance(stream, Screen) else Screen(stream) for stream in before)
    yield
    sys.stdout, sys.stderr = before
