"""The hidden states of a real vLLM's pooling runner, with the LM head from the teacher's folder."""

import os
import signal
from contextlib import ExitStack
from threading import Thread

import pytest
import torch
from transformers import Qwen3ForCausalLM, TrainerCallback

from opd_trl.teachers import TeacherServer, TeacherServerError
from tests import tiny
from tests.serving.server import free_port
from tests.trainers.build import opd_trainer
from tests.vllm.server import MAX_LENGTH, POOLING, vllm_process, vllm_server
from tests.vllm.test_loss import loss_and_gradient


SUPPORTS = ("student", "teacher", "intersection", "union", "full", "sampled")
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def pooling_url(reader_path, tmp_path_factory) -> str:
    """It computes 128 tokens at a time, so that longer sequences are put together of parts."""
    options = [*POOLING, "--max-num-batched-tokens", "128"]
    with vllm_server(reader_path, tmp_path_factory.mktemp("vllm") / "pooling.log", *options) as url:
        yield url


@pytest.mark.parametrize("support", SUPPORTS)
def test_every_support_has_the_loss_of_the_same_teacher_in_process(
    tmp_path, student_path, reader_path, pooling_url, measured, support
):
    options = {"loss_support": support, "loss_temperature": 0.8, "privileged_context": "Answer with b."}
    path = {"teacher_model_name_or_path": reader_path}
    served = opd_trainer(tmp_path, student_path, None, teacher_server_url=pooling_url, **path, **options)
    in_process = opd_trainer(tmp_path, student_path, reader_path, **options)
    batch, loss, gradient = loss_and_gradient(served)
    expected_batch, expected, expected_gradient = loss_and_gradient(in_process)
    assert batch["completion_ids"].tolist() == expected_batch["completion_ids"].tolist()
    assert expected_gradient.abs().max() > 1e-3
    difference = (gradient - expected_gradient).abs().max().item()
    measured(f"pooled against in process, {support}: loss {abs(loss - expected):.1e}, gradient {difference:.1e}")
    assert loss == pytest.approx(expected, abs=TOLERANCE)
    assert difference < TOLERANCE


def test_the_states_of_long_and_of_repeated_sequences_are_those_of_transformers(reader_path, pooling_url, measured):
    """vLLM computes in parts, and keeps what it has read of a prefix."""
    model, generator = Qwen3ForCausalLM.from_pretrained(reader_path).eval(), torch.Generator().manual_seed(0)
    long = torch.randint(3, 103, (MAX_LENGTH - 1,), generator=generator).tolist()
    sequences, num_scored = [long, long[:300], [7, 9], long[:200]], [MAX_LENGTH - 2, 40, 1, 199]
    differences = []
    for _ in range(2):
        server = TeacherServer(pooling_url)
        found = server.hidden_states(sequences, num_scored, hidden_size=48, dtype=torch.float32)
        for ids, count, states in zip(sequences, num_scored, found, strict=True):
            with torch.no_grad():
                expected = model.model(torch.tensor([ids])).last_hidden_state[0, -1 - count : -1]
            differences.append((states - expected).abs().max().item())
    measured(f"pooled states against transformers, {sum(num_scored)} positions twice: max {max(differences):.1e}")
    assert max(differences) < 1e-3


def test_bfloat16_on_the_wire_stays_near(tmp_path, student_path, reader_path, pooling_url, measured):
    path = {"teacher_server_url": pooling_url, "teacher_model_name_or_path": reader_path}
    kwargs = {"teacher_model_init_kwargs": {"dtype": "bfloat16"}}
    _, loss, _ = loss_and_gradient(opd_trainer(tmp_path, student_path, None, **path, **kwargs))
    _, expected, _ = loss_and_gradient(opd_trainer(tmp_path, student_path, reader_path))
    measured(f"pooled against in process, student, head and wire in bfloat16: loss {abs(loss - expected):.1e}")
    assert loss == pytest.approx(expected, abs=0.05)


def test_another_model_than_the_head_is_of_is_refused(tmp_path, student_path, pooling_url):
    other = tiny.save(tmp_path / "other", seed=7, hidden_size=48)
    with pytest.raises(TeacherServerError, match="cannot be those behind the final norm"):
        opd_trainer(tmp_path, student_path, None, teacher_server_url=pooling_url, teacher_model_name_or_path=other)
    assert not (tmp_path / "out").exists()


def test_a_runner_of_another_task_is_refused_with_the_flags(tmp_path, student_path, reader_path):
    flags = ["--runner", "pooling", "--convert", "embed"]
    with (
        vllm_server(reader_path, tmp_path / "log", *flags) as url,
        pytest.raises(TeacherServerError, match=r"Start it with .*--pooler-config\.task token_embed"),
    ):
        opd_trainer(tmp_path, student_path, None, teacher_server_url=url, teacher_model_name_or_path=reader_path)


class KillAfter(TrainerCallback):
    """Kill a server once a step is done, and call `then`."""

    def __init__(self, step: int, process, then):
        self.step, self.process, self.then = step, process, then

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.then()


def test_a_run_goes_on_when_its_server_is_killed_and_started_again(tmp_path, student_path, reader_path, caplog):
    options = {"max_steps": 3, "optim": "sgd", "learning_rate": 0.1, "dataset": tiny.questions(16)}
    port, trained = free_port(), []
    with ExitStack() as stack:

        def start(name: str):
            return stack.enter_context(vllm_process(reader_path, tmp_path / name, *POOLING, port=port))

        url, process = start("first.log")
        path = {"teacher_server_url": url, "teacher_model_name_or_path": reader_path}
        again = Thread(target=start, args=("second.log",))
        for teacher, fields in ((None, path), (reader_path, {})):
            trainer = opd_trainer(tmp_path, student_path, teacher, **fields, **options)
            if teacher is None:
                trainer.add_callback(KillAfter(1, process, again.start))
            trainer.train()
            trained.append({name: x.detach().clone() for name, x in trainer.model.named_parameters()})
        again.join()
    assert "is back, with the same model" in caplog.text
    start = dict(tiny.build_model().named_parameters())
    assert any((x - start[name]).abs().max() > 1e-3 for name, x in trained[0].items())
    for name, x in trained[0].items():
        torch.testing.assert_close(x, trained[1][name], rtol=0, atol=1e-4)
