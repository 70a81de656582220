"""Both prompts of one row side by side, and the first token that is learned."""

from typing import Any

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from ...preflight.prefixes import unpadded
from ...preflight.rollouts import Rollout


# Characters of a prompt that are shown; the middle of a longer one is left out.
SHOWN = 1200


def first_prompts(trainer, rollout: Rollout) -> dict[str, str | None]:
    """What student and teacher read for the first completion, and the first token that the loss is taken on."""
    tokenizer, batch = trainer._tokenizer, rollout.batch
    student = unpadded(batch, "prompt")[0]
    teacher = unpadded(batch, "teacher_prompt")[0] if "teacher_prompt_ids" in batch else student
    kept = rollout.kept[0].nonzero().flatten()
    ids = batch["completion_ids"][0]
    return {
        "student": tokenizer.decode(student),
        "teacher": tokenizer.decode(teacher),
        "before": None if not len(kept) else tokenizer.decode(ids[: kept[0]]),
        "first_supervised_token": None if not len(kept) else tokenizer.decode(ids[kept[0] : kept[0] + 1]),
    }


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
