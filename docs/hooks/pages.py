"""MkDocs hook: the parts of pages that are made from the package, in place of markers.

`<!-- api: PACKAGE -->` names and entries of a package, `<!-- fields: CLASS -->` a configuration as tables,
`<!-- commands -->` the help of every command. Nothing here imports torch.
"""

import argparse
import io
import os
import re
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

from docstrings import ROOT, literal

from opd_trl.cli.main import COMMANDS
from opd_trl.cli.main import main as opd_trl
from opd_trl.cli.training import Flag, fields_of


MARKER = re.compile(r"^<!-- (?P<kind>api|fields|commands)(?:: (?P<what>[\w.]+))? -->$", re.MULTILINE)
OUTSIDE = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>\.\./[^)]*)\)")


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Fill the markers; links to files that are no pages become their text."""
    markdown = MARKER.sub(lambda m: MAKERS[m["kind"]](m["what"]), markdown)
    return OUTSIDE.sub(lambda m: without_link(m, Path(page.file.abs_src_path).parent), markdown)


def without_link(link: re.Match, folder: Path) -> str:
    """A link that leaves docs/ has nothing to lead to on the site."""
    target = (folder / link["target"].partition("#")[0]).resolve()
    return link["text"] if not target.is_relative_to(ROOT / "docs") else link[0]


def api(package: str) -> str:
    """Every name of the package's `__all__`. A function hides the module that it is named after, as in Python."""
    entries = []
    for name in literal(package, "__all__") or []:
        if (ROOT / package.replace(".", "/") / f"{name}.py").is_file():
            entries.append(f"[](){{#{package}.{name}}}\n\n::: {package}.{name}.{name}")
        else:
            entries.append(f"::: {package}.{name}")
    return "\n\n".join(entries)


def fields(class_name: str) -> str:
    """The fields that a configuration declares, from its source: a table for each group."""
    groups: dict[str, list[Flag]] = {}
    for flag in fields_of(class_name):
        groups.setdefault(flag.group, []).append(flag)
    return "\n\n".join(
        (f"### {title}\n\n" if title else "")
        + "| field | default | meaning |\n|---|---|---|\n"
        + "\n".join(map(row, flags))
        for title, flags in groups.items()
    )


def row(flag: Flag) -> str:
    """A field as a line of a table."""
    text = flag.help.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
    default = f"`{flag.default}`" if flag.default else ""
    return f'| <a id="{flag.name}"></a>`{flag.name}` | {default} | {text} |'


def commands(_: str | None) -> str:
    """What `opd-trl COMMAND --help` prints, for every command and those below it."""
    parts = []
    for name in COMMANDS:
        text, below = help_of(name)
        parts.append(f"## opd-trl {name}\n\n```text\n{text}\n```")
        parts += [f"### opd-trl {name} {word}\n\n```text\n{help_of(name, word)[0]}\n```" for word in below]
    return "\n\n".join(parts)


def help_of(*words: str) -> tuple[str, list[str]]:
    """The help of a command, 100 columns wide, and the commands below it."""
    below: list[str] = []
    add_parser = argparse._SubParsersAction.add_parser

    def recorded(self, name, **kwargs):
        below.append(name)
        return add_parser(self, name, **kwargs)

    printed, status = io.StringIO(), 0
    with (
        mock.patch.dict(os.environ, COLUMNS="100"),
        mock.patch.object(argparse._SubParsersAction, "add_parser", recorded),
        redirect_stdout(printed),
        redirect_stderr(printed),
    ):
        try:
            status = opd_trl([*words, "--help"])
        except SystemExit as end:
            status = end.code
    if status:
        raise RuntimeError(f"opd-trl {' '.join(words)} --help ended with {status}: {printed.getvalue()}")
    return printed.getvalue().strip(), below


MAKERS = {"api": api, "fields": fields, "commands": commands}
