"""The cells of `internalise.py` and their lines: which there are, which are finished, files read and merged."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any


RULES = ("pirate", "json", "bullets")
REFERENCES = ("before", "teacher")
ON_POLICY = ("stop_gradient_topk", "forward_kl", "jsd")
OBJECTIVES = (*ON_POLICY, "sft")
FURTHER = ("default", "mixed")
SEEDS = (0, 1, 2)
HELD_OUT = 48  # questions, of those that the rule is for and of those elsewhere
# Shares of answers, one verdict per question.
VERDICTS = ("greedy", "sampled", "elsewhere")

Cell = tuple[str, str, int]
Line = dict[str, Any]


def all_cells(*, further: bool = False) -> list[Cell]:
    """Cells in the order of work: the untrained references, then all of seed 0, of seed 1, of seed 2.

    `sft` comes after the cells whose tokens it matches; the further objectives come last of all.
    """
    cells = [(rule, reference, 0) for rule in RULES for reference in REFERENCES]
    cells += [(rule, objective, seed) for seed in SEEDS for rule in RULES for objective in OBJECTIVES]
    if further:
        cells += [(rule, objective, seed) for objective in FURTHER for seed in SEEDS for rule in RULES]
    return cells


def cell_of(line: Line) -> Cell:
    return line["rule"], line["objective"], line["seed"]


def folder_of(output: Path, cell: Cell) -> Path:
    """Where a cell keeps its adapter, answers and curves."""
    rule, objective, seed = cell
    return output / f"{rule}-{objective}-{seed}"


def read_lines(path: Path) -> list[Line]:
    """The finished cells of a file; none where there is no file.

    Raises:
        ValueError: a line is no JSON object of a cell, or a cell has two lines.
    """
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else [], start=1):
        try:
            lines.append(json.loads(text))
            cell_of(lines[-1])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is no result of a cell ({error}). Remove the line.") from error
    cells = [cell_of(line) for line in lines]
    if doubled := sorted({cell for cell in cells if cells.count(cell) > 1}):
        raise ValueError(f"{path} has more than one line for {doubled[0]}. Keep one of them.")
    return lines


def write_lines(path: Path, lines: list[Line]) -> None:
    """Write the file beside its place, then put it there: a kill leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    temporary.replace(path)


def add_line(path: Path, line: Line) -> None:
    """The file with one more line."""
    write_lines(path, [*read_lines(path), line])


def open_cells(cells: list[Cell], lines: list[Line]) -> list[Cell]:
    """Cells without a line, in their order."""
    done = {cell_of(line) for line in lines}
    return [cell for cell in cells if cell not in done]


def token_budget(lines: list[Line], rule: str, seed: int) -> int:
    """Completion tokens for `sft`: the mean of the on-policy cells of the same rule and seed.

    Raises:
        ValueError: one of them is not finished.
    """
    seen = {
        line["objective"]: line["completion_tokens"]
        for line in lines
        if cell_of(line)[::2] == (rule, seed) and line["objective"] in ON_POLICY
    }
    if missing := [name for name in ON_POLICY if name not in seen]:
        raise ValueError(f"sft of rule {rule}, seed {seed} needs the tokens of {', '.join(missing)}. Run them first.")
    return round(fmean(seen.values()))


def merge(target: Path, sources: list[Path]) -> tuple[int, int]:
    """Put the lines of several processes into one file, in the order of work; return how many, and how many are added.

    Lines that several files share stand once. Nothing is written where two files disagree.

    Raises:
        ValueError: a file is missing or no such file, or two have different lines of a cell.
    """
    if missing := [path for path in sources if not path.is_file()]:
        raise ValueError(f"{missing[0]} is no file. Give the results files of the processes.")
    found: dict[Cell, tuple[Line, Path]] = {}
    for path in (target, *sources):
        for line in read_lines(path):
            known, where = found.setdefault(cell_of(line), (line, path))
            if known != line:
                both = known.keys() & line.keys()
                differing = sorted({name for name in both if known[name] != line[name]} | (known.keys() ^ line.keys()))
                raise ValueError(
                    f"{where} and {path} have different lines of {cell_of(line)}, in {', '.join(differing)}: they are "
                    "two runs. Remove the line of one of them."
                )
    before, order = len(read_lines(target)), all_cells(further=True)
    cells = sorted(found, key=lambda cell: order.index(cell) if cell in order else len(order))
    write_lines(target, [found[cell][0] for cell in cells])
    return len(cells), len(cells) - before
