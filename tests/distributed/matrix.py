"""The equivalence matrix: every engine, teacher and batch split against one process on the whole batch.

    make matrix                                            # about 20 minutes on 2 cores
    python -m tests.distributed.matrix --engine ZeRO-3     # rows of one engine

Three optimizer steps on fixed completions of different lengths, tiny models, float32. Each cell is the largest
deviation of loss, gradient norm and trained parameters from the reference (8 rows in one batch, one process).
"""

import argparse
import json
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path

from rich.progress import track

from tests import tiny
from tests.distributed.launch import ENGINES, deviation, run_job


# Engine, rows per device, micro-batches: together 8 rows a step.
ROWS = [
    ("1 process", 1, 8),
    ("1 process", 2, 4),
    ("DDP", 4, 1),
    ("DDP", 1, 4),
    ("ZeRO-1", 4, 1),
    ("ZeRO-2", 2, 2),
    ("ZeRO-3", 4, 1),
    ("ZeRO-3", 1, 4),
    ("FSDP2", 4, 1),
    ("FSDP2", 2, 2),
]
COLUMNS = {
    f"{name}, {'LoRA' if lora else 'full'}": {"kind": kind, "lora": lora}
    for name, kind in (("OPD", "opd"), ("OPSD base", "base"), ("OPSD live", "live"), ("OPSD EMA", "ema"))
    for lora in (False, True)
}
TOLERANCE = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["1 process", *ENGINES], action="append", help="default: all of them")
    parser.add_argument("--json", type=Path, default=Path("runs/matrix.json"))
    args = parser.parse_args()
    rows = [row for row in ROWS if not args.engine or row[0] in args.engine]
    cells: dict[tuple, dict[str, float | str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        models = {"student": tiny.save(Path(folder) / "student")}
        models["teacher"] = tiny.save(Path(folder) / "teacher", seed=1, hidden_size=48)
        references = {}
        for row, column in track([(row, column) for row in [("1 process", 8, 1), *rows] for column in COLUMNS]):
            engine, per_device, accumulate = row
            job = Path(folder) / f"{len(cells)}-{len(references)}"
            try:
                outcome = run_job(
                    engine, job, per_device=per_device, accumulate=accumulate, **models, **COLUMNS[column]
                )
            except RuntimeError as error:
                cells[row, column] = {"error": str(error)}
                continue
            if row == ("1 process", 8, 1):
                references[column] = outcome
            else:
                cells[row, column] = deviation(outcome, references[column])
    print(table(rows, cells))
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps([{"row": row, "column": column} | cells[row, column] for row, column in cells]))
    failed = [key for key, cell in cells.items() if "error" in cell or max(cell.values()) > TOLERANCE]
    print(f"\n{len(cells) - len(failed)} of {len(cells)} cells within {TOLERANCE:g}; details in {args.json}")
    raise SystemExit(bool(failed))


def table(rows: list[tuple], cells: dict[tuple, dict[str, float | str]]) -> str:
    """Markdown, as it stands in docs/scale.md."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "trl", "accelerate", "deepspeed"))
    lines = [f"{date.today()}, {versions}\n", f"| engine | rows x micro-batches | {' | '.join(COLUMNS)} |"]
    lines.append("|---" * (2 + len(COLUMNS)) + "|")
    for engine, per_device, accumulate in rows:
        found = [cells[(engine, per_device, accumulate), column] for column in COLUMNS]
        figures = ["failed" if "error" in cell else f"{max(cell.values()):.0e}" for cell in found]
        lines.append(f"| {engine} | {per_device} x {accumulate} | {' | '.join(figures)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
