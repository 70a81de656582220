"""Answers before and after a training, task by task: the page docs/gallery.md.

    opd-trl demo
    python benchmarks/internalise.py --seed 0 --results runs/gallery/lines.jsonl --output runs/gallery
    opd-trl pipeline --config math/pipeline_smollm2
    python benchmarks/gallery.py --demo runs/demo --rules runs/gallery --words runs/pipeline_smollm2
    python benchmarks/gallery.py --write docs/gallery.md       # from what is kept of them in results/gallery.jsonl

Shown are the first questions of each held-out set, whatever came of them.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import fmean

from internalise import Cell, cell_of, folder_of
from internalise_rules import QUESTIONS, read_prompts
from lines import FOLDER, Line, Results, conditions_of, read_lines, write_between_marks

from opd_trl.data.files import read_jsonl
from opd_trl.models.provenance import conditions
from opd_trl.reproduce.tables import markdown
from opd_trl.suites.problems import read_problems


KEPT = FOLDER / "gallery.jsonl"
SHOWN = 3
WHO = ("before", "teacher", "after")
OBJECTIVE = "forward_kl"
RULES = ("json", "bullets")  # the persona is the demo's
WORDS = ("opd", "opd_other")
READER = "the same model, reading the rule and four worked examples"
#: Task -> its heading, the teacher, and what is counted.
TASKS = {
    "pirate": ("A persona", READER, 'one finished sentence after "Arr,"'),
    "json": ("A format: JSON", READER, 'an object with one key, "answer"'),
    "bullets": ("A format: bullet points", READER, "up to four finished points"),
    "opd": ("Word problems: a teacher of the same style", "the student after GRPO", "right answers"),
    "opd_other": ("Word problems: a better teacher of another style", "SFT on another style", "right answers"),
}


def of_demo(home: Path) -> Line:
    """What `opd-trl demo` left in its folder."""
    result = json.loads((home / "result.json").read_text(encoding="utf-8"))
    rows = json.loads((home / "answers.json").read_text(encoding="utf-8"))
    return {
        "task": "pirate",
        "rows": [{name: row[name] for name in ("question", *WHO)} for row in rows[:SHOWN]],
        "share": {who: result[f"compliance_{who}"] for who in WHO},
        "questions": result["held_out_questions"],
        "minutes": result["wall_seconds"] / 60,
        "command": "opd-trl demo",
    }


def of_rules(home: Path) -> list[Line]:
    """What cells of `internalise.py` left, of each rule of which a student was trained; ValueError: of none."""
    lines = {cell_of(line): line for line in read_lines(home / "lines.jsonl")}
    trained = [rule for rule in RULES if (rule, OBJECTIVE, 0) in lines]
    if not trained:
        raise ValueError(f"{home}/lines.jsonl has no cell of {OBJECTIVE}. Run benchmarks/internalise.py.")
    return [of_rule(home, rule, lines) for rule in trained]


def of_rule(home: Path, rule: str, lines: dict[Cell, Line]) -> Line:
    """The student before, the teacher, and the student trained with seed 0."""
    cells = dict(zip(WHO, [(rule, name, 0) for name in ("before", "teacher", OBJECTIVE)], strict=True))
    texts = {
        who: json.loads((folder_of(home, cell) / "answers.json").read_text(encoding="utf-8"))["greedy"]
        for who, cell in cells.items()
    }
    questions = [prompt[-1]["content"] for prompt in read_prompts(QUESTIONS)[:SHOWN]]
    return {
        "task": rule,
        "rows": [{"question": q, **{who: texts[who][i] for who in WHO}} for i, q in enumerate(questions)],
        "share": {who: fmean(lines[cell]["greedy"]) for who, cell in cells.items()},
        "questions": len(texts["after"]),
        "minutes": lines[cells["after"]]["train_seconds"] / 60,
        "command": f"python benchmarks/internalise.py --rule {rule} --objective {OBJECTIVE} --seed 0",
    }


def of_words(home: Path, name: str) -> Line:
    """What evaluations of the pipeline left: of the SFT student, the teacher, and the student after OPD from it."""
    folders = {"before": "eval_sft", "teacher": {"opd": "eval_teacher", "opd_other": "eval_other"}[name]}
    folders["after"] = f"eval_{name}"
    samples = {
        who: {sample["problem"]: sample for sample in read_jsonl(home / folder / "samples.jsonl")}
        for who, folder in folders.items()
    }
    asked = [
        x for x in read_problems(str(home / "words" / "test.jsonl"), answers=True).problems if x.id in samples["after"]
    ][:SHOWN]
    stages = json.loads((home / "pipeline.json").read_text(encoding="utf-8"))["stages"]
    return {
        "task": name,
        "rows": [
            {"question": x.messages[-1]["content"], **{who: samples[who][x.id]["text"] for who in WHO}} for x in asked
        ],
        "share": {who: fmean(sample["correct"] for sample in samples[who].values()) for who in WHO},
        "questions": len(samples["after"]),
        "minutes": stages[name]["seconds"] / 60,
        "command": "opd-trl pipeline --config math/pipeline_smollm2",
    }


def page(lines: list[Line]) -> str:
    """All tasks, each with its answers."""
    found = {line["task"]: line for line in lines}
    parts = [summary(found)]
    for name, (title, teacher, counted) in TASKS.items():
        if name in found:
            line = found[name]
            rows = [{"": row["question"]} | {who: quoted(row[who]) for who in WHO} for row in line["rows"]]
            told = f"Teacher: {teacher}. Counted: {counted}. `{line['command']}`"
            parts.append(f"### {title}\n\n{told}\n\n{markdown(rows)}")
    return "\n".join([*parts, conditions_of(lines, ("machine", "date"))])


def summary(found: dict[str, Line]) -> str:
    """One row for each task: what each of the three does, of how many questions, and in how many minutes."""
    return markdown(
        {"": title}
        | {who: f"{found[name]['share'][who]:.0%}" for who in WHO}
        | {"questions": str(found[name]["questions"]), "minutes of training": f"{found[name]['minutes']:.0f}"}
        for name, (title, *_) in TASKS.items()
        if name in found
    )


def quoted(text: str) -> str:
    """A text in one cell of a table.

    >>> quoted("- a\\n- b")
    '- a<br>- b'
    """
    return text.strip().replace("\\", "\\\\").replace("\n", "<br>")


def main(argv: list[str] | None = None) -> int:
    """Keep what runs wrote, and write the page; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, metavar="DIR", help="output of opd-trl demo")
    parser.add_argument("--rules", type=Path, metavar="DIR", help="--output of internalise.py, with lines.jsonl")
    parser.add_argument("--words", type=Path, metavar="DIR", help="output_dir of the pipeline math/pipeline_smollm2")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="page to write to")
    args = parser.parse_args(argv)
    try:
        lines = [of_demo(args.demo)] if args.demo else []
        lines += of_rules(args.rules) if args.rules else []
        lines += [of_words(args.words, name) for name in WORDS] if args.words else []
        made = conditions()
        where = {"machine": made["machine"], "date": made["date"][:10]}
        results = Results(KEPT, where=where, fields=("task",))
        for line in lines:
            results.add(**line)
        text = page(read_lines(KEPT, ("task",)))
        if args.write:
            write_between_marks(args.write, text, "gallery")
    except (ValueError, OSError) as error:
        print(f"gallery: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
