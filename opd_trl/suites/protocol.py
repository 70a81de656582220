"""The protocol of an evaluation: how answers are asked for, in a YAML file, read strictly and compared exactly."""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..scripts.recipe_files import load_mapping, recipes_dir
from ..spelling import did_you_mean


SUITES = ("math", "rules", "retention")


@dataclass(frozen=True)
class Protocol:
    """How answers are asked for and judged. Two results compare only where it is the same.

    Args:
        suite: math, rules or retention.
        temperature: 0 is greedy: one sample, one seed.
        top_p: nucleus sampling; 1 keeps every token.
        top_k: 0 keeps every token.
        max_new_tokens: longest answer; longer ones are cut and counted as truncated.
        n: samples of each problem with each seed.
        seeds: of sampling.
        system_prompt: before every prompt, unless it has a system message of its own.
        prompt_template: the last user turn; `{prompt}` is its text.
        chat_template: a Jinja text in place of the tokenizer's; in the YAML, a file beside it.
        chat_template_kwargs: e.g. `enable_thinking: false`.
        judge_seconds: CPU time for judging one answer.
        max_answer_chars: longest answer in a box.
        texts: retention: JSONL of `text`, beside the YAML.
        tasks: retention: JSONL of `prompt` and `answer` (a list of those that are right), beside the YAML.
    """

    suite: str
    temperature: float
    max_new_tokens: int
    top_p: float = 1.0
    top_k: int = 0
    n: int = 1
    seeds: list[int] = field(default_factory=lambda: [0])
    system_prompt: str | None = None
    prompt_template: str = "{prompt}"
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    judge_seconds: float = 5.0
    max_answer_chars: int = 1000
    texts: str | None = None
    tasks: str | None = None

    def __post_init__(self) -> None:
        for name, (holds, expected) in CHECKS.items():
            if not holds(getattr(self, name)):
                raise ValueError(f"{name} must be {expected}, got {getattr(self, name)!r}.")
        if self.temperature == 0 and (self.n > 1 or len(self.seeds) > 1):
            raise ValueError(
                f"temperature 0 gives the same answer every time, got n={self.n} and seeds={self.seeds}. Set n to 1 "
                "and seeds to [0], or raise the temperature."
            )

    @property
    def samples(self) -> int:
        """Samples of each problem, over all seeds."""
        return self.n * len(self.seeds)

    @property
    def hash(self) -> str:
        """The first 12 digits of the SHA-256 of its content."""
        return digest(json.dumps(self.identity(), sort_keys=True).encode())

    def identity(self) -> dict[str, Any]:
        """Its content, with files as the digests of theirs: the same on every machine."""
        files = {name: getattr(self, name) for name in ("texts", "tasks")}
        return asdict(self) | {name: digest(Path(file).read_bytes()) for name, file in files.items() if file}

    def override(self, **values: Any) -> "Protocol":
        """A copy with those values that are not None."""
        return replace(self, **{name: value for name, value in values.items() if value is not None})


def digest(content: bytes) -> str:
    """The first 12 digits of the SHA-256 of a content."""
    return hashlib.sha256(content).hexdigest()[:12]


def _number(
    low: float, high: float = sys.float_info.max, kind: tuple[type, ...] = (int, float)
) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high


def _text_or_none(value: Any) -> bool:
    return value is None or (isinstance(value, str) and bool(value))


def _seeds(value: Any) -> bool:
    whole = isinstance(value, list) and all(_number(0, kind=(int,))(seed) for seed in value)
    return whole and bool(value) and len(set(value)) == len(value)


CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "suite": (lambda value: value in SUITES, f"one of {', '.join(SUITES)}"),
    "temperature": (_number(0), "a number of at least 0"),
    "max_new_tokens": (_number(1, kind=(int,)), "a whole number above 0"),
    "top_p": (lambda value: _number(0, 1)(value) and value > 0, "in (0, 1]"),
    "top_k": (_number(0, kind=(int,)), "a whole number, 0 for no limit"),
    "n": (_number(1, kind=(int,)), "a whole number above 0"),
    "seeds": (_seeds, "a list of different whole numbers, such as [0, 1, 2]"),
    "system_prompt": (_text_or_none, "a text, or null"),
    "prompt_template": (lambda value: isinstance(value, str) and "{prompt}" in value, "a text that holds {prompt}"),
    "chat_template": (_text_or_none, "a file beside the protocol, or null"),
    "chat_template_kwargs": (lambda value: isinstance(value, dict), "a mapping such as {enable_thinking: false}"),
    "judge_seconds": (_number(0.1), "a number of at least 0.1"),
    "max_answer_chars": (_number(1, kind=(int,)), "a whole number above 0"),
    "texts": (_text_or_none, "a file beside the protocol, or null"),
    "tasks": (_text_or_none, "a file beside the protocol, or null"),
}


def find_protocol(name: str) -> Path:
    """The file of a protocol: a path, or one that comes with the package; raises ValueError with the names."""
    folder = recipes_dir() / "protocols"
    for candidate in (Path(name).expanduser(), folder / f"{name}.yaml", folder / name):
        if candidate.is_file():
            return candidate
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    hint = did_you_mean(name, names, otherwise=f"there are {', '.join(names)}.")
    raise ValueError(f"--protocol {name!r} is neither a file nor a protocol: {hint}")


def load_protocol(path: Path) -> Protocol:
    """Read a protocol; raises ValueError for a key or value that is unknown, missing or out of range."""
    values = load_mapping(path)
    known = [entry.name for entry in fields(Protocol)]
    for key in values:
        if key not in known:
            hint = did_you_mean(key, known, otherwise=f"there are {', '.join(known)}.")
            raise ValueError(f"{path}: unknown key {key!r}: {hint}")
    missing = [key for key in ("suite", "temperature", "max_new_tokens") if key not in values]
    if missing:
        raise ValueError(f"{path}: {', '.join(missing)} is missing. A protocol says how answers are sampled.")
    for key in ("chat_template", "texts", "tasks"):
        if values.get(key) is not None:
            values[key] = _beside(path, key, values[key])
    try:
        return Protocol(**values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _beside(path: Path, key: str, name: Any) -> str:
    """The path of a data file beside a protocol; of a template, its content."""
    file = path.parent / str(name)
    if not file.is_file():
        raise ValueError(f"{path}: {key}: no file {name} beside it.")
    return file.read_text(encoding="utf-8") if key == "chat_template" else str(file)


def differences(there: dict[str, Any], here: dict[str, Any], *, prefix: str = "") -> list[str]:
    """What differs between two mappings, in words.

    >>> differences({"n": 1, "top": {"p": 0.9}}, {"n": 1, "top": {"p": 0.95}})
    ['top.p is 0.9 there and 0.95 here']
    """
    found = []
    for key in dict.fromkeys([*there, *here]):
        old, new = there.get(key), here.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, prefix=f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} is {old!r} there and {new!r} here")
    return found
