"""Teacher traces: what a model writes to prompts, in the shape that TRL's SFT reads; resumable."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..durable import append_lines, atomically
from ..foreign import parse_json
from ..models.sampling import Completion
from ..privileged import TeacherView
from .files import DataError, Row, read_jsonl, to_line, unwritable
from .outputs import part_file, settings_file
from .prompts import RowError, look_at


#: Writes one completion per prompt, for a seed: `opd_trl.models.transformers_engine.make_sampler`.
Sampler = Callable[[list, int], list[Completion]]


@dataclass(frozen=True)
class TraceSettings:
    """What the traces depend on; a run that is resumed must have the same.

    Args:
        model, revision: who writes.
        temperature, top_p, max_new_tokens: how. Source of the default temperature: arXiv 2605.11182.
        samples: completions per prompt.
        batch_size: completions written together. It is part of the settings, since each batch has a seed of its own.
        seed: of the run.
        privileged: arguments of `TeacherView` where the writer sees a privileged context, as a teacher in training.
        template_kwargs: of the chat template.
        data: SHA-256 of the prompts.
    """

    model: str
    revision: str | None = None
    temperature: float = 0.3
    top_p: float = 0.95
    max_new_tokens: int = 4096
    samples: int = 1
    batch_size: int = 16
    seed: int = 0
    privileged: dict[str, Any] | None = None
    template_kwargs: dict[str, Any] | None = None
    data: str = ""


def check_rows(rows: list[Row], settings: TraceSettings) -> list:
    """The prompts that the writer reads, one per row; raises DataError where one or its context is missing."""
    if not rows:
        raise DataError("there are no prompts. Give a file with at least one row.")
    for number, row in enumerate(rows, start=1):
        if not row.get("prompt"):
            raise DataError(
                f"row {number} has no `prompt`, it has {', '.join(map(repr, row)) or 'nothing'}. Make the file with "
                "`opd-trl data prepare`."
            )
        try:
            look_at(row["prompt"])
        except RowError as error:
            raise DataError(f"row {number}: {error}") from error
        if unfit := unwritable(row):
            raise DataError(f"row {number}: {unfit}. Leave the column out of the file.")
    if settings.privileged is None:
        return [row["prompt"] for row in rows]
    try:
        view = TeacherView(**settings.privileged)
        return view.prompts(rows, [f"row {number}" for number in range(1, len(rows) + 1)])
    except ValueError as error:
        raise DataError(str(error)) from error


def digest(rows: list[Row]) -> str:
    """SHA-256 of rows as they would stand in a JSONL file, 64 hexadecimal digits."""
    return hashlib.sha256("\n".join(map(to_line, rows)).encode()).hexdigest()


def begin(output: Path, settings: TraceSettings, *, restart: bool) -> int:
    """Make the unfinished file ready, or empty with `restart`; return how many whole batches it has.

    A last batch that is not whole is cut off: it is written again with the same seed. Raises DataError where the file
    was begun with other settings, or cannot be read.
    """
    part, record = part_file(output), settings_file(output)
    wanted = json.loads(json.dumps(asdict(settings)))
    if restart:
        part.unlink(missing_ok=True)
        record.unlink(missing_ok=True)
    if part.exists() and not record.is_file():
        raise DataError(f"{part} is there without {record.name}: who wrote it is unknown. --overwrite begins again.")
    if record.is_file():
        begun = read_record(record)
        differ = [name for name in wanted if begun.get(name) != wanted[name]]
        if differ:
            changes = ", ".join(f"{name} ({begun.get(name)!r}, now {wanted[name]!r})" for name in differ)
            raise DataError(
                f"{part} was begun with other settings: {changes}. Give the same ones to go on, or --overwrite to "
                "begin again."
            )
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomically(record) as file:
        json.dump(wanted, file, indent=2)
    return _cut_to_whole_batches(part, settings.batch_size)


def read_record(record: Path) -> dict[str, Any]:
    """The settings that an earlier run left; DataError where the file holds none."""
    try:
        return dict(parse_json(record.read_bytes()))
    except (ValueError, TypeError) as error:
        raise DataError(f"{record} holds no settings ({error}). --overwrite begins again.") from None


def _cut_to_whole_batches(part: Path, batch_size: int) -> int:
    if not part.exists():
        return 0
    whole = position = lines = 0
    with part.open("rb+") as file:
        for line in file:
            position += len(line)
            lines += line.endswith(b"\n")
            if line.endswith(b"\n") and lines % batch_size == 0:
                whole = position
        file.truncate(whole)
    return lines // batch_size


def write_traces(
    rows: list[Row],
    prompts: list,
    sampler: Sampler,
    output: Path,
    settings: TraceSettings,
    *,
    restart: bool = False,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Write a trace for every row and sample; what is there of an earlier run stays.

    Args:
        rows: the training rows; their columns are kept, `completion` and `truncated` are added.
        prompts: what the writer reads for each of them (`check_rows`). The trace has the row's own prompt: a
            privileged context does not reach the student.
        sampler: writes a batch.
        output: `.jsonl`; unfinished it is `OUTPUT.part`, with the settings in `OUTPUT.part.json`.
        settings: see there.
        restart: throw away what an earlier run left.
        progress: called with the number of traces that are there, after each batch.

    Returns:
        a report: traces, truncated ones, settings.

    Raises:
        DataError: an earlier run left other settings.
    """
    jobs = [(row, prompt) for row, prompt in zip(rows, prompts, strict=True) for _ in range(settings.samples)]
    size = settings.batch_size
    first = begin(output, settings, restart=restart)
    progress(min(first * size, len(jobs)))
    part_file(output).touch()
    for number in range(first, -(-len(jobs) // size)):
        batch = jobs[number * size : (number + 1) * size]
        # A seed per batch: a run that is resumed writes what the whole one would have written.
        completions = sampler([prompt for _, prompt in batch], settings.seed * 1_000_003 + number)
        pairs = zip(batch, completions, strict=True)
        append_lines(part_file(output), [trace(row, completion) for (row, _), completion in pairs])
        progress(min((number + 1) * size, len(jobs)))
    part_file(output).replace(output)
    settings_file(output).unlink()
    truncated = sum(bool(row["truncated"]) for row in read_jsonl(output))
    return {"traces": len(jobs), "truncated": truncated, "settings": asdict(settings)}


def trace(row: Row, completion: Completion) -> Row:
    """A row of TRL's SFT: prompt and completion of the row's own kind, messages or text, and what else it had.

    >>> trace({"prompt": [{"role": "user", "content": "1+1?"}], "answer": "2"}, Completion("2", 2, True))["completion"]
    [{'role': 'assistant', 'content': '2'}]
    """
    messages = [{"role": "assistant", "content": completion.text}]
    return {
        **row,
        "completion": completion.text if isinstance(row["prompt"], str) else messages,
        "truncated": not completion.finished,
    }
