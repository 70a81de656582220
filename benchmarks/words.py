"""The table of the pipeline math/pipeline_smollm2 on docs/results.md: every model and seed, forecasts beside results.

    opd-trl pipeline --config math/pipeline_smollm2          # and with --set words.seed=1, 2, other folders
    python benchmarks/words.py runs/pipeline_smollm2 ...     # keep the figures in benchmarks/results/words.jsonl
    python benchmarks/words.py --write docs/results.md --plot docs/images/words.png      # table and picture

A run's folder may hold `forecasts/STAGE.json`, which `opd-trl preflight --json` wrote before the stage was trained.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from lines import FOLDER, Line, Results, conditions_of, read_lines, write_between_marks

from opd_trl.data.files import read_jsonl
from opd_trl.diagnostics.plots import COLOURS, new_figure
from opd_trl.reproduce.comparisons import shown, t_interval
from opd_trl.reproduce.tables import markdown


KEPT = FOLDER / "words.jsonl"
FIELDS = ("model", "seed")
EVAL = "eval_"
MODELS = {
    "sft": "SFT student",
    "teacher": "teacher: the student after GRPO",
    "other": "mismatched teacher: SFT on another style",
    "opd": "**OPD from the GRPO teacher**",
    "opd_other": "OPD from the mismatched teacher",
    "sft_text": "SFT on the GRPO teacher's text",
    "opsd": "OPSD, reading the answer",
}


def read_run(folder: Path) -> list[Line]:
    """One line for each model that a run has evaluated. ValueError: it has none, or its record is missing."""
    record = folder / "pipeline.json"
    if not record.is_file():
        raise ValueError(f"{folder} has no pipeline.json. Give the output_dir of a pipeline.")
    stages = json.loads(record.read_text(encoding="utf-8"))["stages"]
    seed = int(stages["words"]["arguments"]["seed"])
    lines = [
        read_model(folder, name, stages) | {"seed": seed}
        for name in MODELS
        if stages.get(EVAL + name, {}).get("status") == "done"
    ]
    if not lines:
        raise ValueError(f"{folder}: no model is evaluated yet. Run the pipeline to its end.")
    return lines


def read_model(folder: Path, name: str, stages: dict[str, Any]) -> Line:
    """What is kept of a model: its score, how it writes, what it took and what had been foretold."""
    evaluated = folder / (EVAL + name)
    result = json.loads((evaluated / "result.json").read_text(encoding="utf-8"))
    score = next(figure for figure in result["figures"] if figure.startswith("avg@"))
    texts = [sample["text"] for sample in read_jsonl(evaluated / "samples.jsonl")]
    forecast = folder / "forecasts" / f"{name}.json"
    return {
        "model": name,
        "score": score,
        **result["figures"][score],
        "against_sft": next((c[score] for c in result["comparisons"] if c["folder"].endswith("eval_sft")), None),
        "equations": sum("=" in text for text in texts) / len(texts),
        "sentences": sum("that is" in text for text in texts) / len(texts),
        "tokens": result["generation"]["mean_tokens"],
        "minutes": stages[name]["seconds"] / 60,
        "all_minutes": sum(stage["seconds"] for stage in stages.values()) / 60,
        "forecast": json.loads(forecast.read_text(encoding="utf-8")) if forecast.is_file() else None,
        "date": stages[name]["start"][:10],
        "machine": result["conditions"]["machine"],
    }


def interval(line: Line, name: str = "value", sign: str = "") -> str:
    """A share in per cent with its interval.

    >>> interval({"value": 0.5, "low": 0.45, "high": 0.55})
    '50 % [45, 55]'
    """
    return f"{100 * line[name]:{sign}.0f} % [{100 * line['low']:{sign}.0f}, {100 * line['high']:{sign}.0f}]"


def table(lines: Iterable[Line]) -> str:
    """Right answers of each model by seed, what training gained, how it answers, and what had been foretold."""
    lines = list(lines)
    rows = []
    for name, title in MODELS.items():
        found = sorted((line for line in lines if line["model"] == name), key=lambda line: line["seed"])
        if found:
            rows.append(
                {"": title}
                | {f"seed {line['seed']}": interval(line) for line in found}
                | {
                    "gain": gain(found),
                    "writes": manner(found),
                    "foretold": ", ".join(foretold(line["forecast"]) for line in found if line["forecast"]),
                    "min": f"{fmean(line['minutes'] for line in found):.0f}",
                }
            )
    whole = {line["seed"]: line["all_minutes"] for line in lines}
    minutes = ", ".join(f"{minutes:.0f} (seed {seed})" for seed, minutes in sorted(whole.items()))
    end = f"Minutes of a whole run: {minutes}. {conditions_of(lines, ('machine', 'date'))}"
    return f"{markdown(rows)}\n{end}"


def gain(found: list[Line]) -> str:
    """By how many points a model is better than its SFT student: mean over the seeds, t interval."""
    gains = [100 * line["against_sft"]["difference"] for line in found if line["against_sft"]]
    return shown(t_interval(gains), sign=True, digits=0) if gains else ""


def manner(found: list[Line]) -> str:
    """How a model works problems out, where it does: the share of its answers, mean over the seeds."""
    shares = {name: fmean(line[name] for line in found) for name in ("equations", "sentences")}
    return ", ".join(f"{name} in {share:.0%}" for name, share in shares.items() if share >= 0.005) or "bare answers"


def draw(lines: list[Line], path: Path) -> None:
    """Right answers of each model, a point with its interval for each seed."""
    figure = new_figure(7.6, 3.4)
    axes = figure.subplots()
    seeds = sorted({line["seed"] for line in lines})
    for line in lines:
        colour = COLOURS[seeds.index(line["seed"])]
        height = list(MODELS).index(line["model"]) + 0.22 * (seeds.index(line["seed"]) - (len(seeds) - 1) / 2)
        axes.plot([100 * line["low"], 100 * line["high"]], [height, height], color=colour, linewidth=2, alpha=0.5)
        axes.plot(100 * line["value"], height, "o", color=colour, markersize=5)
    for seed, colour in zip(seeds, COLOURS, strict=False):
        axes.plot([], [], "o", color=colour, label=f"seed {seed}")
    axes.set_yticks(range(len(MODELS)), [title.replace("*", "") for title in MODELS.values()])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.grid(axis="x", alpha=0.3)
    axes.set_title("Word problems: SmolLM2-135M, held-out problems", fontsize=11)
    axes.set_xlabel("right answers, %, with 95 % intervals over problems")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def foretold(forecast: dict[str, Any]) -> str:
    """The pre-flight's word: that of the trial, or else the verdict of its checks."""
    words = [trial["verdict"] for trial in forecast.get("trials", [])]
    return words[0] if words else forecast["verdict"]


def main(argv: list[str] | None = None) -> int:
    """Keep what runs have measured, and write the table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="output_dir of a pipeline")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="page to write the table to")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="picture to draw")
    args = parser.parse_args(argv)
    try:
        results = Results(KEPT, fields=FIELDS)
        for line in (line for folder in args.runs for line in read_run(folder)):
            results.add(**line)
        lines = read_lines(KEPT, FIELDS)
        text = table(lines)
        if args.plot:
            draw(lines, args.plot)
        if args.write:
            write_between_marks(args.write, text, "words")
    except ValueError as error:
        print(f"words: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
