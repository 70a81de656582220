"""The parts of the benchmarks, without a run: processes, groups of cases, lengths, searches, cells, commands."""

import os
import time
from pathlib import Path

import gpu_math
import gpu_memory
import loss
import pytest
import steps
import torch
from children import OUT_OF_MEMORY, ChildError, Children, what_failed
from gpu_models import SHAPES, build_tokenizer
from lines import Deadline, Results


NEVER, PAST = Deadline.after(1e6), Deadline.after(-1)
FULL = loss.SIZES["full"]
WHERE = {"size": "small", "machine": "m"}
PATHS = {"student": "student", "teacher": "teacher"}


# Processes


@pytest.fixture
def children(tmp_path):
    """Children that are forked from this process, so that they start at once."""
    found = Children(tmp_path, "cpu")
    found._method = "fork"
    return found


def sends_and(ending):
    def function(send):
        send(1)
        os.write(1, b"printed\n")
        ending()

    return function


def raise_out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")


def raise_value_error():
    raise ValueError("x" * 1000)


@pytest.mark.parametrize(
    ("ending", "seconds", "message"),
    [
        (raise_out_of_memory, 60, f"^{OUT_OF_MEMORY}$"),
        (raise_value_error, 60, r"^ValueError: x{200,300} \.\.\.$"),
        (lambda: os._exit(3), 60, "ended with status 3, see .*case.txt"),
        (lambda: time.sleep(60), 0.5, "took too long"),
    ],
)
def test_a_child_that_does_not_finish_says_why_and_what_it_sent_is_kept(children, tmp_path, ending, seconds, message):
    received, started = [], time.time()
    with pytest.raises(ChildError, match=message):
        received.extend(children.run(sends_and(ending), name="case", seconds=seconds))
    assert received == [1]
    assert time.time() - started < 30
    assert (tmp_path / "case.txt").exists()


def test_children_take_turns_and_what_they_print_is_kept(children, tmp_path):
    def counts(send):
        for number in range(3):
            print(time.time(), flush=True)
            send(number)

    assert list(zip(*(children.run(counts, name=name) for name in "ab"), strict=True)) == [(0, 0), (1, 1), (2, 2)]
    first, other = ((tmp_path / f"{name}.txt").read_text().split() for name in "ab")
    assert [x for pair in zip(first, other, strict=True) for x in pair] == sorted(first + other)


@pytest.mark.parametrize(
    "text", ["Triton Error [CUDA]: out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"]
)
def test_running_out_of_memory_has_many_faces(text):
    assert what_failed(RuntimeError(text)) == OUT_OF_MEMORY
    assert what_failed(RuntimeError("an illegal memory access")) == "RuntimeError: an illegal memory access"


# The loss


def test_the_groups_of_a_full_run_have_what_is_to_be_compared():
    found = loss.groups(FULL)
    assert list(found)[:3] == ["main", "long", "kernels"]
    assert [{case.setting.tokens for case in found[name].values()} for name in ("main", "long")] == [{8192}, {32768}]
    assert {"TRL kernel", "dense autograd, full", "4 products alone", "sampled token"} <= found["main"].keys()
    assert {name.partition(", ")[2] for name in found["top_k"]} >= {"1", "20", "256"}
    assert [len(found[name]) for name in ("top_k", "loss_memory_mib")] == [13, 18]
    assert found["kernels"].keys() <= found["main"].keys()


@pytest.mark.parametrize(
    ("options", "products"),
    [
        ({}, 2),
        ({"frozen": True}, 2),
        ({"top_k": 37}, 2),
        ({"top_k": 38}, 4),
        ({"tail": "drop"}, 4),
        ({"tail": "drop", "frozen": True}, 3),
        ({"support": "full", "frozen": True}, 3),
        ({"support": "sampled"}, 4),
    ],
)
def test_a_case_is_measured_against_the_products_that_it_needs(options, products):
    assert loss.our_case(FULL, **options).products == products


def test_a_case_without_room_is_a_line_and_one_that_is_broken_is_none(tmp_path, monkeypatch):
    def broken(inputs):
        raise TypeError("no such argument")

    def small(inputs):
        inputs["student"].sum().backward()

    setting = loss.Setting(4, 512, 32)
    cases = {
        "too large": loss.Case(lambda inputs: raise_out_of_memory(), setting),
        "broken": loss.Case(broken, setting),
    }
    cases["small"] = loss.Case(small, setting, products=2)
    monkeypatch.setattr(loss, "groups", lambda setting: {"g": cases})
    results = Results(tmp_path / "r.jsonl", WHERE)
    failed = loss.run(InThisProcess(), results, size="small", device="cpu", deadline=NEVER)
    assert failed == ["g: broken: TypeError: no such argument"]
    lines = {line["case"]: line for line in results.lines()}
    assert lines.keys() == {"ceilings", "g: too large", "g: small"}
    assert lines["g: too large"]["failed"] == OUT_OF_MEMORY
    assert lines["g: small"]["seconds"]["rounds"] == 1
    assert lines["g: small"]["flops"] == 2 * 2 * 4 * 512 * 32


class InThisProcess:
    """Children that are none."""

    def run(self, function, *arguments, name, seconds):
        sent = []
        function(sent.append, *arguments)
        return sent


def test_after_the_deadline_no_case_is_begun(tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(loss, "make_inputs", None)  # not even inputs are drawn
    loss.measure(sent.append, loss.SIZES["small"], {"ceilings"}, PAST)
    assert sent == []
    monkeypatch.setattr(steps, "prepare", lambda *_: PATHS)
    monkeypatch.setattr(gpu_memory, "prepare", lambda *_: PATHS)
    options = {"size": "small", "device": "cpu", "home": tmp_path, "deadline": PAST}
    for stage in (steps, gpu_memory):
        assert stage.run(None, Results(tmp_path / "r.jsonl", WHERE), **options) == []
    assert not list(tmp_path.iterdir())


# Steps


def task(lengths="log-normal"):
    return steps.task_of("OPDTrainer (default)", lengths, "full", "cpu", PATHS, Path())


def test_drawn_lengths_have_the_mean_and_the_longest_of_the_task():
    lengths = torch.cat([steps.draw_lengths(1000, task(), seed) for seed in range(20)])
    assert lengths.float().mean().item() == pytest.approx(200, rel=0.1)
    assert (lengths.min() >= 1).item()
    assert lengths.max().item() == 1024
    assert lengths.median().item() < 150
    assert torch.equal(steps.draw_lengths(8, task(), 3), steps.draw_lengths(8, task(), 3))


class Model:
    class config:
        vocab_size = 512


@pytest.mark.parametrize("lengths", ["log-normal", "longest"])
def test_a_stand_in_ends_every_completion_and_is_the_same_for_all_trainers(lengths):
    prompts = torch.full((16, 3), 7)
    tokenizer = build_tokenizer(512)  # it knows the ids of end and padding, as a configuration of generation does
    first, other = steps.stand_in(task(lengths)), steps.stand_in(task(lengths))
    for call in range(2):
        ids = first(Model, input_ids=prompts, attention_mask=None, generation_config=tokenizer)
        assert torch.equal(ids, other(Model, input_ids=prompts, generation_config=tokenizer))
        assert torch.equal(ids[:, :3], prompts)
        drawn = steps.draw_lengths(16, task(), call) if lengths == "log-normal" else torch.full((16,), 1024)
        for row, length in zip(ids[:, 3:], drawn.tolist(), strict=True):
            assert (row == tokenizer.eos_token_id).nonzero().tolist() == [[length - 1]]
            assert (row[length:] == tokenizer.pad_token_id).all()
            assert (row[: length - 1] >= steps.FIRST_PLAIN_ID).all()


def test_the_tokenizer_has_an_id_for_every_row_of_the_head():
    for shape in SHAPES["full"].values():
        assert shape["vocab_size"] == 151936
    tokenizer = build_tokenizer(2000)
    assert len(tokenizer) == len(set(tokenizer.get_vocab().values())) == 2000
    assert len(tokenizer("Why?\n")["input_ids"]) == 5


# Memory


@pytest.mark.parametrize("start", [1, 9, 64, 1000])
def test_the_largest_size_is_found_to_an_eighth(start):
    for largest in range(65):
        trials = {}
        while (size := gpu_memory.next_trial(trials, start, 64)) is not None:
            assert size not in trials
            trials[size] = size <= largest
        fitting = max((size for size, fits in trials.items() if fits), default=0)
        failing = min((size for size, fits in trials.items() if not fits), default=65)
        assert fitting <= largest < failing
        assert failing - fitting <= max(1, fitting // gpu_memory.FINE)
        assert len(trials) <= 13


# Mathematics


def test_mathematics_needs_a_model_and_its_commands_are_those_of_the_package(tmp_path, capsys):
    from opd_trl.cli import data, eval
    from opd_trl.scripts import opsd

    options = {"size": "small", "device": "cpu", "home": tmp_path, "deadline": NEVER, "data": None}
    assert gpu_math.run(Results(tmp_path / "r.jsonl", WHERE), **options, model=tmp_path) == []
    assert "needs --math-model FOLDER and --math-data FILE" in capsys.readouterr().out
    train = gpu_math.train_arguments("full", "cpu", tmp_path, tmp_path)
    assert train[0] == "opsd"
    _, training, model, _ = opsd.make_parser().parse_args_and_config(train[1:])
    assert (training.max_steps, training.use_vllm, model.use_peft) == (20, False, True)
    evaluate = gpu_math.eval_arguments("full", tmp_path, tmp_path, tmp_path, adapter=tmp_path)
    assert eval.make_parser().parse_args(evaluate[1:]).limit == 128
    assert data.make_parser().parse_args(gpu_math.prepare_arguments(tmp_path, tmp_path)[1:]).source == "gsm8k"
