"""The gallery: the first answers of each task, from what its commands leave in their folders."""

import json

import gallery
from internalise_rules import QUESTIONS, read_prompts

from opd_trl.suites.problems import read_problems

from .lines import written


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def demo(home):
    shares = {f"compliance_{who}": share for who, share in zip(gallery.WHO, (0.0, 0.9, 0.8), strict=True)}
    write_json(home / "result.json", shares | {"held_out_questions": 64, "wall_seconds": 360.0})
    row = {"question": "Why?", "before": "So.", "teacher": "Arr, so.", "after": "Arr,\nso be it."}
    write_json(home / "answers.json", [row] * 5)
    return home


def rules(home):
    cells = [("json", name, 0) for name in ("before", "teacher", gallery.OBJECTIVE)]
    lines = []
    for cell, right in zip(cells, (0, 1, 1), strict=True):
        write_json(gallery.folder_of(home, cell) / "answers.json", {"greedy": [f"{cell[1]} {i}" for i in range(4)]})
        line = dict(zip(("rule", "objective", "seed"), cell, strict=True))
        lines.append(line | {"greedy": [right] * 3 + [0], "train_seconds": 120.0})
    write_lines(home / "lines.jsonl", lines)
    return home


def words(home):
    rows = [{"prompt": [{"role": "user", "content": f"{i} and {i}?"}], "answer": str(2 * i)} for i in range(5)]
    write_lines(home / "words" / "test.jsonl", rows)
    ids = [problem.id for problem in read_problems(str(home / "words" / "test.jsonl"), answers=True).problems]
    for folder, right in (("eval_sft", False), ("eval_teacher", True), ("eval_opd", True)):
        samples = [{"problem": x, "text": f"{folder} {i}", "correct": right} for i, x in enumerate(ids)]
        write_lines(home / folder / "samples.jsonl", samples[1:])
    write_json(home / "pipeline.json", {"stages": {"opd": {"seconds": 400.0}}})
    return home


def test_a_task_shows_its_first_questions_and_the_share_of_all(tmp_path):
    line = gallery.of_demo(demo(tmp_path / "demo"))
    assert (len(line["rows"]), line["share"]["after"], line["minutes"]) == (gallery.SHOWN, 0.8, 6.0)
    (line,) = gallery.of_rules(rules(tmp_path / "rules"))
    assert line["task"] == "json"
    first = read_prompts(QUESTIONS)[0][-1]["content"]
    assert line["rows"][0] == {
        "question": first,
        "before": "before 0",
        "teacher": "teacher 0",
        "after": "forward_kl 0",
    }
    assert (line["share"]["after"], line["questions"], line["minutes"]) == (0.75, 4, 2.0)


def test_problems_are_those_that_were_evaluated_and_answers_belong_to_them(tmp_path):
    line = gallery.of_words(words(tmp_path), "opd")
    assert line["rows"][0] == {
        "question": "1 and 1?", "before": "eval_sft 1", "teacher": "eval_teacher 1", "after": "eval_opd 1",
    }  # fmt: skip
    assert (line["questions"], line["share"]) == (4, {"before": 0.0, "teacher": 1.0, "after": 1.0})


def test_the_page_quotes_every_answer_in_one_cell(tmp_path):
    line = gallery.of_demo(demo(tmp_path)) | {"machine": "a machine", "date": "2026-11-30"}
    text = gallery.page([line])
    assert "| A persona | 0% | 90% | 80% | 64 | 6 |" in text
    assert text.count("| Why? | So. | Arr, so. | Arr,<br>so be it. |") == gallery.SHOWN
    assert text.endswith("Conditions: machine a machine; date 2026-11-30.")


def test_what_is_missing_is_named(tmp_path, capsys):
    assert gallery.main(["--demo", str(tmp_path)]) == 2
    assert "result.json" in capsys.readouterr().err
    assert gallery.main(["--rules", str(tmp_path)]) == 2
    assert "has no cell of forward_kl. Run benchmarks/internalise.py" in capsys.readouterr().err


def test_the_page_shows_the_answers_that_are_kept_here():
    lines = gallery.read_lines(gallery.KEPT, ("task",))
    assert written("gallery.md", "gallery") == gallery.page(lines).strip(), (
        "python benchmarks/gallery.py --write docs/gallery.md"
    )
