"""Floor 3: rows for training and evaluation. Read, shape, split, decontaminate, write, filter."""

from .adapters import ADAPTERS, Adapter
from .decontaminate import Contamination
from .files import DataError, read_jsonl, write_jsonl
from .filtering import TraceFilter, filter_rows
from .prepare import Prepared, prepare
from .procedural import procedural_score
from .sources import load_named, read_file
from .splits import parse_parts, part_of, prompt_key, split_rows


__all__ = [
    "ADAPTERS",
    "Adapter",
    "Contamination",
    "DataError",
    "Prepared",
    "TraceFilter",
    "filter_rows",
    "load_named",
    "parse_parts",
    "part_of",
    "prepare",
    "procedural_score",
    "prompt_key",
    "read_file",
    "read_jsonl",
    "split_rows",
    "write_jsonl",
]
