import json

import pytest
from datasets import load_dataset

from opd_trl.data import traces
from opd_trl.data.files import DataError
from opd_trl.data.toy_task import save
from opd_trl.models.loading import load_model, load_tokenizer
from opd_trl.models.sampling import Completion, Sampling
from opd_trl.models.transformers_engine import make_sampler, token_ids
from tests.data.conftest import read, user, write


SETTINGS = traces.TraceSettings(model="m", batch_size=3, seed=1, samples=2)
ROWS = [{"prompt": user(f"{i}+1?"), "answer": str(i + 1)} for i in range(5)]


def fake(batch: list, seed: int) -> list[Completion]:
    """A completion that tells prompt, seed and place in the batch."""
    return [Completion(f"{prompt[-1]['content']} {seed} {i}", 9, i != 1) for i, prompt in enumerate(batch)]


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("toy")
    save(folder, seed=0)
    return str(folder)


def test_traces_have_the_shape_of_sft_and_keep_the_columns(tmp_path):
    report = traces.write_traces(ROWS, [row["prompt"] for row in ROWS], fake, tmp_path / "t.jsonl", SETTINGS)
    rows = read(tmp_path / "t.jsonl")
    assert len(rows) == 10
    assert rows[2] == {
        "prompt": user("1+1?"),
        "answer": "2",
        "completion": [{"role": "assistant", "content": "1+1? 1000003 2"}],
        "truncated": False,
    }
    assert (report["traces"], report["truncated"]) == (10, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.jsonl"]


@pytest.mark.parametrize("cut", [0, 20])
def test_a_run_that_was_ended_goes_on_and_gives_the_same_rows(tmp_path, cut):
    prompts = [row["prompt"] for row in ROWS]
    traces.write_traces(ROWS, prompts, fake, tmp_path / "whole.jsonl", SETTINGS)
    calls = []

    def ended(batch, seed):
        calls.append(seed)
        if len(calls) == 3:
            raise Stopped
        return fake(batch, seed)

    with pytest.raises(Stopped):
        traces.write_traces(ROWS, prompts, ended, tmp_path / "t.jsonl", SETTINGS)
    part = tmp_path / "t.jsonl.part"
    part.write_bytes(part.read_bytes()[: len(part.read_bytes()) - cut])
    seen = []
    traces.write_traces(ROWS, prompts, ended, tmp_path / "t.jsonl", SETTINGS, progress=seen.append)
    assert (tmp_path / "t.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    assert seen[0] == (6 if cut == 0 else 3)


def test_other_settings_do_not_go_on_from_an_unfinished_run(tmp_path):
    prompts = [row["prompt"] for row in ROWS]
    output = tmp_path / "t.jsonl"

    def ended(batch, seed):
        raise Stopped

    with pytest.raises(Stopped):
        traces.write_traces(ROWS, prompts, ended, output, SETTINGS)
    other = traces.TraceSettings(**{**vars(SETTINGS), "temperature": 1.0})
    with pytest.raises(DataError, match=r"other settings: temperature \(0.3, now 1.0\).*--overwrite"):
        traces.write_traces(ROWS, prompts, fake, output, other)
    traces.write_traces(ROWS, prompts, fake, output, other, restart=True)
    assert len(read(output)) == 10


def test_a_part_of_unknown_origin_is_not_continued(tmp_path):
    (tmp_path / "t.jsonl.part").write_text("{}\n")
    with pytest.raises(DataError, match="who wrote it is unknown"):
        traces.write_traces([], [], fake, tmp_path / "t.jsonl", SETTINGS)


def test_the_writer_reads_what_a_teacher_in_training_reads():
    settings = traces.TraceSettings(model="m", privileged={"builder": "hint", "column": "tip"})
    rows = [{"prompt": user("1+1?"), "tip": "count"}]
    assert traces.check_rows(rows, settings) == [user("1+1?\n\nA hint, for you alone: count")]
    with pytest.raises(DataError, match="'tip' is empty in row 2"):
        traces.check_rows([*rows, {"prompt": user("2+2?")}], settings)
    with pytest.raises(DataError, match="row 1 has no `prompt`"):
        traces.check_rows([{"question": "1+1?"}], SETTINGS)
    with pytest.raises(DataError, match="there are no prompts"):
        traces.check_rows([], SETTINGS)


def test_sampling_is_fixed_by_its_seed(model_path):
    sample = make_sampler(load_model(model_path), load_tokenizer(model_path), Sampling(1.0, 1.0, 0, 6))
    prompts = [user("1"), user("1+2+3"), "plain text"]
    first = sample(prompts, 1)
    assert first == sample(prompts, 1)
    assert first != sample(prompts, 2)


def test_padding_does_not_change_a_greedy_completion_and_one_without_an_end_is_cut_off(model_path):
    sample = make_sampler(load_model(model_path), load_tokenizer(model_path), Sampling(0, 1.0, 0, 5))
    (alone,) = sample([user("1")], 0)
    assert sample([user("1"), user("1+2+3+4+5+6")], 0)[0] == alone
    assert not alone.finished


def test_the_chat_template_takes_its_arguments_and_must_be_there(model_path):
    model, tokenizer = load_model(model_path), load_tokenizer(model_path)
    tokenizer.chat_template = "{{ messages[0]['content'] }}{{ mark }}"
    assert token_ids(tokenizer, user("1"), {"mark": "!"}) == tokenizer("1!")["input_ids"]
    assert token_ids(tokenizer, "1", None) == tokenizer("1")["input_ids"]
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        make_sampler(model, tokenizer, Sampling(0, 1.0, 0, 5))([user("1")], 0)


def test_the_command_writes_traces_that_sft_can_read(data, here, model_path):
    write(here / "rows.jsonl", [{"prompt": user(f"{i}+1?"), "tip": "count"} for i in range(3)])
    command = ["traces", "--model", model_path, "--data", "rows.jsonl", "--output", "t.jsonl", "--max-new-tokens", "4"]
    hint = ["--privileged-builder", "hint", "--privileged-context-column", "tip"]
    status, out, _ = data(*command, *hint)
    assert status == 0
    assert "Wrote 3 traces" in out
    rows = load_dataset("json", data_files="t.jsonl", split="train")
    assert rows[0]["prompt"] == user("0+1?")
    assert rows[0]["completion"][0]["role"] == "assistant"
    report = json.loads((here / "t.report.json").read_text())
    assert report["settings"]["temperature"] == 0.3
    assert report["settings"]["privileged"] == {"builder": "hint", "column": "tip"}
    assert data(*command)[0] == 2


def test_the_command_begins_again_where_that_is_allowed(data, here, model_path):
    write(here / "rows.jsonl", [{"prompt": user("1+1?")}])
    (here / "t.jsonl.part").write_text("{}\n")
    (here / "t.jsonl.part.json").write_text('{"model": "another"}')
    command = ["traces", "--model", model_path, "--data", "rows.jsonl", "--output", "t.jsonl", "--max-new-tokens", "2"]
    status, _, error = data(*command)
    assert status == 2
    assert "was begun with other settings: model ('another'" in error
    assert data(*command, "--overwrite")[0] == 0
    assert len(read(here / "t.jsonl")) == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model", "./none"], "--model ./none does not exist"),
        (["--data", "none.jsonl"], "none.jsonl does not exist"),
        (["--samples", "0"], "--samples must be at least 1"),
        (["--temperature", "-1"], "--temperature must be 0 or more"),
        (["--top-p", "0"], "--top-p above 0"),
        (["--privileged-builder", "hint"], "'privileged_context' is empty in row 1"),
        (["--privileged-context-file", "none.txt"], "'none.txt' does not exist"),
        (["--output", "t.json"], "must end in .jsonl"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(argv, message, data, here, model_path):
    write(here / "rows.jsonl", [{"prompt": user("1+1?")}])
    given = {"--model": model_path, "--data": "rows.jsonl", "--output": "t.jsonl", **dict([argv])}
    status, _, error = data("traces", *(text for pair in given.items() for text in pair))
    assert status == 2
    assert message in error
    assert [path.name for path in here.iterdir()] == ["rows.jsonl"]
