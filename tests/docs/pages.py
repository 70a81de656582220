"""The pages of the documentation, and what stands in them: links, anchors, blocks of code, commands, tables."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CHANGELOG.md"]
    + [page for folder in ("docs", "recipes", "examples") for page in (ROOT / folder).glob("**/*.md")]
)
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w-]*)[^\n]*\n(?P<code>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    page: Path
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """The fenced blocks in these languages, of all pages."""
    return [
        Block(page, text[: match.start()].count("\n") + 1, match["language"], match["code"])
        for page in PAGES
        for text in [page.read_text(encoding="utf-8")]
        for match in FENCE.finditer(text)
        if match["language"] in languages
    ]


def prose(page: Path) -> str:
    """A page without its blocks and spans of code."""
    return re.sub(r"`[^`\n]+`", "``", FENCE.sub("", page.read_text(encoding="utf-8")))


def links(page: Path) -> list[str]:
    """Targets of the links and images of a page, those of the web left out."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in targets if not target.startswith(("https://", "http://"))]


def anchors(page: Path) -> set[str]:
    """What a link to this page may name after `#`."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {slug(title) for title in titles} | set(re.findall(r'<a id="([^"]+)"', text))


def slug(title: str) -> str:
    """The anchor of a heading, as Python-Markdown and GitHub make it of plain words."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def commands() -> list[tuple[str, list[str]]]:
    """Every `opd-trl ...` of the pages: where it stands, and its words."""
    found = []
    for block in blocks("bash", "sh", "console"):
        for number, line in enumerate(joined(block.code)):
            found += [(f"{block}+{number}", words) for words in split_line(line)]
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8")).replace("\\\n", " ")
        indented = re.findall(r"^    (opd-trl .*)$", text, re.MULTILINE)
        found += [(str(page.relative_to(ROOT)), words) for line in indented for words in split_line(line)]
    return found


def joined(code: str) -> list[str]:
    """Lines of a shell, continued ones as one."""
    return code.replace("\\\n", " ").splitlines()


def split_line(line: str) -> list[list[str]]:
    """The calls of `opd-trl` in a line of a shell, as words."""
    try:
        words = shlex.split(line.strip().removeprefix("$ "), comments=True)
    except ValueError as error:
        raise ValueError(f"no line of a shell: {line!r}") from error
    calls: list[list[str]] = [[]]
    for word in words:
        if word in ("&&", "||", "|", ";", "&"):
            calls.append([])
        else:
            calls[-1].append(word)
    calls = [call[next((i for i, word in enumerate(call) if "=" not in word), 0) :] for call in calls]
    return [call[1:] for call in calls if call and call[0] == "opd-trl"]


def tables(page: Path) -> list[tuple[list[str], list[list[str]]]]:
    """The tables of a page: the cells of the head, and those of every row."""
    found = []
    for match in re.finditer(r"(?:^\|.*\|\n)+", page.read_text(encoding="utf-8"), re.MULTILINE):
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in match[0].splitlines()]
        found.append((head, rows))
    return found


def spans(cell: str) -> list[str]:
    """The spans of code in a cell."""
    return re.findall(r"`([^`]+)`", cell)
