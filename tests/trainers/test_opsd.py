import pytest
import torch

from opd_trl.teachers import AdaptersOffTeacher, AdapterTeacher, LiveTeacher, ModelTeacher
from tests import tiny
from tests.trainers.build import fixed_batch, lora_config, opsd_trainer


def test_a_fresh_lora_student_is_its_own_base_teacher_without_a_second_copy(tmp_path, student_path, monkeypatch):
    loads = []
    original = tiny.Qwen3ForCausalLM.from_pretrained.__func__
    monkeypatch.setattr(
        tiny.Qwen3ForCausalLM,
        "from_pretrained",
        classmethod(lambda cls, *args, **kwargs: loads.append(1) or original(cls, *args, **kwargs)),
    )
    trainer = opsd_trainer(tmp_path, student_path)
    assert isinstance(trainer.teacher, AdaptersOffTeacher)
    assert trainer.teacher.model is None
    assert len(loads) == 1
    base = sum(p.numel() for p in tiny.build_model().parameters())
    adapter = sum(p.numel() for n, p in trainer.model.named_parameters() if "lora_" in n)
    assert sum(p.numel() for p in trainer.model.parameters()) == base + adapter


def test_the_base_teacher_stays_at_step_0(tmp_path, student_path):
    for lora in (True, False):
        trainer = opsd_trainer(tmp_path, student_path, lora=lora, max_steps=3)
        batch = fixed_batch(trainer)
        trainer.teacher_scores(trainer.model, batch)  # the first rows are read in another way too
        before = trainer.teacher_scores(trainer.model, batch)[""].hidden_states
        trainer.train()
        trainer.model.train()
        after = trainer.teacher_scores(trainer.model, batch)[""].hidden_states
        torch.testing.assert_close(before, after, rtol=0, atol=0)


def test_a_full_fine_tuned_student_gets_a_frozen_copy(tmp_path, student_path):
    for student in (student_path, tiny.build_model()):
        options = {"processing_class": tiny.build_tokenizer()}
        trainer = opsd_trainer(tmp_path, student, lora=False, trainer_options=options)
        assert isinstance(trainer.teacher, ModelTeacher)
        assert not any(p.requires_grad for p in trainer.teacher.model.parameters())
        ours = dict(trainer.model.named_parameters())
        for name, parameter in trainer.teacher.model.named_parameters():
            assert parameter.data_ptr() != ours[name].data_ptr()
            assert torch.equal(parameter, ours[name])


def test_a_live_teacher_is_the_student(tmp_path, student_path):
    trainer = opsd_trainer(tmp_path, student_path, teacher_model_kind="live", max_steps=2)
    assert type(trainer.teacher) is LiveTeacher
    trainer.train()


def test_a_trained_adapter_is_kept_as_the_step_0_teacher(tmp_path, student_path):
    from peft import get_peft_model

    student = get_peft_model(tiny.build_model(), lora_config())
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    trainer = opsd_trainer(
        tmp_path, student, lora=False, max_steps=2, trainer_options={"processing_class": tiny.build_tokenizer()}
    )
    assert isinstance(trainer.teacher, AdapterTeacher)
    assert not trainer.teacher.moves
    batch = fixed_batch(trainer)
    same_prompt = {
        name.removeprefix("teacher_"): batch[name] for name in ("teacher_prompt_ids", "teacher_prompt_mask")
    }
    loss = trainer._compute_loss(trainer.model, batch | same_prompt)
    assert abs(loss.item()) < 1e-6  # teacher and student are one at step 0
    before = trainer.teacher_scores(trainer.model, batch)[""].hidden_states
    trainer.train()
    trainer.model.train()
    after = trainer.teacher_scores(trainer.model, batch)[""].hidden_states
    torch.testing.assert_close(before, after, rtol=0, atol=0)


@pytest.mark.parametrize("lora", [True, False])
def test_an_ema_teacher_follows_the_student_at_its_rate(tmp_path, student_path, lora):
    trainer = opsd_trainer(
        tmp_path, student_path, lora=lora, teacher_model_kind="ema", teacher_update_rate=0.25, max_steps=1
    )
    pairs = (
        trainer.teacher._pairs
        if lora
        else lambda: zip(trainer.teacher.model.parameters(), trainer.model.parameters(), strict=True)
    )
    start = [teacher.clone() for teacher, _ in pairs()]
    trainer.train()
    moved = False
    for initial, (teacher, student) in zip(start, pairs(), strict=True):
        torch.testing.assert_close(teacher, 0.75 * initial + 0.25 * student)
        moved = moved or not torch.equal(teacher, initial)
        assert not teacher.requires_grad
    assert moved


def test_an_ema_teacher_with_rate_1_is_refreshed_every_so_many_steps(tmp_path, student_path):
    trainer = opsd_trainer(
        tmp_path,
        student_path,
        teacher_model_kind="ema",
        teacher_update_rate=1.0,
        teacher_sync_steps=2,
        max_steps=3,
    )
    trainer.train()
    assert any(not torch.equal(teacher, student) for teacher, student in trainer.teacher._pairs())
    trainer = opsd_trainer(
        tmp_path, student_path, teacher_model_kind="ema", teacher_update_rate=1.0, teacher_sync_steps=2, max_steps=2
    )
    trainer.train()
    assert all(torch.equal(teacher, student) for teacher, student in trainer.teacher._pairs())


def test_an_ema_adapter_is_not_trained_and_not_in_the_optimizer(tmp_path, student_path):
    trainer = opsd_trainer(tmp_path, student_path, teacher_model_kind="ema", max_steps=1)
    trainer.train()
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    names = {name for name, p in trainer.model.named_parameters() if id(p) in optimized}
    assert names
    assert not any(".teacher." in name for name in names)
    assert all(p.requires_grad for n, p in trainer.model.named_parameters() if ".default." in n)


@pytest.mark.parametrize("lora", [True, False])
def test_resuming_restores_the_ema_teacher_and_the_student(tmp_path, student_path, lora):
    options = {
        "lora": lora,
        "teacher_model_kind": "ema",
        "teacher_update_rate": 0.3,
        "max_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
    }

    def parameters(trainer):
        teacher = {} if lora else {f"teacher.{n}": p for n, p in trainer.teacher.model.named_parameters()}
        return dict(trainer.model.named_parameters()) | teacher  # the teacher adapter is one of the model's

    trainer = opsd_trainer(tmp_path, student_path, **options)
    trainer.train()
    resumed = opsd_trainer(tmp_path, student_path, **options)
    assert any(not torch.equal(p, parameters(resumed)[name]) for name, p in parameters(trainer).items())
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 2
    for name, parameter in parameters(trainer).items():
        assert torch.equal(parameter, parameters(resumed)[name]), name


@pytest.mark.parametrize("kind", ["base", "live", "ema"])
def test_scoring_uses_no_dropout_and_leaves_the_student_as_it_was(tmp_path, student_path, kind):
    options = {"peft_config": lora_config(lora_dropout=0.5)}
    trainer = opsd_trainer(tmp_path, student_path, teacher_model_kind=kind, trainer_options=options)
    batch = fixed_batch(trainer)
    trainer.model.train()
    # Parts that the user froze stay so.
    trainer.model.base_model.model.model.layers[0].eval()
    next(p for n, p in trainer.model.named_parameters() if "lora_A.default" in n).requires_grad_(False)
    modes = [module.training for module in trainer.model.modules()]
    flags = [p.requires_grad for p in trainer.model.parameters()]
    one, first, second = (trainer.teacher_scores(trainer.model, batch)[""].hidden_states for _ in range(3))
    kept = batch["completion_mask"].bool()
    torch.testing.assert_close(one[kept], first[kept])  # read row by row, then as a tree
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert [module.training for module in trainer.model.modules()] == modes
    assert [p.requires_grad for p in trainer.model.parameters()] == flags


def test_scoring_does_not_checkpoint_activations_where_the_students_forward_does(tmp_path, student_path):
    trainer = opsd_trainer(tmp_path, student_path, gradient_checkpointing=True)
    batch = fixed_batch(trainer)
    trainer.model.gradient_checkpointing_enable()
    calls = []
    for module in trainer.model.modules():
        if hasattr(module, "_gradient_checkpointing_func"):
            original = module._gradient_checkpointing_func
            module._gradient_checkpointing_func = lambda *a, f=original, **k: calls.append(1) or f(*a, **k)
    trainer.model.train()
    trainer.teacher_scores(trainer.model, batch)
    assert calls == []
    trainer._compute_loss(trainer.model, batch)
    assert len(calls) == 2  # the student's two layers


def test_a_student_that_sees_the_context_too_has_nothing_to_learn(tmp_path, student_path):
    trainer = opsd_trainer(tmp_path, student_path)
    batch = fixed_batch(trainer)
    batch["prompt_ids"], batch["prompt_mask"] = batch["teacher_prompt_ids"], batch["teacher_prompt_mask"]
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert all(p.grad.abs().max() < 1e-6 for p in trainer.model.parameters() if p.grad is not None)


def test_a_shared_text_a_file_and_messages_reach_the_teacher(tmp_path, student_path):
    demonstrations = tmp_path / "shots.json"
    demonstrations.write_text('[{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}]')
    plain = tmp_path / "rules.txt"
    plain.write_text("Be b.")
    for options, expected in [
        ({"privileged_context": "Be b."}, "<|im_start|>system\nBe b.<|im_end|>"),
        ({"privileged_context_file": str(plain)}, "<|im_start|>system\nBe b.<|im_end|>"),
        (
            {"privileged_context_file": str(demonstrations), "privileged_builder": "few_shot"},
            "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nb<|im_end|>",
        ),
    ]:
        trainer = opsd_trainer(tmp_path, student_path, dataset=tiny.questions(), **options)
        batch = fixed_batch(trainer)
        ids = batch["teacher_prompt_ids"][0][batch["teacher_prompt_mask"][0].bool()]
        assert trainer.processing_class.decode(ids).startswith(expected)


def test_pad_equal_to_eos_does_not_hide_the_end_of_a_completion(tmp_path, student_path):
    def rollout(prompts, trainer):
        ids = trainer._tokenize_prompts(prompts)[0]
        return {"prompt_ids": ids, "completion_ids": [[2], [10, 2], [10, 11, 2], [10]][: len(ids)], "logprobs": None}

    tokenizer = tiny.build_tokenizer(pad_token=tiny.END)
    trainer = opsd_trainer(
        tmp_path, student_path, trainer_options={"rollout_func": rollout, "processing_class": tokenizer}
    )
    batch = fixed_batch(trainer)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    assert batch["loss_mask"].tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert trainer._compute_loss(trainer.model, batch) > 0
