"""Consoles of rich that show a text as it is: no markup or emoji in it, its control characters spelt out."""

from typing import Any

from rich import control
from rich.console import Console

from ..screen import SPELT


def spell_out_controls() -> None:
    """Let rich spell control characters out in every text of this process, on consoles of other libraries too."""
    control._CONTROL_STRIP_TRANSLATE.update(SPELT)


def plain_console(**options: Any) -> Console:
    """A console for texts of anybody; styles are given beside a text, or as a `Text`."""
    spell_out_controls()
    return Console(markup=False, emoji=False, highlight=False, **options)
