"""The teacher reads what the student was really given: its pictures, its environment, its rollout; or says no."""

import pytest
import torch
from datasets import Dataset

from opd_trl import OPDConfig, OPDTrainer, OPSDConfig, OPSDTrainer
from opd_trl.teachers.base import own_token_types
from tests import tiny
from tests.trainers import vision
from tests.trainers.build import fixed_batch, opd_trainer, opsd_trainer, settings


@pytest.fixture(scope="module")
def processor():
    return vision.build_processor()


def vlm_trainer(tmp_path, processor, *, teacher=None, dataset=None, **options):
    """An OPSDTrainer on pictures, or an OPDTrainer where there is a teacher."""
    trainer, config = (OPSDTrainer, OPSDConfig) if teacher is None else (OPDTrainer, OPDConfig)
    options = {"loss_support": "full", "disable_dropout": True} | options
    return trainer(
        vision.build_vlm(processor),
        args=config(**settings(tmp_path, **options)),
        train_dataset=vision.questions() if dataset is None else dataset,
        processing_class=processor,
        **({} if teacher is None else {"teacher_model": teacher}),
    )


@torch.no_grad()
def reference_loss(student, teacher, batch, prompt_ids, prompt_mask):
    """Mean reverse KL of the models' own logits, the teacher reading these prompts and the student's pictures."""

    def log_probs(model, ids, mask):
        ids, mask = (torch.cat(x, 1) for x in ((ids, batch["completion_ids"]), (mask, batch["completion_mask"])))
        logits = model.eval()(input_ids=ids, attention_mask=mask, pixel_values=batch["pixel_values"]).logits
        return logits[:, -batch["completion_ids"].size(1) - 1 : -1].log_softmax(-1)

    p = log_probs(student, batch["prompt_ids"], batch["prompt_mask"])
    q = log_probs(teacher, prompt_ids, prompt_mask)
    return (p.exp() * (p - q)).sum(-1)[batch["completion_mask"].bool()].mean()


def encoded(processor, prompts):
    """Ids and mask of prompts with a picture each, as the processor itself makes them."""
    rendered = processor.apply_chat_template(prompts, add_generation_prompt=True, tokenize=False)
    found = processor(text=rendered, images=vision.pictures(len(prompts)), return_tensors="pt", padding=True)
    return found["input_ids"], found["attention_mask"]


def test_a_self_teacher_sees_the_pictures_of_the_student(tmp_path, processor):
    options = {"privileged_builder": "hint", "privileged_context": "It is noise."}
    trainer = vlm_trainer(tmp_path, processor, teacher_model_kind="live", **options)
    batch = fixed_batch(trainer)
    text = {"type": "text", "text": "what?\n\nA hint, for you alone: It is noise."}
    prompts = [[{"role": "user", "content": [{"type": "image"}, text]}]] * 4
    ids, mask = encoded(processor, prompts)
    assert torch.equal(batch["teacher_prompt_ids"], ids)
    image_id = processor.tokenizer.convert_tokens_to_ids(vision.IMAGE)
    assert ((batch["teacher_prompt_ids"] == image_id).sum(-1) == vision.TOKENS).all()
    expected = reference_loss(trainer.model, trainer.model, batch, ids, mask)
    assert expected > 0.01
    torch.testing.assert_close(trainer._compute_loss(trainer.model.train(), batch).detach(), expected)


def test_a_separate_teacher_sees_them_in_the_students_own_prompt(tmp_path, processor):
    teacher = vision.build_vlm(processor, seed=1)
    trainer = vlm_trainer(tmp_path, processor, teacher=teacher)
    batch = fixed_batch(trainer)
    assert "teacher_prompt_ids" not in batch
    expected = reference_loss(trainer.model, teacher, batch, batch["prompt_ids"], batch["prompt_mask"])
    torch.testing.assert_close(trainer._compute_loss(trainer.model.train(), batch).detach(), expected)


def test_pictures_that_the_teacher_would_not_see_are_refused(tmp_path, processor, teacher_path, student_path):
    rows = len(processor.tokenizer)
    for options, match in [
        ({"teacher": tiny.build_model(vocab_size=rows)}, "the teacher is a qwen3 model, which reads text alone"),
        ({"teacher_batch_size": 2}, "has images, and teacher_batch_size or teacher_offload would need them cut"),
        ({"loss_support": "sampled", "loss_extrapolation": 1.2}, "has images, and loss_extrapolation would need"),
    ]:
        with pytest.raises(ValueError, match=match):
            vlm_trainer(tmp_path, processor, **{"privileged_context": "b", **options})
    with pytest.raises(ValueError, match=r"processing_class is a .*which reads text alone.*with its processor"):
        opd_trainer(tmp_path, student_path, teacher_path, dataset=vision.questions())
    assert not (tmp_path / "out").exists()


def test_sound_and_video_which_no_model_would_be_shown_are_refused(tmp_path, processor):
    for dataset, what in [(vision.questions(video="a.mp4"), "video"), (in_parts("audio"), "audio")]:
        with pytest.raises(ValueError, match=f"the train set has '{what}'.*Remove '{what}'"):
            vlm_trainer(tmp_path, processor, dataset=dataset, privileged_context="b")


def test_a_template_argument_that_is_never_read_is_refused(tmp_path, student_path, teacher_path):
    with pytest.raises(ValueError, match="has 'enable_thinkin', which the chat template does not read"):
        opd_trainer(tmp_path, student_path, teacher_path, teacher_chat_template_kwargs={"enable_thinkin": True})


def in_parts(kind):
    """Prompts whose parts are of a kind, without a column of their own."""
    content = [{"type": kind, "text": ""}, {"type": "text", "text": "what?"}]
    return Dataset.from_list([{"prompt": [{"role": "user", "content": content}]}] * 4)


def blind(prompt, context):
    """A builder that forgets the pictures."""
    return [{"role": "user", "content": f"{context} what?"}]


def test_a_builder_that_forgets_the_pictures_is_named(tmp_path, processor):
    options = {"privileged_context": "b", "privileged_builder": f"{__name__}:blind", "teacher_model_kind": "live"}
    with pytest.raises(ValueError, match=r"in row 0 of this batch .* has 0 images, the student's has 1"):
        fixed_batch(vlm_trainer(tmp_path, processor, **options))


def test_each_token_has_the_type_that_it_has_in_the_students_prompt():
    batch = {
        "prompt_ids": torch.tensor([[0, 9, 9, 5]]),
        "completion_ids": torch.tensor([[9, 6]]),  # the student wrote the token of a picture itself
        "mm_token_type_ids": torch.tensor([[0, 1, 1, 0, 0, 0]]),
        "teacher_prompt_ids": torch.tensor([[7, 8, 9, 9, 5]]),
    }
    assert own_token_types(batch)["mm_token_type_ids"].tolist() == [[0, 0, 1, 1, 0, 0, 0]]


class Door:
    """An environment whose observation ends each prompt, and whose method is a tool."""

    def reset(self, **kwargs):
        return " The door is shut."

    def knock(self) -> str:
        """Knock at the door."""
        return "come in"


def test_the_teacher_reads_what_an_environment_added(tmp_path, student_path, monkeypatch):
    monkeypatch.setattr("trl.trainer.grpo_trainer.supports_tool_calling", lambda _: True)  # the tiny template has none
    monkeypatch.setattr("trl.trainer.grpo_trainer.is_jmespath_available", lambda: True)  # transformers below 5.13
    monkeypatch.setattr("trl.trainer.grpo_trainer.add_response_schema", lambda tokenizer: tokenizer)
    monkeypatch.setattr("trl.trainer.grpo_trainer.is_chat_template_prefix_preserving", lambda _: True)
    tokenizer = tiny.build_tokenizer()
    tokenizer.chat_template = "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}" + tiny.CHAT_TEMPLATE
    options = {"environment_factory": Door, "processing_class": tokenizer}
    rows = {"privileged_context": "Be bold.", "max_teacher_prompt_length": 200}
    trainer = opsd_trainer(tmp_path, student_path, dataset=tiny.questions(), trainer_options=options, **rows)
    batch = fixed_batch(trainer)
    read = tokenizer.batch_decode(batch["teacher_prompt_ids"], skip_special_tokens=True)
    assert all(text.startswith("knock ") and "Be bold." in text and "? The door is shut." in text for text in read)


def test_the_prompt_of_a_rollout_is_the_rows_or_is_refused(tmp_path, student_path):
    changed = {2: [5]}

    def rollout(prompts, trainer):
        ids = trainer.tokenize(prompts)
        ids = [row + changed.get(i, []) for i, row in enumerate(ids)]
        return {"prompt_ids": ids, "completion_ids": [[10, 11, 2]] * len(ids), "logprobs": None}

    trainer = opsd_trainer(tmp_path, student_path, trainer_options={"rollout_func": rollout})
    with pytest.raises(ValueError, match=r"another prompt than that of row 2 of this batch.*env_mask of 0"):
        fixed_batch(trainer)
    changed.clear()
    assert "teacher_prompt_ids" in fixed_batch(trainer)
