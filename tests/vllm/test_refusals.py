"""What a vLLM server cannot serve is refused when the trainer is built; nothing is written."""

import pytest

from opd_trl.teachers import TeacherServerError
from tests import tiny
from tests.trainers.build import opd_trainer
from tests.vllm.conftest import MAX_LOGPROBS


@pytest.fixture(autouse=True)
def nothing_is_written(tmp_path):
    yield
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("support", ["student", "union", "full"])
def test_a_support_that_the_student_chooses_is_refused_with_the_reason(tmp_path, student_path, url, support):
    with pytest.raises(ValueError, match=rf"loss_support='{support}'.*completions endpoint.*opd-trl serve-teacher"):
        opd_trainer(tmp_path, student_path, None, teacher_server_url=url, loss_support=support)


def test_a_temperature_that_the_server_does_not_apply_is_refused(tmp_path, student_path, url):
    with pytest.raises(ValueError, match=r"temperature 0\.7.*loss_temperature: 1\.0"):
        opd_trainer(tmp_path, student_path, None, teacher_server_url=url, loss_support="teacher", loss_temperature=0.7)


def test_more_log_probs_than_the_server_gives_are_refused_and_the_message_names_its_flag(tmp_path, student_path, url):
    with pytest.raises(TeacherServerError, match=rf"{MAX_LOGPROBS + 1}.*{MAX_LOGPROBS}.*--max-logprobs"):
        opd_trainer(
            tmp_path,
            student_path,
            None,
            teacher_server_url=url,
            loss_support="teacher",
            loss_top_k=MAX_LOGPROBS + 1,
        )


def test_a_missing_key_is_refused_and_the_message_names_the_variable(tmp_path, student_path, url, monkeypatch):
    monkeypatch.delenv("OPD_TRL_API_KEY")
    with pytest.raises(TeacherServerError, match=r"401.*OPD_TRL_API_KEY"):
        opd_trainer(tmp_path, student_path, None, teacher_server_url=url, loss_support="teacher")


def test_a_student_of_another_tokenizer_is_refused(tmp_path, url):
    student = tiny.save(tmp_path / "student", tokenizer=tiny.build_tokenizer(reverse=True))
    with pytest.raises(ValueError, match=r"tokenizer of the teacher server .* is not the student's"):
        opd_trainer(tmp_path, student, None, teacher_server_url=url, loss_support="teacher")


def test_another_model_than_the_local_copy_is_refused(tmp_path, student_path, url):
    other = tiny.save(tmp_path / "other", seed=7, hidden_size=48)
    with pytest.raises(TeacherServerError, match=r"parity with the teacher server .*another model"):
        opd_trainer(
            tmp_path,
            student_path,
            None,
            teacher_server_url=url,
            teacher_model_name_or_path=other,
            loss_support="teacher",
        )
