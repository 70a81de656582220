import json
import subprocess
import sys

import pytest
from datasets import Dataset

from opd_trl.cli.data import make_parser

from .conftest import read, user, write


def report(path) -> dict:
    return json.loads(path.read_text())


def test_a_file_is_mapped_split_and_reported(data, here):
    write(
        here / "mine.jsonl", [{"q": f"What is {i}+1?", "a": i + 1, "id": i} for i in range(60)] + [{"q": "", "a": 0}]
    )
    status, out, _ = data(
        "prepare",
        "mine.jsonl",
        "--columns",
        "prompt=q,answer=a",
        "--output",
        "d/x.jsonl",
        "--parts",
        "sft=0.5,opd=0.3",
    )
    assert status == 0
    parts = {name: read(here / "d" / f"x.{name}.jsonl") for name in ("sft", "opd")}
    assert parts["sft"][0].keys() == {"prompt", "answer"}
    assert report(here / "d" / "x.report.json") == {
        "read": 61,
        "kept": 60,
        "rejected": {"empty prompt": 1},
        "contaminated": [],
        "settings": {
            "source": "mine.jsonl",
            "columns": {"prompt": "q", "answer": "a"},
            "require_box": None,
            "decontaminate": [],
            "ngram": 13,
        },
        "files": {"x.sft.jsonl": len(parts["sft"]), "x.opd.jsonl": len(parts["opd"])},
        "left_over": 60 - len(parts["sft"]) - len(parts["opd"]),
        "split": {"parts": {"sft": 0.5, "opd": 0.3}, "salt": "", "max_rows": None},
    }
    assert "rejected: empty prompt" in out
    assert not (here / "d" / "x.jsonl").exists()


def test_own_columns_are_found_without_a_mapping(data, here):
    rows = [{"prompt": user("1+1?"), "answer": "2", "solution": "\\boxed{2}", "id": 1}]
    Dataset.from_list(rows).to_parquet(here / "mine.parquet")
    assert data("prepare", "mine.parquet", "--output", "x.jsonl", "--require-box")[0] == 0
    assert read(here / "x.jsonl") == [{name: rows[0][name] for name in ("prompt", "answer", "solution")}]


def test_an_instruction_stands_below_the_question_and_does_not_change_the_split(data, here):
    write(here / "mine.jsonl", [{"prompt": f"{i}+1?"} for i in range(30)])
    for name, more in (("a", []), ("b", ["--instruction", "Be brief."])):
        assert data("prepare", "mine.jsonl", "--output", f"{name}.jsonl", "--parts", "sft=0.5", *more)[0] == 0
    plain, told = read(here / "a.sft.jsonl"), read(here / "b.sft.jsonl")
    assert [f"{row['prompt'][0]['content']}\n\nBe brief." for row in plain] == [
        row["prompt"][0]["content"] for row in told
    ]


def test_fewer_rows_are_the_same_ones_in_any_order(data, here):
    rows = [{"prompt": f"{i}+1?"} for i in range(30)]
    for name, ordered in (("a", rows), ("b", rows[::-1])):
        write(here / f"{name}.jsonl", ordered)
        data("prepare", f"{name}.jsonl", "--output", f"{name}.out.jsonl", "--max-rows", "7")
    a, b = read(here / "a.out.jsonl"), read(here / "b.out.jsonl")
    assert len(a) == 7
    assert a == b[::-1]


def test_rows_of_an_evaluation_file_are_left_out_and_listed(data, here):
    write(here / "test.jsonl", [{"prompt": user("9+1?")}])
    write(here / "mine.jsonl", [{"prompt": f"{i}+1?"} for i in range(10)])
    assert data("prepare", "mine.jsonl", "--output", "x.jsonl", "--decontaminate", "test.jsonl")[0] == 0
    assert len(read(here / "x.jsonl")) == 9
    assert report(here / "x.report.json")["contaminated"] == [
        {"row": 10, "found_in": "test.jsonl row 1", "words": "9+1?"}
    ]


def test_an_evaluation_set_is_named_with_its_split(data, here, monkeypatch):
    asked = []

    def hub(*place, **options):
        asked.append((*place, options["split"]))
        return Dataset.from_list([{"question": "9+1?", "answer": "#### 10"}, {"question": "8+1?", "answer": "9"}])

    monkeypatch.setattr("datasets.load_dataset", hub)
    write(here / "mine.jsonl", [{"prompt": f"{i}+1?"} for i in range(10)])
    assert data("prepare", "mine.jsonl", "--output", "x.jsonl", "--decontaminate", "gsm8k:test")[0] == 0
    assert asked == [("openai/gsm8k", "main", "test")]
    assert len(read(here / "x.jsonl")) == 9  # a row that the adapter rejects is no evaluation row


def test_a_named_data_set_is_prepared_from_a_copy(data, here):
    write(here / "copy.jsonl", [{"question": f"{i}+1?", "answer": f"So.\n#### {i + 1}"} for i in range(3)])
    assert data("prepare", "gsm8k", "--path", "copy.jsonl", "--output", "x.jsonl")[0] == 0
    assert [row["answer"] for row in read(here / "x.jsonl")] == ["1", "2", "3"]


def test_real_training_problems_are_disjoint_from_the_test_problems(data, here, real):
    command = ["prepare", "gsm8k", "--path", real("gsm8k/train.jsonl"), "--output", "x.jsonl"]
    write(
        here / "test.jsonl",
        [{"prompt": row["question"]} for row in read(real("gsm8k/test.jsonl"))],
    )
    status, _, _ = data(*command, "--parts", "sft=0.4,rlvr=0.3,opd=0.3", "--decontaminate", "test.jsonl")
    assert status == 0
    made = report(here / "x.report.json")
    assert made["read"] == 7473
    assert sum(made["files"].values()) == made["kept"] > 7400
    assert len(made["contaminated"]) == made["rejected"].get("in an evaluation set", 0)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["gsm9k"], "did you mean gsm8k"),
        (["none.jsonl"], "none.jsonl does not exist"),
        (["text.txt"], "expected one of .jsonl"),
        (["empty.jsonl"], "empty.jsonl is empty"),
        (["blank.jsonl"], "blank.jsonl has no rows"),
        (["latin.jsonl"], "latin.jsonl, line 2 is not UTF-8"),
        (["broken.jsonl"], "broken.jsonl, line 2 is not JSON"),
        (["other.jsonl"], "row 1 has no column 'prompt'; it has 'question'. Map your names with --columns"),
        (["uneven.jsonl"], "row 2 has no column 'answer'"),
        (["good.jsonl", "--columns", "prompt=q"], "row 1 has no column 'q'"),
        (["good.jsonl", "--split", "train"], "--split is for data sets by name"),
        (["gsm8k", "--columns", "prompt"], "--columns is for files"),
        (["good.jsonl", "--parts", "sft=2"], "is not a part"),
        (["good.jsonl", "--parts", "a=0.001"], "no row falls into a"),
        (["good.jsonl", "--max-rows", "0"], "--max-rows must be at least 1"),
        (["good.jsonl", "--require-box"], "'solution', which the rows do not have"),
        (["good.jsonl", "--decontaminate", "other.jsonl"], "other.jsonl, row 1 has no column 'prompt'"),
        (["good.jsonl", "--decontaminate", "good.jsonl"], "no row is left of 1 (1 in an evaluation set)"),
        (["good.jsonl", "--decontaminate", "good.jsonl", "--ngram", "2"], "--ngram 2: ngram must be at least"),
        (["good.jsonl", "--output", "x.parquet"], "must end in .jsonl"),
        (["good.jsonl", "--output", "good.jsonl"], "good.jsonl exists and is not overwritten"),
        (["good.jsonl", "--output", "old.jsonl"], "old.report.json exists"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(argv, message, data, here):
    (here / "text.txt").write_text("text")
    (here / "empty.jsonl").touch()
    (here / "blank.jsonl").write_text("\n\n")
    (here / "latin.jsonl").write_bytes(b'{"prompt": "a"}\n{"prompt": "\xe9"}\n')
    (here / "broken.jsonl").write_text('{"prompt": "a"}\n{"prompt"\n')
    (here / "old.report.json").write_text("{}")
    write(here / "other.jsonl", [{"question": "a"}])
    write(here / "good.jsonl", [{"prompt": "a"}])
    write(here / "uneven.jsonl", [{"prompt": "a", "answer": "1"}, {"prompt": "b"}])
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    more = [] if "--output" in argv else ["--output", "x.jsonl"]
    status, _, error = data("prepare", *argv, *more)
    assert status == 2
    assert error.startswith("opd-trl data prepare: error: ")
    assert message in error
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["prepare", "x", "--output", "y.jsonl", "--columns", "answer=a"], "prompt among them"),
        (["prepare", "x", "--output", "y.jsonl", "--columns", "prompt=a,prompt=b"], "each name once"),
        (["procedural", "--task", "t", "--output", "y.jsonl", "--options", "{"], "is not JSON"),
        (["procedural", "--task", "t", "--output", "y.jsonl", "--options", "[]"], "is not a JSON object"),
        (["prepare", "x", "--out", "y.jsonl"], "required: --output"),
        ([], "required: COMMAND"),
    ],
)
def test_a_wrong_command_line_is_refused(argv, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        make_parser().parse_args(argv)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_the_list_names_every_data_set(data):
    status, out, _ = data("list")
    assert status == 0
    assert "open-thoughts/OpenThoughts-114k" in out
    assert "gated" in out


@pytest.mark.parametrize("command", ["", "list", "prepare", "procedural", "traces", "filter"])
def test_help_explains_every_option_and_costs_nothing(command, capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args([*command.split(), "--help"])
    text = capsys.readouterr().out
    options = [line for line in text.split("options:")[-1].split("\n  --") if line.startswith(tuple("abcdefgh"))]
    assert all("default" in line or "required" in line for line in options)
    heavy = "{'torch', 'datasets', 'transformers'}"
    code = f"import sys, opd_trl.cli.data as data; data.make_parser(); print({heavy} & set(sys.modules))"
    if not command:
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
