"""OPDTrainer with a teacher behind HTTP: the numbers of the same teacher in this process, or a clear refusal."""

import logging

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from opd_trl import OPDConfig
from opd_trl.teachers import TeacherServerError
from tests import tiny
from tests.serving.server import serve
from tests.teachers.conftest import proxy
from tests.teachers.test_server_faults import inject, seen
from tests.trainers.build import fixed_batch, opd_trainer, settings


SUPPORTS = ("student", "teacher", "intersection", "union", "full", "sampled")
LOG_PROB_SUPPORTS = ("teacher", "intersection", "sampled")


@pytest.fixture
def questions():
    """The teacher reads more than the student, and not the same for every row."""
    return tiny.questions(privileged_context=[f"Answer with {'b' * (i + 1)}." for i in range(8)])


def loss_and_gradient(trainer, seed=0):
    torch.manual_seed(seed)
    batch = fixed_batch(trainer)
    loss = trainer._compute_loss(trainer.model, batch)
    figures = {name: values[-1] for name, values in trainer._metrics["train"].items() if "/" in name}
    return loss.detach(), torch.autograd.grad(loss, trainer.model.lm_head.weight)[0], figures


def assert_as_in_process(tmp_path, student_path, served_path, url, **options):
    here = loss_and_gradient(opd_trainer(tmp_path, student_path, served_path, **options))
    there = loss_and_gradient(opd_trainer(tmp_path, student_path, url, **options))
    assert here[0].abs() > 0.01
    torch.testing.assert_close(there[:2], here[:2], rtol=1e-5, atol=1e-5)
    assert there[2] == pytest.approx(here[2], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("support", SUPPORTS)
def test_our_server_gives_the_loss_and_gradient_of_a_local_teacher(
    tmp_path, student_path, served_path, ours, questions, support
):
    options = {"loss_support": support, "loss_top_k": 40, "loss_temperature": 0.8, "dataset": questions}
    assert_as_in_process(tmp_path, student_path, served_path, ours, **options)


@pytest.mark.parametrize("support", LOG_PROB_SUPPORTS)
def test_top_k_log_probs_give_the_loss_and_gradient_of_a_local_teacher(
    tmp_path, student_path, served_path, plain, questions, support
):
    options = {"loss_support": support, "loss_top_k": 40, "dataset": questions}
    assert_as_in_process(tmp_path, student_path, served_path, plain, **options)


@pytest.mark.parametrize("support", ["teacher", "intersection"])
def test_the_sampled_tokens_tail_needs_no_more_than_a_completions_endpoint_sends(
    tmp_path, student_path, served_path, plain, questions, support
):
    options = {"loss_support": support, "loss_top_k": 5, "loss_tail": "sample", "dataset": questions}
    assert_as_in_process(tmp_path, student_path, served_path, plain, **options)


@pytest.mark.parametrize("rows_per_request", [1, 3, 8])
def test_completions_per_request_change_nothing(tmp_path, student_path, served_path, ours, rows_per_request):
    options = {"gradient_accumulation_steps": 2, "teacher_batch_size": rows_per_request}
    assert_as_in_process(tmp_path, student_path, served_path, ours, **options)


@pytest.mark.parametrize("kind", ["ours", "plain"])
def test_a_whole_run_ends_with_the_weights_of_a_local_teacher(tmp_path, student_path, served_path, kind, request):
    url = request.getfixturevalue(kind)
    inject(url, "", 0)
    steps = {"max_steps": 3, "gradient_accumulation_steps": 2, "steps_per_generation": 4, "loss_support": "teacher"}
    # Truncated completions have no token left to score.
    options = {
        **steps,
        "mask_truncated_completions": True,
        "num_loss_tokens_to_skip": 1,
        "dataset": tiny.questions(16),
    }
    options |= {"optim": "sgd", "learning_rate": 0.1}  # AdamW makes steps of rounding where a gradient is hardly there
    trained = []
    for teacher in (served_path, url):
        trainer = opd_trainer(tmp_path, student_path, teacher, **options)
        before = trainer.model.lm_head.weight.detach().clone()
        trainer.train()
        trained.append(trainer.model.lm_head.weight.detach())
        assert (trained[-1] - before).abs().max() > 1e-4
    torch.testing.assert_close(*trained, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["ours", "plain"])
@pytest.mark.parametrize("ended", [[], [1, 3]], ids=["no row", "two rows"])
def test_rows_without_a_token_to_score_are_not_sent(tmp_path, student_path, served_path, kind, ended, request):
    """As `mask_truncated_completions` leaves them."""
    url = request.getfixturevalue(kind)
    losses = []
    for teacher in (served_path, url):
        trainer = opd_trainer(tmp_path, student_path, teacher, loss_support="teacher", loss_top_k=40)
        torch.manual_seed(0)
        batch = {key: value for key, value in fixed_batch(trainer).items() if not key.startswith("teacher_")}
        for row in set(range(4)) - set(ended):
            batch["completion_mask"][row] = batch["loss_mask"][row] = 0
        inject(url, "", 0)
        batch |= trainer.score_ahead(batch)
        losses.append(trainer._compute_loss(trainer.model, batch))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    assert seen(url)["requests"] == min(1, len(ended))


def test_the_url_is_a_field_of_the_config_too(tmp_path, student_path, ours):
    trainer = opd_trainer(tmp_path, student_path, None, teacher_server_url=f"{ours}/v1/", teacher_server_retries=1)
    assert trainer.teacher.server.url == ours
    assert trainer.teacher.server.transport.retries == 1


@pytest.mark.parametrize("support", ["student", "union", "full"])
def test_a_completions_endpoint_is_refused_for_supports_that_it_cannot_score(tmp_path, student_path, plain, support):
    with pytest.raises(ValueError, match=f"loss_support='{support}'.*cannot score ids.*opd-trl serve-teacher"):
        opd_trainer(tmp_path, student_path, plain, loss_support=support)
    assert not (tmp_path / "out").exists()


def test_a_completions_endpoint_is_refused_for_a_loss_at_another_temperature(tmp_path, student_path, plain):
    with pytest.raises(ValueError, match=r"a loss at temperature 0\.7 .* Set loss_temperature: 1\.0"):
        opd_trainer(tmp_path, student_path, plain, loss_support="teacher", temperature=0.7)


def test_more_log_probs_than_the_server_gives_are_refused_with_its_flag(tmp_path, student_path, served_path):
    with (
        serve(served_path, "--max-logprobs", "3") as url,
        proxy(url, "--plain") as plain,
        pytest.raises(TeacherServerError, match=r"refuses 5 log-probabilities .* HTTP 400.*--max-logprobs"),
    ):
        opd_trainer(tmp_path, student_path, plain, loss_support="teacher", loss_top_k=5)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("ours", "different vocabularies: 100 tokens differ"), ("plain", "is not the student's: a test text of")],
)
def test_a_teacher_of_another_tokenizer_is_refused(tmp_path, kind, message, request):
    student = tiny.save(tmp_path / "student", tokenizer=tiny.build_tokenizer(reverse=True))
    with pytest.raises(ValueError, match=message):
        opd_trainer(tmp_path, student, request.getfixturevalue(kind), loss_support="teacher")
    assert not (tmp_path / "out").exists()


def test_a_teacher_that_shares_most_tokens_is_compared_on_those_and_refused_behind_completions(
    tmp_path, served_path, ours, plain
):
    tokenizer = tiny.build_tokenizer(swap=("x", "y"))
    student = tiny.save(tmp_path / "student", tokenizer=tokenizer, seed=3)
    options = {"teacher_vocabulary": "shared", "loss_support": "teacher"}
    with pytest.raises(ValueError, match=r"normalises over its whole vocabulary .* serve-teacher"):
        opd_trainer(tmp_path, student, plain, **options)
    with_copy = {"teacher_server_url": plain, "teacher_model_name_or_path": served_path, "loss_support": "teacher"}
    with pytest.raises(ValueError, match=r"98\.1% of the student's ids .* Serve it with `opd-trl serve-teacher`"):
        opd_trainer(tmp_path, student, None, **with_copy)
    served = opd_trainer(tmp_path, student, ours, **options)
    here = opd_trainer(tmp_path, student, served_path, **options)
    assert tokenizer.convert_ids_to_tokens(served.shared_ids.excluded.tolist()) == ["y", "x"]
    batch = fixed_batch(here)
    losses = [trainer._compute_loss(trainer.model, batch | trainer.score_ahead(batch)) for trainer in (here, served)]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_a_server_of_hidden_states_takes_part_in_a_mean_and_one_of_top_k_is_refused(
    tmp_path, student_path, teacher_path, served_path, ours, plain, questions, mean
):
    options = {"teacher_mix": {"math": 0.6, "code": 0.4}, "teacher_mean": mean, "dataset": questions}
    losses = []
    for url in (served_path, ours):
        teachers = {"math": teacher_path, "code": url}
        losses.append(loss_and_gradient(opd_trainer(tmp_path, student_path, None, teachers=teachers, **options)))
    assert losses[0][0].abs() > 0.01
    torch.testing.assert_close(losses[1][:2], losses[0][:2], rtol=1e-5, atol=1e-5)
    options |= {"loss_support": "teacher", "teachers": teachers | {"code": plain}}
    with pytest.raises(ValueError, match=r"teacher 'code': .* sends its own TopK alone, .* `opd-trl serve-teacher`"):
        opd_trainer(tmp_path / "refused", student_path, None, **options)
    assert not (tmp_path / "refused").exists()


def test_a_local_copy_gives_a_parity_figure(tmp_path, student_path, served_path, plain, caplog):
    caplog.set_level(logging.INFO)
    fields = {"teacher_server_url": plain, "teacher_model_name_or_path": served_path, "loss_support": "teacher"}
    opd_trainer(tmp_path, student_path, None, **fields)
    (line,) = (line for line in caplog.messages if "local copy" in line)
    assert "parity with the teacher server" in line
    assert float(line.split("mean ")[1].split(",")[0]) < 1e-5


@pytest.mark.parametrize("kind", ["ours", "plain"])
def test_another_model_than_the_local_copy_is_refused(tmp_path, student_path, kind, request):
    copy = tiny.save(tmp_path / "copy", seed=9, hidden_size=48)
    url = request.getfixturevalue(kind)
    with pytest.raises(TeacherServerError, match=r"the local copy .*That is another model"):
        opd_trainer(
            tmp_path, student_path, None,
            teacher_server_url=url, teacher_model_name_or_path=copy, loss_support="teacher",
        )  # fmt: skip


class BreakAfter(TrainerCallback):
    """Call `fault` once a step is done."""

    def __init__(self, step: int, fault):
        self.step, self.fault = step, fault

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.fault()


@pytest.mark.parametrize(("kind", "fault"), [("ours", "bytes of NaN"), ("plain", "NaN")])
def test_a_fault_that_stays_stops_the_run_at_its_step_with_what_was_learned_before(
    tmp_path, student_path, kind, fault, request
):
    url = request.getfixturevalue(kind)
    inject(url, "", 0)
    trainer = opd_trainer(
        tmp_path, student_path, url,
        loss_support="teacher", max_steps=4, teacher_server_retries=0, save_strategy="steps", save_steps=2,
    )  # fmt: skip
    trainer.add_callback(BreakAfter(2, lambda: inject(url, fault, 100)))
    with pytest.raises(TeacherServerError, match=r"failed for step 2, rows 0 to 3 of the batch, 1 attempts"):
        trainer.train()
    inject(url, "", 0)
    resumed = opd_trainer(tmp_path, student_path, url, loss_support="teacher", max_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert resumed.state.global_step == 4


def test_prompts_that_do_not_fit_into_the_servers_context_are_refused(tmp_path, student_path, served_path):
    rows = [[{"role": "user", "content": "b" * length}] for length in (5, 37, 5, 5)]
    with serve(served_path, "--max-length", "60") as url:
        with pytest.raises(ValueError, match=r"row \d of the train set has 1\d\d tokens, at most 51 fit"):
            opd_trainer(tmp_path, student_path, url, dataset=tiny.questions(privileged_context="long " * 20))
        with pytest.raises(
            ValueError, match=r"row 1 of the train set: .* 56 tokens, at most 51 fit \(the teacher's window of 59"
        ):
            opd_trainer(tmp_path, student_path, url, dataset=Dataset.from_dict({"prompt": rows}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teacher_server_url": "127.0.0.1:8000"}, "must start with http:// or https://, got '127.0.0.1:8000'"),
        ({"teacher_server_url": "http://a", "teacher_offload": "cpu"}, "a served teacher has no weights here"),
        ({"teacher_server_timeout": 0}, "teacher_server_timeout must be > 0"),
        ({"teacher_server_retries": -1}, "teacher_server_retries must be >= 0"),
        ({"teacher_server_concurrency": 0}, "teacher_server_concurrency must be >= 1"),
        ({"teachers": {"a": "x"}, "teacher_server_url": "http://a"}, "Put every teacher into the mapping"),
        ({"teachers": {}}, "teachers must map at least one name"),
        ({"teachers": "math"}, "teachers must map at least one name"),
    ],
)
def test_fields_that_do_not_fit_are_refused_where_the_config_is_built(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        OPDConfig(**settings(tmp_path, **fields))
