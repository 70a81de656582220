"""Both prompts of one row side by side, and the first token that is learned."""

from typing import Any

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text


# Characters of a prompt that are shown; the middle of a longer one is left out.
SHOWN = 1200


def show_prompts(prompts: dict[str, Any], console: Console) -> None:
    """Two panels; the first supervised token stands reversed behind each prompt."""
    panels = [
        Panel(rendered(prompts[role], prompts), title=f"{role} reads", width=(console.width - 2) // 2)
        for role in ("student", "teacher")
    ]
    console.print(Columns(panels, padding=(0, 1)))


def rendered(text: str, prompts: dict[str, Any]) -> Text:
    """A prompt, what of the completion is skipped, and the marked token."""
    if len(text) > SHOWN:
        text = f"{text[: SHOWN // 2]} [... {len(text) - SHOWN} characters ...] {text[-SHOWN // 2 :]}"
    shown = Text(text)
    shown.append(prompts["before"] or "", style="dim")
    token = prompts["first_supervised_token"]
    shown.append("(no token)" if token is None else visible(token), style="reverse")
    return shown


def visible(token: str) -> str:
    r"""A token with its line breaks shown.

    >>> visible("\n")
    '\\n'
    """
    return token.replace("\n", "\\n") or "(empty)"
