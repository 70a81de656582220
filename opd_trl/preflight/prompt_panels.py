"""What student and teacher read for one row, side by side, with the first token that is learned."""

from collections.abc import Iterator
from typing import Any

from rich.columns import Columns
from rich.console import Console, ConsoleOptions
from rich.panel import Panel
from rich.text import Text

from ..models.sequences import unpadded
from ..trainers.looks.rollouts import Rollout


# Characters of a prompt that are shown; the middle of a longer one is left out.
SHOWN = 1200


def first_prompts(trainer, rollout: Rollout) -> dict[str, str | None]:
    """Both prompts of the first completion, for the JSON.

    Returns:
        `student`, `teacher`: what each reads; `before`: the start of the completion that the loss is not taken on;
        `first_supervised_token`: the first one that it is taken on. Both are None where there is no such token.
    """
    tokenizer, batch = trainer.tokenizer, rollout.batch
    student = unpadded(batch, "prompt")[0]
    teacher = unpadded(batch, "teacher_prompt")[0] if "teacher_prompt_ids" in batch else student
    kept = rollout.kept[0].nonzero().flatten()
    ids = batch["completion_ids"][0]
    return {
        "student": tokenizer.decode(student),
        "teacher": trainer.teacher_prompts.tokenizer_of(batch, 0).decode(teacher),
        "before": None if not len(kept) else tokenizer.decode(ids[: kept[0]]),
        "first_supervised_token": None if not len(kept) else tokenizer.decode(ids[kept[0] : kept[0] + 1]),
    }


class PromptPanels:
    """Two panels for rich, each half as wide as the console.

    Args:
        prompts: from `first_prompts`.
    """

    def __init__(self, prompts: dict[str, Any]):
        self.prompts = prompts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Columns]:
        width = (options.max_width - 2) // 2
        panels = [
            Panel(rendered(self.prompts[role], self.prompts), title=f"{role} reads", width=width)
            for role in ("student", "teacher")
        ]
        yield Columns(panels, padding=(0, 1))


def rendered(text: str, prompts: dict[str, Any]) -> Text:
    """A prompt, then what of the completion is skipped, then the first token that is learned, reversed."""
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
