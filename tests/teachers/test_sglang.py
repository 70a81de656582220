"""Hidden states from SGLang: a FAKE of its border (`fake_sglang`), written from its source; none was ever asked."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from opd_trl.teachers import TeacherServer, TeacherServerError
from tests import tiny
from tests.teachers.fake_sglang import FakeSGLang, fake_sglang
from tests.teachers.test_pooling import trainer_of
from tests.teachers.test_served_training import loss_and_gradient
from tests.trainers.build import opd_trainer


PROMPT = list(range(3, 20))
SEQUENCES, NUM_SCORED = [[*PROMPT, 30, 31, 32], [*PROMPT, 30, 41]], [3, 2]


@pytest.fixture(scope="module")
def reader(reader_path):
    return AutoModelForCausalLM.from_pretrained(reader_path), AutoTokenizer.from_pretrained(reader_path)


@pytest.fixture
def url(reader):
    with fake_sglang(*reader) as url:
        yield url


@pytest.mark.parametrize("support", ["student", "union"])
def test_the_loss_and_gradient_are_those_of_a_local_teacher(tmp_path, student_path, reader_path, url, support):
    options = {"loss_support": support, "loss_top_k": 40, "loss_temperature": 0.8, "dataset": tiny.questions()}
    here = loss_and_gradient(opd_trainer(tmp_path, student_path, reader_path, **options))
    there = loss_and_gradient(trainer_of(tmp_path, student_path, url, reader_path, **options))
    assert here[0].abs() > 0.01
    torch.testing.assert_close(there[:2], here[:2], rtol=1e-5, atol=1e-5)


def test_its_prefix_cache_takes_no_state_away(reader, url):
    server = TeacherServer(url, retries=0)
    for _ in range(2):  # the second time all of them are in its cache
        found = server.hidden_states(SEQUENCES, NUM_SCORED, hidden_size=48, dtype=torch.float32)
        for states, ids, scored in zip(found, SEQUENCES, NUM_SCORED, strict=True):
            with torch.no_grad():
                expected = reader[0].model(torch.tensor([ids])).last_hidden_state[0, -scored - 1 : -1]
            torch.testing.assert_close(states, expected)


@pytest.mark.parametrize(
    ("habits", "message"),
    [
        ({"chunk": 16}, r"whose last \d+ are needed\. .* start SGLang with --chunked-prefill-size -1"),
        ({"before_norm": True}, "cannot be those behind the final norm"),
        ({"sends_states": False}, "Start SGLang with --enable-return-hidden-states --chunked-prefill-size -1"),
    ],
)
def test_a_server_whose_states_are_of_no_use_is_refused(tmp_path, student_path, reader_path, reader, habits, message):
    with fake_sglang(*reader, **habits) as url, pytest.raises(TeacherServerError, match=message):
        trainer_of(tmp_path, student_path, url, reader_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_tokens": 4}, "it read 4 tokens of sequence 0, which has 20"),
        ({"hidden_states": []}, "the hidden states of the prompt is missing"),
        ({"hidden_states": [[[0.0] * 47] * 20]}, r"states of \(3, 47\), expected \(3, 48\)"),
        ({"hidden_states": [[[0.0] * 48, [0.0]] * 10]}, "cannot be read"),
        ({"hidden_states": [[[float("nan")] * 48] * 20]}, "not finite"),
    ],
)
def test_an_answer_that_cannot_be_right_reaches_no_loss(reader, url, monkeypatch, change, message):
    server, right = TeacherServer(url, retries=0), FakeSGLang.meta_info
    monkeypatch.setattr(FakeSGLang, "meta_info", lambda *asked: right(*asked) | change)
    with pytest.raises(TeacherServerError, match=message):
        server.hidden_states(SEQUENCES, NUM_SCORED, hidden_size=48)
