"""The report of a study: Markdown and pictures in its folder."""

from pathlib import Path
from typing import Any

from .pictures import draw_claim, draw_confusion
from .settings import Settings
from .tables import report


def write_report(settings: Settings, lines: list[dict[str, Any]], home: Path) -> list[Path]:
    """Write `report.md` and a picture of each claim that has a result; return what was written."""
    home.mkdir(parents=True, exist_ok=True)
    page = home / "report.md"
    page.write_text(report(settings, lines), encoding="utf-8")
    there = {line["name"] for line in lines if line["kind"] == "arm"}
    pictures = [
        draw_claim(settings, lines, name, home / f"{name}.png")
        for name, claim in settings.claims.items()
        if there & set(claim.arms)
    ]
    return [page, *pictures, draw_confusion(settings, lines, home / "preflight.png")]
