"""The teacher reads what the student was really given: its pictures, its environment, its rollout; or says no."""

import pytest
import torch
from datasets import Dataset

from tests.trainers import vision
from tests.trainers.build import fixed_batch, opd_trainer, opsd_trainer


@pytest.fixture(scope="module")
def processor():
    return vision.build_processor()


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
    trainer = vision.vlm_trainer(tmp_path, processor, teacher_model_kind="live", **options)
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
    trainer = vision.vlm_trainer(tmp_path, processor, teacher=teacher)
    batch = fixed_batch(trainer)
    assert "teacher_prompt_ids" not in batch
    expected = reference_loss(trainer.model, teacher, batch, batch["prompt_ids"], batch["prompt_mask"])
    torch.testing.assert_close(trainer._compute_loss(trainer.model.train(), batch).detach(), expected)


def test_pictures_without_a_processor_are_refused(tmp_path, teacher_path, student_path):
    with pytest.raises(ValueError, match=r"processing_class is a .*which reads text alone.*with its processor"):
        opd_trainer(tmp_path, student_path, teacher_path, dataset=vision.questions())
    assert not (tmp_path / "out").exists()


def test_sound_and_video_which_no_model_would_be_shown_are_refused(tmp_path, processor):
    for dataset, what, where in [
        (vision.questions(video="a.mp4"), "video", "the train set has"),
        (in_parts("audio"), "audio", "row 0 of the train set: the prompt has"),
    ]:
        with pytest.raises(ValueError, match=f"{where} '{what}'.*Remove '{what}'"):
            vision.vlm_trainer(tmp_path, processor, dataset=dataset, privileged_context="b")


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
    with pytest.raises(ValueError, match=r"row 0 of this batch .*teacher's prompt has 0 images, the student's has 1"):
        fixed_batch(vision.vlm_trainer(tmp_path, processor, **options))


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
