"""A Griffe extension: this package's docstrings in the dialect that mkdocstrings renders.

TRL's cross-references, `Example:` and `Source:` sections, several arguments on one line, comments in place of the
docstrings of constants, and names that a package loads on first use.
"""

import ast
import re
from pathlib import Path

import griffe


PACKAGES = (
    "opd_trl",
    *(f"opd_trl.{n}" for n in ("losses", "privileged", "teachers", "evaluation", "data", "diagnostics")),
)
ROOT = Path(__file__).resolve().parents[2]


def literal(package: str, name: str):
    """The value of a literal in a package's `__init__.py`, read without importing it; None where there is none."""
    source = (ROOT / package.replace(".", "/") / "__init__.py").read_text(encoding="utf-8")
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
            return ast.literal_eval(statement.value)
    return None


def public_names() -> dict[str, list[str]]:
    """The names of `__all__` of every documented package."""
    return {package: literal(package, "__all__") or [] for package in PACKAGES}


class HouseStyle(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def __init__(self):
        self.addresses = {name: f"{package}.{name}" for package, names in public_names().items() for name in names}

    def on_package(self, *, pkg: griffe.Module, **kwargs) -> None:
        """Let `opd_trl.OPDTrainer` be found where it is defined."""
        for name, module in (literal(pkg.path, "_LAZY") or {}).items():
            pkg.set_member(name, griffe.Alias(name, f"{module}.{name}", parent=pkg))

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring is None and obj.is_attribute:
            comment = comment_above(obj)
            obj.docstring = griffe.Docstring(comment, parent=obj) if comment else None
        if obj.docstring is not None:
            obj.docstring.value = self.rewrite(obj.docstring.value)

    def rewrite(self, text: str) -> str:
        """The docstring as Google's style has it, cross-references as Markdown."""
        text = re.sub(r"\[`~?([\w.]+)`\]", self._reference, text)
        text = re.sub(r"^Example:$", "Examples:", text, flags=re.M)
        text = re.sub(
            r"^>>> .*\n?(?:^.+\n?)*", lambda doctest: f"```python\n{doctest[0].rstrip()}\n```\n", text, flags=re.M
        )
        text = re.sub(r"^Source:(?= )", "**Source:**", text, flags=re.M)
        return re.sub(r"^(?:Args|Attributes|Raises):\n(?: .*\n?|\n(?= ))+", _one_name_per_item, text, flags=re.M)

    def _reference(self, match: re.Match) -> str:
        name = match[1]
        return f"[`{name}`][{self.addresses[name]}]" if name in self.addresses else f"`{name}`"


def _one_name_per_item(section: re.Match) -> str:
    """`    a, b: text` as two items: Google's style knows one name per item."""
    return re.sub(
        r"^    ((?:[\w*]+,\s+)+[\w*]+):(.*\n(?:     .*\n)*)",
        lambda item: _items(re.split(r",\s+", item[1]), item[2]),
        section[0] + "\n",
        flags=re.M,
    )


def _items(names: list[str], text: str) -> str:
    first = text if text.count("\n") == 1 else f" see `{names[-1]}`.\n"
    return "".join(f"    {name}:{first}" for name in names[:-1]) + f"    {names[-1]}:{text}"


def comment_above(obj: griffe.Object) -> str:
    """The comment that ends on the line above a constant."""
    lines = obj.lines_collection[obj.filepath][: obj.lineno - 1]
    comment = []
    while lines and lines[-1].startswith("#"):
        comment.insert(0, lines.pop().lstrip("#: "))
    return "\n".join(comment)
