"""Where rows go: one file or one per part, with a report beside it; all checks before anything is written."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..durable import atomically
from .files import DataError, Row, check_free, write_jsonl
from .splits import parse_parts, position, split_rows


@dataclass(frozen=True)
class Output:
    """The files that rows are written to, and which rows each of them gets.

    Args:
        path: `NAME.jsonl`; with parts `NAME.PART.jsonl` for each. The report is `NAME.report.json`.
        parts: share of each part; empty for one file.
        salt: of the split.
        max_rows: at most so many rows in each file: those whose hash comes first, whatever the order of the rows.
        instruction: stands below the last user turn of each prompt. Splits and duplicates go by the prompt without it.

    Raises:
        DataError: not `.jsonl`, or a file is there and may not be overwritten.
    """

    path: Path
    parts: dict[str, float]
    salt: str = ""
    max_rows: int | None = None
    instruction: str = ""

    @classmethod
    def checked(cls, path: Path, parts: str | None, *, overwrite: bool, **options: Any) -> "Output":
        """Read the parts and make sure that nothing is in the way."""
        output = cls(path, parse_parts(parts) if parts else {}, **options)
        check_jsonl(path)
        if output.max_rows is not None and output.max_rows < 1:
            raise DataError(f"--max-rows must be at least 1, got {output.max_rows}.")
        check_free(*output.files().values(), output.report_file, overwrite=overwrite)
        return output

    @property
    def report_file(self) -> Path:
        """The report beside the rows, `NAME.report.json`."""
        return report_file(self.path)

    def files(self) -> dict[str, Path]:
        """The file of each part; under the name `all` where there are no parts.

        >>> [str(file) for file in Output(Path("data/x.jsonl"), {"sft": 0.5, "opd": 0.5}).files().values()]
        ['data/x.sft.jsonl', 'data/x.opd.jsonl']
        """
        if not self.parts:
            return {"all": self.path}
        return {part: self.path.with_name(f"{self.path.stem}.{part}.jsonl") for part in self.parts}

    def write(self, rows: list[Row], report: dict[str, Any]) -> dict[str, Any]:
        """Split and write; return the report with the rows of each file. DataError: a part would be empty."""
        split = split_rows(rows, self.parts, salt=self.salt) if self.parts else {"all": rows}
        chosen = {part: self._first(split[part]) for part in self.files()}
        report = report | {
            "files": {self.files()[part].name: len(rows) for part, rows in chosen.items()},
            "left_over": len(rows) - sum(map(len, chosen.values())),
            "split": {"parts": self.parts, "salt": self.salt, "max_rows": self.max_rows},
        }
        for part, file in self.files().items():
            write_jsonl(file, (instructed(row, self.instruction) for row in chosen[part]))
        write_report(self.path, report)
        return report

    def _first(self, rows: list[Row]) -> list[Row]:
        if self.max_rows is None or len(rows) <= self.max_rows:
            return rows
        # Another salt than the split's: within a part, the positions of that one are all in one interval.
        last = sorted(position(row["prompt"], salt=f"{self.salt}/rows") for row in rows)[self.max_rows - 1]
        return [row for row in rows if position(row["prompt"], salt=f"{self.salt}/rows") <= last]


def instructed(row: Row, instruction: str) -> Row:
    """The row with an instruction below its last user turn.

    >>> instructed({"prompt": [{"role": "user", "content": "1+1?"}]}, "Be brief.")["prompt"][0]["content"]
    '1+1?\\n\\nBe brief.'
    """
    if not instruction:
        return row
    prompt = row["prompt"]
    if isinstance(prompt, str):
        return row | {"prompt": f"{prompt}\n\n{instruction}"}
    last = max(i for i, turn in enumerate(prompt) if turn["role"] == "user")
    asked = prompt[last] | {"content": f"{prompt[last]['content']}\n\n{instruction}"}
    return row | {"prompt": [*prompt[:last], asked, *prompt[last + 1 :]]}


def check_jsonl(output: Path) -> None:
    """Raise DataError where an output is not a `.jsonl` file."""
    if output.suffix != ".jsonl":
        raise DataError(f"--output {output} must end in .jsonl: that is what is written.")


def report_file(output: Path) -> Path:
    """The report that lies beside an output.

    >>> str(report_file(Path("data/sft.jsonl")))
    'data/sft.report.json'
    """
    return output.with_name(f"{output.stem}.report.json")


def part_file(output: Path) -> Path:
    """The file that holds traces until all of them are written."""
    return output.with_name(f"{output.name}.part")


def settings_file(output: Path) -> Path:
    """The file that holds the settings of a run that writes traces, until it has ended."""
    return output.with_name(f"{output.name}.part.json")


def files_of(output: Path, parts: str | None) -> list[Path]:
    """All that a command of `opd-trl data` may write for an `--output`: rows, parts, report, unfinished traces.

    >>> [str(path) for path in files_of(Path("x.jsonl"), "a=0.5,b=0.5")][:3]
    ['x.a.jsonl', 'x.b.jsonl', 'x.report.json']
    """
    rows = Output(output, parse_parts(parts) if parts else {}).files().values()
    return [*rows, report_file(output), part_file(output), settings_file(output)]


def write_report(output: Path, report: dict[str, Any]) -> None:
    """Write a report as `NAME.report.json` beside the output `NAME.jsonl`."""
    with atomically(report_file(output)) as file:
        json.dump(report, file, indent=2, ensure_ascii=False)
        file.write("\n")
