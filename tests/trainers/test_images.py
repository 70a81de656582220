"""Loss and gradient on rows with images against the models' own forward, one row at a time without any padding."""

import copy

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from opd_trl import OPDConfig, OPDTrainer, OPSDConfig, OPSDTrainer
from opd_trl.trainers.scoring import token_logps
from tests.trainers import vision
from tests.trainers.build import fixed_batch, lora_config, settings


ONE, TWO, THREE, FOUR, FIVE = vision.pictures(5)
SMALL = vision.pictures(1, size=16)[0]


@pytest.fixture(scope="module", params=vision.FAMILIES)
def family(request):
    found = vision.FAMILIES[request.param]
    return found, found.processor()


def text(words):
    return {"type": "text", "text": words}


def image(picture=None):
    return {"type": "image"} if picture is None else {"type": "image", "image": picture}


def user(content):
    return {"role": "user", "content": content}


def said(words):
    return {"role": "assistant", "content": [text(words)]}


#: Two images, none, one and one; a picture of another size; prompts as text and as parts.
PROMPTS = [
    ([user([text("what differs in "), image(), text(" and "), image()])], [ONE, TWO]),
    ([user([text("hi")])], []),
    ([user([image(), text("who is it, and where?")])], [THREE]),
    ([user([image(), text("x")])], [SMALL]),
]
#: What only the teacher reads: one image, none, two, one.
CONTEXTS = [
    [user([text("like "), image(FOUR)]), said("a")],
    [user([text("be brief")]), said("ok")],
    [user([image(FOUR), image(FIVE), text("these")]), said("b")],
    [user([image(SMALL), text("as here")]), said("c")],
]


def rows(contexts=None):
    columns = {"prompt": [prompt for prompt, _ in PROMPTS], "images": [images for _, images in PROMPTS]}
    if contexts is not None:
        columns["privileged_context"] = contexts
    return Dataset.from_dict(columns)


def filled(prompt, images):
    """A prompt with its images in their places."""
    images = iter(images)
    content = [image(next(images)) if part["type"] == "image" else part for part in prompt[-1]["content"]]
    return [*prompt[:-1], {**prompt[-1], "content": content}]


def log_probs(model, processor, messages, completion):
    """The model's own logits at a completion `(T,)`, as log-probabilities `(T, V)`: one row, nothing padded."""
    pictures = [part["image"] for turn in messages for part in turn["content"] if part["type"] == "image"]
    rendered = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = dict(processor(text=[rendered], images=[pictures] if pictures else None, return_tensors="pt"))
    answer = {"input_ids": completion, "attention_mask": torch.ones_like(completion)}
    for name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            behind = answer.get(name, torch.zeros_like(completion))
            inputs[name] = torch.cat([inputs[name], behind[None]], dim=1)
    return model(**inputs).logits[0, -len(completion) - 1 : -1].log_softmax(-1)


class Seen:
    """What a trainer generates from: its rows, and the batch that it makes of them."""

    def _generate_and_score_completions(self, inputs):
        self.rows, self.batch = inputs, super()._generate_and_score_completions(inputs)
        return self.batch


class SelfTeacher(Seen, OPSDTrainer):
    pass


class Taught(Seen, OPDTrainer):
    pass


class Gradients(TrainerCallback):
    """The gradients of a step, by parameter."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.of = {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}


def completions(trainer):
    for row, ids, mask in zip(
        trainer.rows, trainer.batch["completion_ids"], trainer.batch["completion_mask"], strict=True
    ):
        yield row, ids[mask.bool()]


def plain(prompt):
    """A prompt as it stands above, whatever keys the table has put into it."""
    return [
        {**turn, "content": [{k: v for k, v in part.items() if v is not None} for part in turn["content"]]}
        for turn in prompt
    ]


def place_of(row):
    return [prompt for prompt, _ in PROMPTS].index(plain(row["prompt"]))


def oracle(trainer, processor, student, teacher, teachers_prompt):
    """Mean reverse KL of the models' own logits over all tokens of the step, with its graph."""
    total, count = 0.0, 0
    for row, completion in completions(trainer):
        place = place_of(row)
        prompt = filled(*PROMPTS[place])
        p = log_probs(student, processor, prompt, completion)
        with torch.no_grad():
            q = teacher(lambda model: log_probs(model, processor, teachers_prompt(place, prompt), completion))  # noqa: B023
        total, count = total + (p.exp() * (p - q)).sum(), count + len(completion)
    return total / count


def step_options(**options):
    return {
        "loss_support": "full",
        "disable_dropout": True,
        "learning_rate": 0.0,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_completion_length": 5,
        "max_grad_norm": 0.0,
        "monitor": False,
        "temperature": 1.0,
    } | options


def self_teacher(tmp_path, family, *, lora, contexts=CONTEXTS, **options):
    found, processor = family
    trainer = SelfTeacher(
        found.model(processor),
        args=OPSDConfig(**settings(tmp_path, **step_options(privileged_builder="few_shot", **options))),
        train_dataset=rows(contexts),
        processing_class=processor,
        peft_config=lora_config() if lora else None,
    )
    torch.manual_seed(1)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:  # zero before it is trained: the student would be the teacher
            parameter.data.normal_(0, 0.1)
    return trainer


@pytest.mark.parametrize("lora", [True, False])
def test_a_self_teachers_loss_and_gradient_are_those_of_plain_forwards(tmp_path, family, lora):
    """Images in prompt and context, in rows of different lengths that are sorted into micro-batches."""
    options = {"gradient_checkpointing": True} if lora else {"gradient_checkpointing": False}
    kind = "base" if lora else "live"
    trainer = self_teacher(tmp_path, family, lora=lora, teacher_model_kind=kind, **options)
    gradients = Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    model = trainer.model.eval()

    def teacher(ask):
        if not lora:
            return ask(model)
        with model.disable_adapter():
            return ask(model)

    def prompt_of(place, prompt):
        return [*CONTEXTS[place], *prompt]

    expected = oracle(trainer, family[1], model, teacher, prompt_of)
    assert expected > 1e-3
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-3)
    expected.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.grad is not None:
            torch.testing.assert_close(gradients.of[name], parameter.grad, rtol=1e-3, atol=1e-5)
    # The oracle itself hears the pictures: with another one in the contexts it says something else.
    others = [[*CONTEXTS[1]], CONTEXTS[1], [user([image(FIVE), image(FOUR), text("these")]), said("b")], CONTEXTS[3]]
    moved = oracle(trainer, family[1], model, teacher, lambda place, prompt: [*others[place], *prompt])
    assert abs(moved.item() - expected.item()) > 1e-4


@pytest.mark.parametrize("options", [{"micro_batch_tokens": 150}, {"teacher_batch_size": 3}], ids=str)
def test_a_separate_teacher_is_shown_the_images_of_its_rows(tmp_path, family, options):
    found, processor = family
    teacher = found.model(processor, seed=1)
    own = copy.deepcopy(teacher)
    trainer = Taught(
        found.model(processor),
        teacher_model=teacher,
        args=OPDConfig(**settings(tmp_path, **step_options(**options))),
        train_dataset=rows(),
        processing_class=processor,
    )
    trainer.train()
    expected = oracle(trainer, processor, trainer.model.eval(), lambda ask: ask(own.eval()), lambda _, prompt: prompt)
    assert expected > 0.01
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-3)


def test_each_of_several_teachers_is_shown_the_images_of_its_own_rows(tmp_path, family):
    found, processor = family
    teachers = {name: found.model(processor, seed=seed).eval() for name, seed in (("a", 1), ("b", 2))}
    own = copy.deepcopy(teachers)
    dataset = rows().add_column("teacher", ["a", "b", "b", "a"])
    trainer = Taught(
        found.model(processor),
        teacher_model=teachers,
        args=OPDConfig(**settings(tmp_path, **step_options())),
        train_dataset=dataset,
        processing_class=processor,
    )
    trainer.train()
    total, count = 0.0, 0
    with torch.no_grad():
        for row, completion in completions(trainer):
            prompt = filled(*PROMPTS[place_of(row)])
            p = log_probs(trainer.model.eval(), processor, prompt, completion)
            q = log_probs(own[row["teacher"]], processor, prompt, completion)
            total, count = total + (p.exp() * (p - q)).sum(), count + len(completion)
    assert trainer.state.log_history[0]["loss"] == pytest.approx((total / count).item(), rel=1e-3)


def test_what_is_known_of_the_tokens_at_sampling_and_of_a_reference_is_scored_with_images(tmp_path, family):
    trainer = self_teacher(
        tmp_path, family, lora=False, loss_support="sampled", loss_extrapolation=1.2, teacher_model_kind="live"
    )
    batch = fixed_batch(trainer, [trainer.train_dataset[i] for i in range(4)])
    found = token_logps(trainer, batch)["reference_logps"]
    with torch.no_grad():
        for place, (row, completion) in enumerate(completions(trainer)):
            p = log_probs(trainer.model.eval(), family[1], filled(*PROMPTS[place_of(row)]), completion)
            expected = p.gather(-1, completion[:, None]).squeeze(-1)
            torch.testing.assert_close(found[place][: len(completion)], expected, rtol=1e-3, atol=1e-3)


def test_a_teacher_may_be_shown_an_image_that_no_student_sees(tmp_path, family):
    contexts = [[user([image(FOUR), text("see")]), said("a")]] * 4
    dataset = Dataset.from_dict({"prompt": [[user("hi")], [user("who?")]] * 2, "privileged_context": contexts})
    found, processor = family
    trainer = SelfTeacher(
        found.model(processor),
        args=OPSDConfig(
            **settings(tmp_path, **step_options(privileged_builder="few_shot", teacher_model_kind="live"))
        ),
        train_dataset=dataset,
        processing_class=processor,
    )
    trainer.train()
    assert "pixel_values" not in trainer.batch
    model, total, count = trainer.model.eval(), 0.0, 0
    with torch.no_grad():
        for row, completion in completions(trainer):
            prompt = [user([text(row["prompt"][0]["content"])])]
            p = log_probs(model, processor, prompt, completion)
            q = log_probs(model, processor, [*contexts[0], *prompt], completion)
            total, count = total + (p.exp() * (p - q)).sum(), count + len(completion)
    assert trainer.state.log_history[0]["loss"] == pytest.approx((total / count).item(), rel=1e-3)
    assert total / count > 1e-3


def test_given_text_is_read_with_images_also_where_they_stand_in_the_prompt(tmp_path, family):
    found, processor = family
    prompts = [filled(*row) for row in PROMPTS]
    trainer = Taught(
        found.model(processor),
        teacher_model=found.model(processor, seed=1),
        args=OPDConfig(**settings(tmp_path, **step_options(lmbda=0.0))),
        train_dataset=Dataset.from_dict({"prompt": prompts, "completion": ["a", "bc", "d", "efg"]}),
        processing_class=processor,
    )
    trainer.train()
    total, count = 0.0, 0
    with torch.no_grad():
        for row, completion in completions(trainer):
            place = ["a", "bc", "d", "efg"].index(row["completion"])
            p, q = (
                log_probs(model.eval(), processor, prompts[place], completion)
                for model in (trainer.model, trainer.teacher_model)
            )
            total, count = total + (p.exp() * (p - q)).sum(), count + len(completion)
    assert trainer.state.log_history[0]["loss"] == pytest.approx((total / count).item(), rel=1e-3)
