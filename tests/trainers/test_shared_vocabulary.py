"""A teacher that does not know every token of the student: compared on those that it knows, and never misread."""

import pytest
import torch

from opd_trl.preflight.templates import check_vocabulary
from opd_trl.teachers import Teacher
from opd_trl.teachers.several import routing
from opd_trl.teachers.vocabulary import SharedIds
from opd_trl.trainers.passes import understood
from tests import tiny

from .build import fixed_batch, opd_trainer


NEW = "<|new|>"


def with_added_token(folder) -> str:
    """A student whose tokenizer and head have one token more."""
    tokenizer = tiny.build_tokenizer()
    tokenizer.add_tokens([NEW])
    return tiny.save(folder, tokenizer=tokenizer, vocab_size=104)


@pytest.fixture
def trainer(tmp_path, teacher_path):
    return opd_trainer(tmp_path, with_added_token(tmp_path / "student"), teacher_path, logging_steps=1)


def test_a_row_has_no_loss_from_a_token_on_that_the_teacher_does_not_know(trainer):
    batch = fixed_batch(trainer)
    batch["completion_ids"] = 3 + torch.arange(32).view(4, 8)
    batch["completion_mask"] = torch.ones(4, 8, dtype=torch.long)
    scores = trainer.teacher_scores(trainer.model, batch)[""].hidden_states
    batch["completion_ids"][0, 2] = 103
    batch["prompt_ids"][1, -1] = 103
    known = understood(trainer, batch, batch["completion_mask"])
    assert known[:3].int().tolist() == [[1, 1, 0, 0, 0, 0, 0, 0], [0] * 8, [1] * 8]
    assert trainer.running_metrics["distillation/unknown_to_teacher"][-1] == pytest.approx(14 / 32)
    batch["loss_mask"] = known.long()
    after = trainer.teacher_scores(trainer.model, batch)[""].hidden_states
    torch.testing.assert_close(after[known], scores[known])
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    assert loss.isfinite()
    assert trainer.model.get_input_embeddings().weight.grad.isfinite().all()


def test_the_preflight_says_what_share_of_the_tokens_is_compared(trainer):
    assert check_vocabulary(trainer, None).figure == "shared: 103 of 104 tokens compared, 99.04%"


def test_training_compares_the_shared_ids_and_logs_what_is_left_out(trainer):
    assert (trainer.num_rows, trainer.shared_ids.excluded, trainer.shared_ids.left_out) == (103, None, 1)
    trainer.train()
    assert "distillation/unknown_to_teacher" in trainer.state.log_history[0]


def test_the_policy_loss_stays_over_all_tokens_of_the_student(tmp_path, teacher_path):
    student = with_added_token(tmp_path / "student")
    trainer = opd_trainer(
        tmp_path,
        student,
        teacher_path,
        trainer_options={"reward_funcs": [lambda completions, **_: [1.0 * (i % 2) for i in range(len(completions))]]},
        num_generations=2,
    )
    seen = []
    student_pass = trainer.run_inside

    def spy(*args, **kwargs):
        found = student_pass(*args, **kwargs)
        seen.append(found)
        return found

    trainer.run_inside = spy
    batch = fixed_batch(trainer)
    batch["completion_ids"][0, 0], batch["completion_mask"][0, 0] = 103, 1
    batch["loss_mask"] = batch["loss_mask"] * understood(trainer, batch, batch["loss_mask"])
    trainer._compute_loss(trainer.model, batch)
    found = seen[-1].per_token_logps[0, 0]
    prompt = batch["prompt_ids"][0][batch["prompt_mask"][0].bool()]
    logits = trainer.model(prompt[None]).logits[0, -1] / trainer.temperature
    torch.testing.assert_close(found, logits.log_softmax(-1)[103], atol=1e-5, rtol=1e-5)


def test_ids_in_the_middle_are_left_out_where_shared_is_set(tmp_path, student_path):
    teacher = tiny.save(tmp_path / "teacher", tokenizer=tiny.build_tokenizer(swap=("x", "y")), seed=1)
    with pytest.raises(ValueError, match=r"98\.1% of the student's ids .* Set teacher_vocabulary: shared"):
        opd_trainer(tmp_path, student_path, teacher)
    with pytest.raises(ValueError, match="loss_top_k must be at most 101, the ids that the student shares"):
        opd_trainer(tmp_path, student_path, teacher, teacher_vocabulary="shared", loss_top_k=102)
    assert not (tmp_path / "out").exists()
    for support in ("student", "full"):
        options = {"teacher_vocabulary": "shared", "loss_support": support}
        trainer = opd_trainer(tmp_path, student_path, teacher, **options)
        assert trainer.tokenizer.convert_ids_to_tokens(trainer.shared_ids.excluded.tolist()) == ["x", "y"]
        trainer.train()
        assert trainer.state.log_history[0]["loss"] == trainer.state.log_history[0]["loss"]


def test_a_teacher_that_gives_its_own_top_k_is_refused_beside_one_that_shares_a_part():
    class Ready(Teacher):
        def __init__(self, shared_ids, gives_hidden_states=True):
            self.shared_ids, self.gives_hidden_states = shared_ids, gives_hidden_states

        def check_placement(self, host): ...

        def prepare(self, host): ...

    part, top_k = Ready(SharedIds(103, is_whole=False, notes=("",))), Ready(SharedIds(104), gives_hidden_states=False)
    with pytest.raises(ValueError, match="teacher 'code' gives log-probabilities over its whole vocabulary"):
        routing.prepare(None, {"math": part, "code": top_k})
    assert routing.prepare(None, {"code": top_k}).rows == (104, None)


def test_a_chat_template_that_the_teacher_does_not_know_is_refused(tmp_path, student_path):
    swapped = tiny.build_tokenizer(swap=(tiny.START, "x"))
    teacher = tiny.save(tmp_path / "teacher", tokenizer=swapped, seed=1)
    with pytest.raises(ValueError, match=r"knows no prompt of this batch whole: it does not know '<\|im_start\|>'"):
        opd_trainer(tmp_path, student_path, teacher, teacher_vocabulary="shared").train()


def test_combinations_that_need_the_whole_vocabulary_are_refused(tmp_path, teacher_path):
    student = with_added_token(tmp_path / "student")
    with pytest.raises(ValueError, match=r"loss_importance_cap=2\.0 with a teacher that shares a part"):
        opd_trainer(tmp_path, student, teacher_path, loss_importance_cap=2.0)
    with pytest.raises(ValueError, match="teacher_vocabulary must be one of auto, same, shared, text, got 'ids'"):
        opd_trainer(tmp_path, student, teacher_path, teacher_vocabulary="ids")
    with pytest.raises(ValueError, match=r"no path to load its tokenizer.*teacher_processing_class"):
        opd_trainer(tmp_path, student, tiny.build_model(vocab_size=104), teacher_vocabulary="shared")
