"""Several teachers in a job of two processes: ranks and micro-batches without a row of one of them."""

import pytest

from tests import tiny
from tests.distributed.launch import deviation, needs_deepspeed, run_job
from tests.serving.server import serve
from tests.two_tokenizers import build


@pytest.fixture(scope="module")
def wide_path(tmp_path_factory) -> str:
    return tiny.save(tmp_path_factory.mktemp("wide"), seed=2, hidden_size=64)


@pytest.fixture(scope="module")
def unigram_path(tmp_path_factory) -> str:
    """A teacher that reads text, in tokens of its own."""
    tokenizer = build("unigram")
    own = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "seed": 3, "hidden_size": 48}
    return tiny.save(tmp_path_factory.mktemp("unigram"), tokenizer=tokenizer, **own)


@pytest.fixture(scope="module")
def setting(student_path, teacher_path, wide_path) -> dict:
    return {"kind": "opd", "student": student_path, "teachers": {"a": teacher_path, "b": wide_path}}


@pytest.fixture(scope="module")
def reference(setting, tmp_path_factory):
    """One process with both teachers."""
    outcome = run_job("1 process", tmp_path_factory.mktemp("reference"), per_device=8, accumulate=1, **setting)
    assert outcome.log[0]["loss"] > 0.1
    return outcome


@pytest.mark.parametrize(
    ("engine", "per_device", "options"),
    [
        pytest.param("ZeRO-3", 1, {}, marks=needs_deepspeed),
        pytest.param("ZeRO-3", 2, {"teacher_batch_size": 2}, marks=needs_deepspeed),
        ("FSDP2", 2, {}),
    ],
    ids=str,
)
def test_an_engine_that_shards_the_teachers_trains_as_one_process(
    tmp_path, setting, reference, engine, per_device, options
):
    split = {"per_device": per_device, "accumulate": 4 // per_device, "options": options}
    outcome = run_job(engine, tmp_path / "engine", **split, **setting)
    assert max(deviation(outcome, reference).values()) < 1e-5


def test_a_mean_of_sharded_teachers_trains_as_in_one_process(tmp_path, setting):
    options = {"teacher_mix": {"a": 0.7, "b": 0.3}}
    one = run_job("1 process", tmp_path / "one", per_device=8, accumulate=1, options=options, **setting)
    outcome = run_job("FSDP2", tmp_path / "engine", per_device=2, accumulate=2, options=options, **setting)
    assert max(deviation(outcome, one).values()) < 1e-5


@pytest.mark.parametrize("engine", ["DDP", "FSDP2"])
def test_two_processes_ask_one_server(tmp_path, setting, reference, wide_path, engine):
    with serve(wide_path) as url:
        served = setting | {"teachers": setting["teachers"] | {"b": url}}
        outcome = run_job(engine, tmp_path / "engine", per_device=2, accumulate=2, **served)
    assert max(deviation(outcome, reference).values()) < 1e-5


def test_teachers_of_other_tokenizers_train_as_in_one_process(tmp_path, setting, unigram_path):
    options = {"teacher_vocabulary": "text", "loss_support": "full"}
    several = setting | {"teachers": setting["teachers"] | {"b": unigram_path}, "options": options}
    one = run_job("1 process", tmp_path / "one", per_device=8, accumulate=1, **several)
    assert abs(one.log[0]["loss"]) > 0.1
    outcome = run_job("DDP", tmp_path / "engine", per_device=2, accumulate=2, **several)
    assert max(deviation(outcome, one).values()) < 1e-5


@needs_deepspeed
def test_a_served_teacher_of_another_tokenizer_trains_a_sharded_student(tmp_path, student_path, unigram_path):
    options = {"teacher_vocabulary": "text", "loss_support": "full"}
    single = {"kind": "opd", "student": student_path, "teacher": unigram_path}
    one = run_job("1 process", tmp_path / "one", per_device=8, accumulate=1, options=options, **single)
    with serve(unigram_path) as url:
        options |= {"teacher_server_url": url}
        outcome = run_job("ZeRO-3", tmp_path / "engine", per_device=2, accumulate=2, options=options, **single)
    assert max(deviation(outcome, one).values()) < 1e-5
