import random
import time

import pytest

from opd_trl.data.files import DataError
from opd_trl.data.filtering import TraceFilter, filter_rows, repeated_block, repeated_line
from opd_trl.evaluation import math_accuracy

from .conftest import read, user, write


WORDS = ["so", "then", "we", "have", "it", "that", "the", "sum", "of", "two", "odd", "numbers", "must", "be", "even"]


def prose(words: int, *, seed: int = 0) -> str:
    draw = random.Random(seed)
    return " ".join(f"{draw.choice(WORDS)}{draw.randrange(1000)}" for _ in range(words))


def trace(text: str, **columns) -> dict:
    return {"prompt": user("1+1?"), "completion": [{"role": "assistant", "content": text}], **columns}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("It is \\boxed{2}.", None),
        (prose(2000) + " \\boxed{2}", None),
        ("", "empty"),
        (" \n", "empty"),
        ("It is 2.", "no box"),
        ("It is \\boxed{2", "unclosed box"),
        ("It is \\boxed{}.", "empty box"),
        ("Wait, let me check it again.\n" * 5 + "\\boxed{2}", "repeated line"),
        ("Wait, let me check it again.\n" * 4 + "\\boxed{2}", None),
        ("Hm, wait.\n" * 9 + "\\boxed{2}", None),  # lines of fewer than 20 characters
        ((prose(20) + " ") * 5 + "\\boxed{2}", "repeated block"),
        ("a" * 600 + "\\boxed{2}", "repeated block"),
        ("a" * 450 + "\\boxed{2}", None),
    ],
)
def test_unfit_traces_are_rejected_with_a_reason(text, reason):
    assert TraceFilter().reason(text) == reason


def test_a_block_counts_only_at_places_that_do_not_overlap():
    block = prose(40)[:100]
    for copies in (4, 5):
        text = "".join(block + prose(30, seed=i + 1) for i in range(copies))
        assert repeated_block(text) == (copies == 5)
    assert not repeated_block("ab" * 249)
    assert repeated_block("ab" * 250)


def test_blocks_are_found_wherever_they_start_and_in_any_script():
    for offset in range(0, 100, 7):
        assert repeated_block("x" * offset + (prose(10)[:60] + "中文字符 π ∑ 😀 ") * 12)


def test_the_counts_of_a_plain_search_agree():
    draw = random.Random(1)
    for _ in range(200):
        text = "".join(draw.choice("ab") for _ in range(draw.randrange(60)))
        plain = any(text.count(text[i : i + 4]) >= 3 for i in range(len(text) - 3))
        assert repeated_block(text, block_chars=4, times=3) == plain
        lines = text.replace("b", "\n").split("\n")
        assert repeated_line(text.replace("b", "\n"), min_chars=2, times=2) == any(
            len(line) >= 2 and lines.count(line) >= 2 for line in lines
        )


@pytest.mark.parametrize("text", ["a" * 10**7, "ab\n" * 3_000_000, "x" * 20 + "\n", "\\boxed{" * 10**6])
def test_ten_megabytes_take_seconds(text):
    text = (text * (10**7 // len(text) + 1))[: 10**7] if len(text) < 100 else text
    start = time.process_time()
    TraceFilter().reason(text)
    assert time.process_time() - start < 20


def test_ten_megabytes_of_text_without_repetition_take_seconds():
    text = prose(1_200_000)[: 10**7]
    start = time.process_time()
    assert TraceFilter(need_box=False).reason(text) is None
    assert time.process_time() - start < 20


def test_reasons_are_counted_and_the_order_stays():
    rows = [trace("\\boxed{2}", i=0), trace("no"), trace("\\boxed{3}", i=2), trace("\\boxed{2}", truncated=True)]
    kept, report = filter_rows(rows, TraceFilter())
    assert [row["i"] for row in kept] == [0, 2]
    assert report == {"read": 4, "kept": 2, "rejected": {"no box": 1, "truncated": 1}}


def test_wrong_answers_are_rejected_where_that_is_asked():
    rows = [trace("\\boxed{1/2}", answer="0.5"), trace("\\boxed{3}", answer="2"), {**trace(""), "completion": "x"}]
    kept, report = filter_rows(rows, TraceFilter(), judge=math_accuracy)
    assert kept == rows[:1]
    assert report["rejected"] == {"wrong answer": 1, "no box": 1}
    with pytest.raises(DataError, match=r"row 2 has no `answer`"):
        filter_rows([rows[0], trace("\\boxed{2}")], TraceFilter(), judge=math_accuracy)


def test_an_answer_that_cannot_be_read_is_no_wrong_answer():
    rows = [trace("\\boxed{2}", answer="2"), trace("\\boxed{2}", answer="?")]
    _, report = filter_rows(rows, TraceFilter(), judge=lambda texts, answers: [1.0, None])
    assert report["rejected"] == {"answer of the row cannot be read": 1}


def test_nothing_left_and_no_completion_are_errors():
    with pytest.raises(DataError, match=r"no trace of 2 passes \(2 no box\)"):
        filter_rows([trace("a"), trace("b")], TraceFilter())
    with pytest.raises(DataError, match="row 1 has no `completion`"):
        filter_rows([{"prompt": "1?"}], TraceFilter())


def test_the_command_writes_what_passes_and_a_report_beside_it(data, here):
    rows = [trace("\\boxed{2}", answer="2"), trace("\\boxed{3}", answer="2"), trace("no", answer="2")]
    write(here / "traces.jsonl", rows)
    status, out, _ = data("filter", "traces.jsonl", "--output", "sft.jsonl", "--check-answer")
    assert status == 0
    assert read(here / "sft.jsonl") == rows[:1]
    report = read_report(here / "sft.report.json")
    assert report["rejected"] == {"wrong answer": 1, "no box": 1}
    assert (report["settings"]["block_chars"], report["settings"]["check_answer"]) == (100, True)
    assert "rejected: wrong answer" in out
    status, _, error = data("filter", "traces.jsonl", "--output", "sft.jsonl")
    assert status == 2
    assert "exists and is not overwritten" in error
    assert data("filter", "traces.jsonl", "--output", "sft.jsonl", "--no-box", "--overwrite")[0] == 0
    assert len(read(here / "sft.jsonl")) == 3


def read_report(path):
    import json

    return json.loads(path.read_text())
