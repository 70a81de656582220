"""Rows of others: what is missing is missing, and what no file can hold is named with its row."""

import json
from datetime import date

import pyarrow
import pyarrow.parquet
import pytest

from opd_trl.data.adapters import ADAPTERS, RejectedRow
from opd_trl.data.files import DataError
from opd_trl.scripts.data_files import load_splits


NAN = float("nan")
DEEP = '{"prompt": "a", "x": ' + "[" * 100_000 + "]" * 100_000 + "}\n"


@pytest.mark.attack("data", "a missing answer: NaN in a float column or JSONL, null, blank", "counted as `no answer`")
@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.csv"])
def test_a_missing_answer_is_no_answer(name, data, here):
    rows = [{"prompt": "1+1=", "answer": 2.5}, {"prompt": "2+2=", "answer": NAN}, {"prompt": "3+3=", "answer": None}]
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.table({key: [row[key] for row in rows] for key in rows[0]}), name)
    elif name.endswith(".csv"):
        (here / name).write_text("prompt,answer\n1+1=,2.5\n2+2=,NaN\n3+3=,\n")
    else:
        (here / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert data("prepare", name, "--output", "o.jsonl")[0] == 0
    made = [json.loads(line) for line in (here / "o.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in made] == ["2.5"]
    assert json.loads((here / "o.report.json").read_text())["rejected"] == {"no answer": 2}


@pytest.mark.attack("data", "NaN in columns of prompts, contexts and traces", "missing there too")
def test_nan_is_missing_in_every_column(data, here):
    (here / "a.jsonl").write_text('{"prompt": NaN, "solution": "s"}\n{"prompt": "b", "solution": NaN}\n')
    assert data("prepare", "a.jsonl", "--output", "o.jsonl")[0] == 0
    assert json.loads((here / "o.jsonl").read_text())["solution"] is None
    (here / "t.jsonl").write_text('{"prompt": "a", "completion": NaN}\n')
    assert "row 1 has no `completion`" in data("filter", "t.jsonl", "--output", "f.jsonl")[2]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("gsm8k", {"question": "q", "answer": None}),
        ("math500", {"problem": "q", "solution": None, "answer": "2"}),
        ("aime24", {"problem": "q", "solution": "s", "answer": NAN}),
        ("dapo_math_original", {"prompt": [{"content": "q"}], "reward_model": {"ground_truth": NAN}}),
        ("svamp", {"Body": "b", "Question": "q", "Equation": "1+1", "Answer": None}),
    ],
)
def test_no_adapter_writes_nan_or_none_as_an_answer(name, row):
    with pytest.raises(RejectedRow, match=r"^no "):
        ADAPTERS[name].to_row(row)


@pytest.mark.attack("data", "bytes and dates in Parquet, which JSON cannot hold", "column and row are named")
def test_bytes_are_refused_in_words(data, here):
    table = pyarrow.table({"prompt": ["a"], "answer": [b"2"], "when": [date(2026, 1, 1)]})
    pyarrow.parquet.write_table(table, "a.parquet")
    assert "1 answer of type bytes" in data("prepare", "a.parquet", "--output", "o.jsonl")[2]
    columns = ("--columns", "prompt,when")
    assert (
        "1 column 'when' holds date, which JSON cannot"
        in data("prepare", "a.parquet", *columns, "--output", "o.jsonl")[2]
    )
    pyarrow.parquet.write_table(pyarrow.table({"completion": ["a \\boxed{1}"], "x": [b"2"]}), "t.parquet")
    assert "row 1: column 'x' holds bytes" in data("filter", "t.parquet", "--output", "f.jsonl")[2]


@pytest.mark.attack("data", "a row nested 100,000 deep in JSON or JSONL", "one line with file and row")
@pytest.mark.parametrize("name", ["deep.jsonl", "deep.json"])
def test_a_row_nested_without_end_is_named(name, data, here):
    (here / name).write_text('{"prompt": "a"}\n' + DEEP)
    error = data("prepare", name, "--output", "o.jsonl")[2]
    assert f"{name}, line 2" in error
    assert "nested" in error

    class Script:
        dataset_name, dataset_train_split, dataset_test_split, dataset_streaming = name, "train", "test", False

    class Mixture:
        datasets = ()

    with pytest.raises(DataError, match=rf"{name}, line 2.*nested too deep"):
        load_splits(Script, Mixture, evaluate=False)
