"""MkDocs hook: pages and commands that are still being written. To be deleted, with its line in mkdocs.yml, after."""

import importlib.util
import re
from pathlib import Path

from opd_trl.cli.main import COMMANDS


PAGES = ("data.md", "evaluation.md", "pipeline.md", "results.md")
DOCS = Path(__file__).resolve().parents[1]
missing = [name for name in PAGES if not (DOCS / name).is_file()]

for name in ("eval", "data"):
    if importlib.util.find_spec(f"opd_trl.cli.{name}") is None:
        COMMANDS.pop(name, None)


def on_config(config):
    config.nav = [
        {title: [page for page in pages if page not in missing]} for g in config.nav for title, pages in g.items()
    ]
    return config


def on_page_markdown(markdown, page, config, files):
    for name in missing:
        markdown = re.sub(rf"\[([^\]]*)\]\((?:\.\./)?{re.escape(name)}[^)]*\)", r"\1", markdown)
    return markdown
