"""What a published method is: the entry of a table."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Method:
    """A published setting.

    Attributes:
        title: what it is, in a line.
        source: arXiv number or address.
        teacher: `"separate"`, `"self"` (the student with a privileged context) or `"either"`.
        fields: fields of the configuration and their values.
        differs: what is not as published, or None.
    """

    title: str
    source: str
    teacher: str
    fields: dict[str, Any]
    differs: str | None = None

    @property
    def commands(self) -> tuple[str, ...]:
        """The training commands that fit it: `opd`, `opsd` or both."""
        return {"separate": ("opd",), "self": ("opsd",), "either": ("opd", "opsd")}[self.teacher]

    @property
    def address(self) -> str:
        """The web address at which its source can be read."""
        return self.source if self.source.startswith("http") else f"https://arxiv.org/abs/{self.source}"
