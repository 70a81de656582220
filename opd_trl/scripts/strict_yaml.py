"""YAML that others have written: read strictly, and bounded before anything is built of it."""

from pathlib import Path
from typing import Any

import yaml

from ..foreign import MOST_NESTED


#: The largest file, in bytes; the package's own have 15,000 at most.
MOST_BYTES = 2**20
#: Values of a file, those that aliases repeat counted each time.
MOST_VALUES = 100_000


class StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, with errors for a key that is given twice and for what aliases blow up."""

    def __init__(self, stream: str):
        super().__init__(stream)
        self._depth, self._sizes = 0, {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        """Build a node, counting what it stands for."""
        mark, is_alias = self.peek_event().start_mark, self.check_event(yaml.AliasEvent)
        self._depth += 1
        if self._depth > MOST_NESTED:
            raise problem(mark, f"lists and mappings are nested deeper than {MOST_NESTED}")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias and node not in self._sizes:
            raise problem(mark, "an alias repeats what it stands in, without end")
        if not is_alias:
            self._sizes[node] = self._size(node)
        if self._sizes[node] > MOST_VALUES:
            raise problem(mark, f"with its aliases this stands for more than {MOST_VALUES:,} values")
        return node

    def _size(self, node: yaml.Node) -> int:
        """Check a node whose parts are counted; return how many values it stands for."""
        if isinstance(node, yaml.MappingNode):
            self._check_keys(node)
            return 1 + sum(self._sizes[part] for pair in node.value for part in pair)
        if isinstance(node, yaml.SequenceNode):
            return 1 + sum(self._sizes[part] for part in node.value)
        return 1

    def _check_keys(self, node: yaml.MappingNode) -> None:
        """Refuse a mapping in which two keys are one: 1 and 0x1 too."""
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # refused where it is built: it cannot be a key
            name = key.value if key.tag.endswith(":merge") else self.construct_object(key)
            line = key.start_mark.line + 1
            if name in lines:
                where = f"in line {lines[name]} and in line {line}"
                raise yaml.YAMLError(f"the key {key.value} is given twice, {where}. Remove one")
            lines[name] = line


def problem(mark: yaml.Mark, text: str) -> yaml.YAMLError:
    """An error of ours about the line of a mark."""
    return yaml.YAMLError(f"line {mark.line + 1}: {text}")


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text; ValueError, which begins with `where`, for one that is wrong or out of bounds.

    >>> parse_yaml("rate: 1\\nrate: 2", "r.yaml")
    Traceback (most recent call last):
    ValueError: r.yaml: the key rate is given twice, in line 1 and in line 2. Remove one.
    """
    try:
        return yaml.load(text, StrictLoader)
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"{where} is not valid YAML: {' '.join(str(error).split())}.") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: a date that there is not, 5,000 digits
        raise ValueError(f"{where}: {' '.join(str(error).split())}.") from None


def read_yaml(path: Path) -> Any:
    """The value of a YAML file; ValueError, which names the file, for one that is wrong or out of bounds."""
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, and a YAML file has {MOST_BYTES:,} at most.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}). Save it as UTF-8.") from None
    return parse_yaml(text, str(path))
