"""Hidden states from vLLM's pooling runner (a stand-in, see `pooling_stand_in`), with an LM head from a folder."""

import logging
import re
import shutil
from pathlib import Path

import pytest
import torch

from opd_trl.teachers import TeacherServer, TeacherServerError
from opd_trl.teachers.server import PROBE_TEXT
from tests import tiny
from tests.serving.server import serve
from tests.teachers.pooling_stand_in import FAULTS, HABITS, pooling_stand_in
from tests.teachers.test_served_training import SUPPORTS, loss_and_gradient
from tests.trainers.build import fixed_batch, opd_trainer


SEQUENCES, NUM_SCORED = [[3, 5, 7, 9, 11, 20], [4, 6, 8], [30, 40, 50, 60, 70, 80, 90]], [3, 1, 6]


@pytest.fixture(scope="module")
def reader_url(reader_path) -> str:
    with serve(reader_path) as url:
        yield url


@pytest.fixture
def pooling(reader_url):
    with pooling_stand_in(reader_url) as server:
        yield server


def trainer_of(tmp_path, student_path, url, reader_path, **options):
    fields = {"teacher_server_url": url, "teacher_model_name_or_path": reader_path, "teacher_server_retries": 0}
    return opd_trainer(tmp_path, student_path, None, **fields | options)


@pytest.fixture
def refused(tmp_path, student_path, pooling, reader_path):
    """Build a trainer that must be refused before anything is written; return the message."""

    def build(**options) -> str:
        with pytest.raises((ValueError, TeacherServerError)) as error:
            trainer_of(tmp_path, student_path, pooling.url, **{"reader_path": reader_path} | options)
        assert not (tmp_path / "out").exists()
        return str(error.value)

    return build


@pytest.mark.parametrize("support", SUPPORTS)
def test_every_support_gives_the_loss_and_gradient_of_a_local_teacher(
    tmp_path, student_path, reader_path, pooling, support
):
    questions = tiny.questions(privileged_context=[f"Answer with {'b' * (i + 1)}." for i in range(8)])
    options = {"loss_support": support, "loss_top_k": 40, "loss_temperature": 0.8, "dataset": questions}
    here = loss_and_gradient(opd_trainer(tmp_path, student_path, reader_path, **options))
    there = loss_and_gradient(trainer_of(tmp_path, student_path, pooling.url, reader_path, **options))
    assert here[0].abs() > 0.01
    torch.testing.assert_close(there[:2], here[:2], rtol=1e-5, atol=1e-5)
    assert there[2] == pytest.approx(here[2], rel=1e-4, abs=1e-5)


def test_states_are_asked_for_in_the_dtype_of_the_head(tmp_path, student_path, reader_path, pooling):
    trainer = trainer_of(tmp_path, student_path, pooling.url, reader_path)
    assert {asked["embed_dtype"] for asked in pooling.asked[1:]} == {"float32"}  # as it is saved
    kwargs = {"teacher_model_init_kwargs": {"dtype": "bfloat16"}}
    narrow = trainer_of(tmp_path, student_path, pooling.url, reader_path, **kwargs)
    pooling.asked.clear()
    batch = fixed_batch(narrow)
    assert [asked["embed_dtype"] for asked in pooling.asked] == ["bfloat16"]
    assert batch["teacher_hidden_states"].dtype == narrow.teacher.head.weight.dtype == torch.bfloat16
    assert batch["teacher_hidden_states"].shape == (*batch["completion_ids"].shape, 48)  # no prompt
    again = trainer.score_ahead({key: x for key, x in batch.items() if key != "teacher_hidden_states"})
    torch.testing.assert_close(
        batch["teacher_hidden_states"].float(), again["teacher_hidden_states"], rtol=1e-2, atol=0
    )


def test_the_log_says_what_was_seen_and_what_it_cannot_tell_apart(
    tmp_path, student_path, reader_path, pooling, caplog
):
    caplog.set_level(logging.INFO)
    trainer_of(tmp_path, student_path, pooling.url, reader_path)
    (line,) = (line for line in caplog.messages if "final norm" in line)
    assert re.search(r"nats a token; on the same states in 9,999 random orders .* at most 1 in 10,000 times", line)
    assert "cannot tell apart: models of which one was trained from the other" in line


@pytest.mark.parametrize(
    ("habit", "message"),
    [
        ("normalises", "are all of length 1, so they are normalised, although use_activation is false"),
        (
            "leaves the norm out",
            "cannot be those behind the final norm of .*or the server's forward of this family ends",
        ),
        ("truncates", r"sequence 0 has states of \[1, 48\], expected \[2, 'H'\]"),
        ("cuts off dimensions", "reads hidden states of 48, and .* sends states of 32"),
        ("shuffles", "say nothing of a text to the LM head .* random orders"),
    ],
)
def test_states_that_are_not_those_before_the_head_are_refused(refused, pooling, habit, message):
    pooling.habit = HABITS[habit]
    found = refused()
    assert re.search(message, found)
    assert "teacher_model_name_or_path" in found or "serve-teacher" in found or "server's log" in found


def test_another_model_is_refused_by_its_norm_or_by_what_its_head_reads(tmp_path, reader_path, refused):
    other = tiny.save_reader(tmp_path / "other", PROBE_TEXT, seed=2, hidden_size=48)
    assert "cannot be those behind the final norm of" in refused(reader_path=other)
    model = tiny.build_model(seed=3, hidden_size=48)
    mine = tiny.Qwen3ForCausalLM.from_pretrained(reader_path)
    model.model.norm.load_state_dict(mine.model.norm.state_dict())
    model.save_pretrained(tmp_path / "other")
    assert "say nothing of a text to the LM head" in refused(reader_path=str(tmp_path / "other"))
    assert "reads hidden states of 32, and" in refused(reader_path=tiny.save(tmp_path / "narrow"))


def test_what_is_missing_of_the_teacher_is_refused_with_the_remedy(tmp_path, reader_path, pooling, refused):
    assert "Name the model that it serves in teacher_model_name_or_path" in refused(reader_path=None)
    several = {"reader_path": None, "teacher_server_url": None, "teachers": {"a": pooling.url}}
    assert "teacher_server_models beside `teachers`" in refused(**several, dataset=tiny.questions(teacher="a"))
    folder = Path(shutil.copytree(reader_path, tmp_path / "copy"))
    for file in folder.glob("token*"):
        file.unlink()
    (folder / "chat_template.jinja").unlink()
    assert "the tokenizer of" in (message := refused(reader_path=str(folder)))
    assert "Save it beside the model" in message
    kwargs = {"dtype": "float32", "device_map": "cpu"}
    assert "teacher_model_init_kwargs has device_map" in refused(teacher_model_init_kwargs=kwargs)
    assert "vLLM sends no such states" in refused(teacher_model_init_kwargs={"dtype": "float64"})
    tiny.build_tokenizer(swap=("a", "b")).save_pretrained(tmp_path / "copy")
    assert "is not that of" in refused(reader_path=str(folder))
    pooling.refusal = "Try switching the model's pooling_task via --pooler-config.task token_embed."
    assert "--runner pooling --convert embed --pooler-config.task token_embed" in refused()
    pooling.refusal = "The model does not support Pooling API"
    assert "a completions endpoint cannot score ids" in refused(loss_support="student")


def test_the_vocabulary_is_compared_id_by_id_and_may_be_shared(tmp_path, reader_path, pooling):
    tokenizer = tiny.build_tokenizer(swap=("x", "y"))
    student = tiny.save(tmp_path / "student", tokenizer=tokenizer, seed=3)
    with pytest.raises(ValueError, match="different vocabularies: 2 tokens differ"):
        trainer_of(tmp_path, student, pooling.url, reader_path, teacher_vocabulary="same")
    options = {"teacher_vocabulary": "shared"}
    served = trainer_of(tmp_path, student, pooling.url, reader_path, **options)
    here = opd_trainer(tmp_path, student, reader_path, **options)
    assert tokenizer.convert_ids_to_tokens(served.shared_ids.excluded.tolist()) == ["y", "x"]
    batch = fixed_batch(here)
    losses = [trainer._compute_loss(trainer.model, batch | trainer.score_ahead(batch)) for trainer in (here, served)]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mix", [None, {"served": 0.5, "here": 0.5}], ids=["by row", "mean"])
def test_it_may_be_one_of_several_teachers(tmp_path, student_path, served_path, reader_path, pooling, mix):
    names = ["served", "here"] * 4
    options = {"dataset": tiny.questions(teacher=names), "teacher_mix": mix, "per_device_train_batch_size": 8}
    fields = {"teachers": {"served": pooling.url, "here": served_path}, "teacher_server_retries": 0}
    here = opd_trainer(tmp_path, student_path, None, teachers={"served": reader_path, "here": served_path}, **options)
    models = {"teacher_server_models": {"served": reader_path}}
    there = opd_trainer(tmp_path, student_path, None, **fields, **models, **options)
    batch = fixed_batch(here)
    fixed_batch(there)
    losses = [x._compute_loss(x.model, batch | x.score_ahead(batch)) for x in (here, there)]
    assert losses[0].abs() > 0.01
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)


def ask(server: TeacherServer):
    return server.hidden_states(SEQUENCES, NUM_SCORED, hidden_size=48, dtype=torch.float32, what="rows 0 to 2")


@pytest.mark.attack("client", "an answer of vLLM's pooling runner that is not what was asked for", "asked for again")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_changes_no_number(pooling, fault):
    server = TeacherServer(pooling.url, backoff=0.01, retries=1)
    expected = ask(server)
    pooling.faults[:] = [FAULTS[fault]]
    torch.testing.assert_close(ask(server), expected, rtol=0, atol=1e-6)
    assert not pooling.faults
    pooling.faults[:] = [FAULTS[fault]] * 2
    with pytest.raises(TeacherServerError, match="failed for rows 0 to 2, 2 attempts"):
        ask(server)


def test_a_fault_that_stays_is_named(pooling):
    server = TeacherServer(pooling.url, backoff=0.01, retries=0)
    for fault, message in (("a sequence too few", "2 results for 3 sequences"), ("NaN", "not finite")):
        pooling.faults[:] = [FAULTS[fault]]
        with pytest.raises(TeacherServerError, match=message):
            ask(server)
    pooling.bytes_kept = 100
    with pytest.raises(TeacherServerError, match="the answer has 100 bytes, its metadata name 3072"):
        ask(server)


@pytest.mark.parametrize("habit", [None, "shuffles"])
def test_a_server_that_comes_back_is_asked_the_text_again(tmp_path, student_path, reader_path, pooling, habit, caplog):
    fields = {"teacher_server_retries": 1}
    server = trainer_of(tmp_path, student_path, pooling.url, reader_path, **fields).teacher.server
    server.transport.backoff, pooling.hang_up = 0.01, 1
    pooling.habit = HABITS.get(habit, pooling.habit)
    if habit is None:
        ask(server)
        assert "is back, with the same model" in caplog.text
    else:
        with pytest.raises(TeacherServerError, match="came back with another model"):
            ask(server)


def test_the_states_are_those_that_predict_the_last_tokens(reader_path, pooling):
    model = tiny.Qwen3ForCausalLM.from_pretrained(reader_path).eval()
    for ids, count, found in zip(SEQUENCES, NUM_SCORED, ask(TeacherServer(pooling.url)), strict=True):
        with torch.no_grad():
            expected = model.model(torch.tensor([ids])).last_hidden_state[0, -1 - count : -1]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_request_has_at_most_256_sequences(tmp_path, student_path, reader_path, pooling):
    trainer = trainer_of(tmp_path, student_path, pooling.url, reader_path, teacher_batch_size=1000)
    assert trainer.teacher.rows_per_request == 256
