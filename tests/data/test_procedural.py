import json

import pytest

from opd_trl.data.files import DataError
from opd_trl.data.procedural import generate, procedural_score
from tests.data.conftest import read


def test_a_task_without_the_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(DataError, match=r"pip install 'opd_trl\[procedural\]'"):
        generate("chain_sum", count=1, seed=0)


class TestWithReasoningGym:
    @pytest.fixture(autouse=True)
    def library(self):
        pytest.importorskip("reasoning_gym", reason="reasoning-gym is an extra")

    def test_rows_are_fixed_by_the_seed(self):
        first, _ = generate("chain_sum", count=6, seed=1)
        assert first == generate("chain_sum", count=6, seed=1)[0]
        assert first != generate("chain_sum", count=6, seed=2)[0]

    def test_the_tasks_own_score_is_a_reward_of_rows_from_a_file(self):
        rows, _ = generate("chain_sum", count=3, seed=1)
        columns = {name: [row[name] for row in rows] for name in ("answer", "task", "metadata")}
        texts = [f"\\boxed{{{columns['answer'][0]}}}", columns["answer"][1], "\\boxed{no}"]
        assert procedural_score(texts, **columns) == [1.0, 1.0, 0.0]
        messages = [[{"role": "assistant", "content": text}] for text in texts]
        assert procedural_score(messages, **columns, prompts=["p"] * 3) == [1.0, 1.0, 0.0]

    def test_duplicates_are_dropped_and_counted(self):
        rows, duplicates = generate(
            "chain_sum", count=200, seed=0, options={"min_terms": 2, "max_terms": 2, "max_digits": 1}
        )
        assert len(rows) + duplicates == 200
        assert duplicates > 10

    @pytest.mark.parametrize(
        ("task", "options", "message"),
        [
            ("chain_sums", {}, "did you mean chain_sum"),
            ("chain_sum", {"min_term": 2}, "does not take"),
            ("chain_sum", {"min_terms": 9, "max_terms": 2}, "does not take"),
            ("arc_agi", {}, "cannot be scored from a file"),
        ],
    )
    def test_what_does_not_exist_is_refused(self, task, options, message):
        with pytest.raises(DataError, match=message):
            generate(task, count=2, seed=0, options=options)
        with pytest.raises(DataError, match="at least 1, got 0"):
            generate("chain_sum", count=0, seed=0)

    def test_the_command_writes_disjoint_parts(self, data, here):
        command = ["procedural", "--task", "chain_sum", "--count", "60", "--output", "sums.jsonl"]
        status, out, _ = data(*command, "--parts", "sft=0.5,test=0.5")
        assert status == 0
        sft, test = read(here / "sums.sft.jsonl"), read(here / "sums.test.jsonl")
        assert not {row["prompt"][0]["content"] for row in sft} & {row["prompt"][0]["content"] for row in test}
        assert sft[0]["prompt"][0]["content"].endswith("into \\boxed{}.")
        assert json.loads((here / "sums.report.json").read_text())["settings"]["task"] == "chain_sum"
        assert "sums.sft.jsonl" in out
