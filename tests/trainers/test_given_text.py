"""`lmbda` and `teacher_prefix_tokens`: what the rows bring along is trained on, apart from the student's own text."""

import warnings

import pytest
import torch
from datasets import Dataset, IterableDataset

from opd_trl import OPDConfig
from opd_trl.data.row_checks import RowError
from opd_trl.data.toy_calculator import build_tokenizer
from opd_trl.losses import support_divergence
from opd_trl.trainers.generation.given_text import turn_of
from opd_trl.trainers.generation.plans import KIND, is_own
from tests import tiny
from tests.trainers.build import fixed_batch, opd_trainer, opsd_trainer, settings
from tests.trainers.test_loss import dense_log_probs


TEXTS = [f"so {'c' * (i % 3)}{i}" for i in range(8)]
ANSWERS = [[{"role": "assistant", "content": text}] for text in TEXTS]
LONG = {"max_completion_length": 16}


def build(
    tmp_path, student_path, teacher_path, *, completion=TEXTS, conversational=True, trainer_options=None, **options
):
    columns = {} if completion is None else {"completion": completion}
    return opd_trainer(
        tmp_path,
        student_path,
        teacher_path,
        dataset=tiny.questions(conversational=conversational, **columns),
        trainer_options=trainer_options,
        **LONG | options,
    )


def texts_in(trainer, batch, name="completion"):
    rows = zip(batch[f"{name}_ids"], batch[f"{name}_mask"].bool(), strict=True)
    return [trainer.tokenizer.decode(ids[kept]) for ids, kept in rows]


def lines_of(trainer):
    return [line for line in trainer.state.log_history if "loss" in line]


# The text of a row


@pytest.mark.parametrize("completion", [TEXTS, ANSWERS], ids=["texts", "messages"])
def test_a_given_batch_is_the_rows_completions_with_their_end_and_nothing_is_generated(
    tmp_path, student_path, teacher_path, monkeypatch, completion
):
    trainer = build(tmp_path, student_path, teacher_path, completion=completion, lmbda=0.0)
    monkeypatch.setattr(trainer, "_generate_single_turn", lambda *args, **kwargs: pytest.fail("generated"))
    batch = fixed_batch(trainer)
    assert texts_in(trainer, batch) == [text + tiny.END for text in TEXTS[:4]]
    assert batch["loss_mask"].equal(batch["completion_mask"])
    assert batch["num_loss_tokens"] == batch["completion_mask"].sum()
    # Prompt and completion are the whole conversation, as the template writes it.
    whole = [*trainer.train_dataset[3]["prompt"], {"role": "assistant", "content": TEXTS[3]}]
    rendered = trainer.tokenizer.apply_chat_template(whole, tokenize=False).removesuffix("\n")
    assert texts_in(trainer, batch, "prompt")[3] + texts_in(trainer, batch)[3] == rendered


def test_the_last_turn_of_messages_is_given_text_too(tmp_path, student_path, teacher_path):
    prompts = tiny.questions()["prompt"]
    messages = [[*prompt, *answer] for prompt, answer in zip(prompts, ANSWERS, strict=True)]
    dataset = tiny.questions(messages=messages)
    options = LONG | {"dataset": dataset, "lmbda": 0.0, "remove_unused_columns": True, "max_steps": 1}
    trainer = opd_trainer(tmp_path, student_path, teacher_path, **options)
    assert texts_in(trainer, fixed_batch(trainer))[1] == TEXTS[1] + tiny.END
    trainer.train()  # through the data loader, which drops columns


def test_prompts_and_completions_may_be_plain_texts(tmp_path, student_path, teacher_path):
    trainer = build(tmp_path, student_path, teacher_path, conversational=False, lmbda=0.0)
    assert texts_in(trainer, fixed_batch(trainer)) == [text + tiny.END for text in TEXTS[:4]]


def test_a_text_that_the_template_changes_or_a_prompt_that_it_renders_otherwise_is_taken_alone(
    tmp_path, student_path, teacher_path
):
    texts = [f"<a>{i}</a> so" for i in range(8)]
    for template in (
        tiny.CHAT_TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'].split('</a>')[-1] }}"),
        tiny.CHAT_TEMPLATE.replace("assistant\n{% if", "assistant\n(think){% if"),
    ):
        trainer = build(tmp_path, student_path, teacher_path, completion=texts, lmbda=0.0)
        trainer.tokenizer.chat_template = template
        assert texts_in(trainer, fixed_batch(trainer)) == [text + tiny.END for text in texts[:4]]


def test_the_loss_of_given_text_is_that_of_both_models_own_logits_and_the_teacher_reads_its_own_prompt(
    tmp_path, student_path
):
    dataset = tiny.questions(privileged_context="Answer with b.", completion=TEXTS)
    trainer = opsd_trainer(tmp_path, student_path, dataset=dataset, lora=False, lmbda=0.0, **LONG)
    batch = fixed_batch(trainer)
    assert all("Answer with b." in text for text in texts_in(trainer, batch, "teacher_prompt"))
    assert not any("Answer with b." in text for text in texts_in(trainer, batch, "prompt"))
    student = dense_log_probs(trainer.model, batch["prompt_ids"], batch["prompt_mask"], batch)
    teacher = dense_log_probs(trainer.model, batch["teacher_prompt_ids"], batch["teacher_prompt_mask"], batch).detach()
    ids = student.topk(5, dim=-1).indices
    values = support_divergence(student.gather(-1, ids), teacher.gather(-1, ids))
    expected = (values * batch["completion_mask"]).sum() / batch["completion_mask"].sum()
    torch.testing.assert_close(trainer._compute_loss(trainer.model, batch), expected, rtol=1e-4, atol=1e-6)


def test_a_teacher_of_another_tokenizer_reads_given_text(tmp_path, student_path, teacher_path):
    trainer = build(tmp_path, student_path, teacher_path, lmbda=0.0, teacher_vocabulary="text")
    batch = fixed_batch(trainer)
    assert batch["loss_mask"].sum() > 0
    assert trainer._compute_loss(trainer.model, batch).isfinite()


# Which batches, and where their figures go


def test_the_choice_has_the_share_that_was_asked_for_and_depends_on_seed_and_step_alone():
    drawn = [is_own(3, step, number, 0.3) for step in range(500) for number in range(2)]
    assert 250 < sum(drawn) < 350
    assert drawn == [is_own(3, step, number, 0.3) for step in range(500) for number in range(2)]
    assert drawn != [is_own(4, step, number, 0.3) for step in range(500) for number in range(2)]
    assert all(is_own(3, step, 0, 1.0) and not is_own(3, step, 0, 0.0) for step in range(500))


def test_figures_of_given_text_have_names_of_their_own_and_each_line_has_those_of_its_text(
    tmp_path, student_path, teacher_path
):
    trainer = build(tmp_path, student_path, teacher_path, lmbda=0.5, max_steps=8, seed=1)
    trainer.train()
    own = [is_own(1, step, 0, 0.5) for step in range(8)]
    assert 2 <= sum(own) <= 6
    figures = ("distillation/{}per_token_divergence", "support/{}overlap", "{}entropy", "completions/{}mean_length")
    figures += ("completions/{}repetition", "completions/{}clipped_ratio")
    for line, is_students in zip(lines_of(trainer), own, strict=True):
        for figure in figures:
            assert (figure.format("") in line) == is_students
            assert (figure.format("given/") in line) != is_students
    assert lines_of(trainer)[-1]["num_tokens"] > lines_of(trainer)[0]["num_tokens"]


def test_a_step_of_both_kinds_logs_both_each_over_its_own_tokens(tmp_path, student_path, teacher_path):
    # Four generation batches make a step; the seed draws both kinds for it.
    seed = next(s for s in range(99) if sum(is_own(s, 0, number, 0.5) for number in range(4)) == 2)
    options = {"gradient_accumulation_steps": 4, "steps_per_generation": 1, "per_device_train_batch_size": 2}
    trainer = build(tmp_path, student_path, teacher_path, lmbda=0.5, seed=seed, **options)
    trainer.train()
    (line,) = lines_of(trainer)
    assert line["completions/given/max_length"] <= len(TEXTS[2]) + 1 < line["completions/max_length"] == 16
    both = {line["distillation/per_token_divergence"], line["distillation/given/per_token_divergence"]}
    assert len(both) == 2


def test_the_monitor_takes_given_text_neither_for_silence_nor_for_the_students(tmp_path, student_path, teacher_path):
    trainer = build(tmp_path, student_path, teacher_path, lmbda=0.0, max_steps=12)
    trainer.train()
    log = tmp_path / "out" / "run_log"
    assert not (log / "warnings.jsonl").exists()  # that nothing is compared, for one
    assert not (log / "samples.jsonl").exists()  # nothing that the student has written


def test_evaluation_is_always_the_students_own(tmp_path, student_path, teacher_path):
    trainer = build(
        tmp_path, student_path, teacher_path, lmbda=0.0, trainer_options={"eval_dataset": tiny.questions(4)}
    )
    metrics = trainer.evaluate()
    assert metrics["eval_completions/mean_length"] == 16
    assert not any("given" in name for name in metrics)


@pytest.mark.parametrize(
    "options",
    [
        {"lmbda": 0.5, "gradient_accumulation_steps": 2, "steps_per_generation": 1},
        {"lmbda": 0.5, "steps_per_generation": 2},
        {"teacher_prefix_tokens": 4, "rollout_length_start": 6},
    ],
    ids=["several batches a step", "several steps a batch", "prefix and length"],
)
def test_a_resumed_run_takes_the_same_batches_and_ends_bit_for_bit_as_an_unbroken_one(
    tmp_path, student_path, teacher_path, options
):
    options = {"per_device_train_batch_size": 2, "max_steps": 6, "save_strategy": "steps", "save_steps": 3} | options
    unbroken = build(tmp_path, student_path, teacher_path, seed=1, **options)
    unbroken.train()
    resumed = build(tmp_path, student_path, teacher_path, seed=1, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    timed = ("time", "runtime", "per_second")
    logs = [
        [{k: v for k, v in line.items() if not any(word in k for word in timed)} for line in lines_of(trainer)]
        for trainer in (unbroken, resumed)
    ]
    assert logs[0] == logs[1]
    for (name, one), other in zip(unbroken.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other), name


# The student behind a prefix


def test_the_student_goes_on_behind_the_prefix_and_learns_from_its_own_tokens_alone(
    tmp_path, student_path, teacher_path
):
    trainer = build(tmp_path, student_path, teacher_path, teacher_prefix_tokens=3)
    trainer.state.max_steps = 10
    asked, sample = [], trainer._generate_single_turn
    trainer._generate_single_turn = lambda ids, *rest: asked.append(ids) or sample(ids, *rest)
    batch = fixed_batch(trainer)
    starts = [trainer.tokenizer.decode(ids)[-3:] for ids in asked[0]]
    assert starts == [text[:3] for text in TEXTS[:4]]
    assert [text[:3] for text in texts_in(trainer, batch)] == starts
    assert batch["loss_mask"][:, :3].sum() == 0
    assert (batch["loss_mask"] == batch["completion_mask"])[:, 3:].all()
    assert batch["completion_mask"].sum(-1).max() == 16  # the prefix counts
    # Student and teacher read the prefix: the loss is that of their logits behind it.
    student = dense_log_probs(trainer.model, batch["prompt_ids"], batch["prompt_mask"], batch)
    teacher = dense_log_probs(trainer.teacher.model, batch["prompt_ids"], batch["prompt_mask"], batch).detach()
    ids = student.topk(5, dim=-1).indices
    values = support_divergence(student.gather(-1, ids), teacher.gather(-1, ids))
    expected = (values * batch["loss_mask"]).sum() / batch["loss_mask"].sum()
    torch.testing.assert_close(trainer._compute_loss(trainer.model, batch), expected, rtol=1e-4, atol=1e-6)


def test_the_prefix_falls_on_a_line_to_nothing_never_holds_the_end_and_lengths_come_apart(
    tmp_path, student_path, teacher_path
):
    options = {"teacher_prefix_tokens": 9, "teacher_prefix_steps": 3, "max_steps": 5}
    trainer = build(tmp_path, student_path, teacher_path, **options)
    seen, answer = [], trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda rows: seen.append((rows, answer(rows))) or seen[-1][1]
    trainer.train()
    for prefix, (rows, batch) in zip((9, 6, 3, 0, 0), seen, strict=True):
        lengths = [min(prefix, len(row["completion"])) for row in rows]
        skipped = (batch["completion_mask"] - batch["loss_mask"]).sum(-1)
        assert skipped.tolist() == lengths
        assert batch["completion_ids"].size(1) == 16
        assert (KIND in batch) == (prefix > 0)
    names = [
        ("completions/mean_length" in line, "completions/partial/mean_length" in line) for line in lines_of(trainer)
    ]
    assert names == [(False, True)] * 3 + [(True, False)] * 2


def test_rewards_see_the_prefix_and_its_tokens_have_no_policy_loss(tmp_path, student_path, teacher_path):
    seen = []

    def reward(completions, completion_ids, **kwargs):
        seen.extend(text[0]["content"] for text in completions)
        return [float(len(ids) % 3) for ids in completion_ids]

    trainer = build(
        tmp_path,
        student_path,
        teacher_path,
        teacher_prefix_tokens=3,
        num_generations=2,
        trainer_options={"reward_funcs": reward},
    )
    trainer.state.max_steps = 10
    batch = fixed_batch(trainer, [trainer.train_dataset[i // 2] for i in range(4)])
    assert [text[:3] for text in seen] == [TEXTS[i // 2][:3] for i in range(4)]
    assert batch["tool_mask"][:, :3].sum() == 0
    assert batch["num_items_in_batch"] == batch["loss_mask"].sum()


# Bad input


@pytest.mark.parametrize("options", [{"lmbda": 0.5}, {"teacher_prefix_tokens": 2}], ids=["lmbda", "prefix"])
@pytest.mark.parametrize(
    ("third", "message"),
    [
        (None, "row 2 of the train set: no given completion: there is neither a `completion` nor `messages`"),
        (" \n", "row 2 of the train set: the given completion is empty"),
        (
            f"so {tiny.END} on",
            r"row 2 of the train set: the given completion holds <\|im_end\|>, which ends",
        ),
    ],
)
def test_a_row_without_a_usable_completion_is_named_before_anything_is_written(
    tmp_path, student_path, teacher_path, options, third, message
):
    with pytest.raises(RowError, match=message):
        build(tmp_path, student_path, teacher_path, completion=[*TEXTS[:2], third, *TEXTS[3:]], **options)
    assert not (tmp_path / "out").exists()


def test_a_data_set_without_completions_names_its_first_row(tmp_path, student_path, teacher_path):
    with pytest.raises(RowError, match=r"row 0 of the train set: no given completion.*or set lmbda: 1\.0"):
        build(tmp_path, student_path, teacher_path, completion=None, lmbda=0.9)
    build(tmp_path, student_path, teacher_path, completion=None)


def test_a_given_text_above_the_limit_is_an_error_with_its_row_and_never_cut(tmp_path, student_path, teacher_path):
    fits, longer = [[*TEXTS[:5], "x" * length, *TEXTS[6:]] for length in (15, 16)]
    build(tmp_path, student_path, teacher_path, completion=fits, lmbda=0.0)
    with pytest.raises(RowError, match="row 5 of the train set: the given completion has 17 tokens with its end, at"):
        build(tmp_path, student_path, teacher_path, completion=longer, lmbda=0.0)
    build(tmp_path, student_path, teacher_path, completion=longer, teacher_prefix_tokens=4)  # its start alone is read


def test_a_text_that_was_cut_before_its_end_teaches_no_end(tmp_path, student_path, teacher_path):
    dataset = tiny.questions(completion=TEXTS, truncated=[False] * 6 + [True, False])
    options = LONG | {"dataset": dataset}
    with pytest.raises(RowError, match=r"row 6 of the train set: .* cut before its end \(column 'truncated'\)"):
        opd_trainer(tmp_path, student_path, teacher_path, lmbda=0.5, **options)
    opd_trainer(tmp_path, student_path, teacher_path, teacher_prefix_tokens=2, **options)


def test_rows_of_a_stream_are_looked_at_as_they_come(tmp_path, student_path, teacher_path):
    def rows(bad):
        for i, row in enumerate(tiny.questions(8, completion=TEXTS)):
            yield {**row, "completion": None if i == bad else row["completion"]}

    stream = IterableDataset.from_generator(rows, gen_kwargs={"bad": 1})
    with pytest.raises(RowError, match="row 1 of the train set: no given completion"):
        opd_trainer(tmp_path, student_path, teacher_path, dataset=stream, lmbda=0.0, **LONG)
    stream = IterableDataset.from_generator(rows, gen_kwargs={"bad": 6})
    trainer = opd_trainer(tmp_path, student_path, teacher_path, dataset=stream, lmbda=0.0, max_steps=2, **LONG)
    with pytest.raises(RowError, match=r"row . of this batch .* no given completion"):
        trainer.train()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"completion": [{"role": "user", "content": "2"}]}, "is not one assistant turn"),
        ({"completion": ANSWERS[0] * 2}, "is not one assistant turn"),
        ({"completion": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "calls tools"),
        ({"completion": [5]}, "is not one assistant turn"),
        ({"messages": [{"role": "user", "content": "3?"}, *ANSWERS[0]]}, "not the row's prompt"),
        ({"messages": [{"role": "user", "content": "2?"}] * 2}, "is not one assistant turn|not the row's prompt"),
    ],
)
def test_what_is_no_answer_in_words_is_refused(row, message):
    with pytest.raises(RowError, match=message):
        turn_of({"prompt": [{"role": "user", "content": "2?"}]} | row)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lmbda": 1.5}, r"lmbda must lie in \[0, 1\], got 1.5"),
        (
            {"lmbda": 0.5, "num_generations": 2},
            "num_generations=2: a row has one given completion.*Set num_gen",
        ),
        (
            {"lmbda": 0.5, "loss_importance_cap": 2.0},
            "was not sampled from the student.*Leave loss_importance_cap",
        ),
        ({"lmbda": 0.5, "method": "exopd"}, "lmbda=0.5 with loss_importance_cap=5.0"),
        ({"teacher_prefix_tokens": 0}, "teacher_prefix_tokens must be >= 1"),
        ({"teacher_prefix_tokens": 8}, "leaves no room: a rollout has at most 8 tokens.*max_completion_length"),
        ({"teacher_prefix_tokens": 4, "rollout_length_start": 4}, "at most 4 tokens.*rollout_length_start"),
        ({"teacher_prefix_tokens": 4, "generation_kwargs": {"max_new_tokens": 9}}, "generation_kwargs has 'max_new_"),
    ],
)
def test_an_impossible_setting_is_refused_with_the_remedy(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        OPDConfig(**settings(tmp_path, **options))


def test_the_sampled_token_is_warned_of_on_given_text_and_only_there(tmp_path):
    with pytest.warns(UserWarning, match="unbiased over what the student samples, and given text is not that"):
        OPDConfig(**settings(tmp_path, lmbda=0.5, loss_support="sampled"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        OPDConfig(**settings(tmp_path, lmbda=0.5))
        OPDConfig(**settings(tmp_path, loss_support="sampled"))


def one(completions, **kwargs):
    return [1.0] * len(completions)


def rollout(prompts, trainer):
    return {}


class Room:
    """An environment without tools."""

    def reset(self, **kwargs):
        return " Go."


@pytest.mark.parametrize(
    ("options", "trainer_options", "message"),
    [
        ({"lmbda": 0.5}, {"reward_funcs": one}, "lmbda=0.5 with reward functions, beta or an entropy bonus"),
        ({"lmbda": 0.5, "beta": 0.01}, {}, "lmbda=0.5 with reward functions, beta or an entropy bonus"),
        ({"lmbda": 0.5}, {"rollout_func": rollout}, "lmbda=0.5 with rollout_func, which writes the rollouts itself"),
        ({"teacher_prefix_tokens": 2}, {"rollout_func": rollout}, "teacher_prefix_tokens=2 with rollout_func"),
        (
            {"teacher_prefix_tokens": 2},
            {"environment_factory": Room, "processing_class": build_tokenizer()},  # its template renders tools
            "a given text has no turns of theirs",
        ),
    ],
)
def test_a_trainer_that_needs_the_students_own_text_is_refused(
    tmp_path, student_path, teacher_path, options, trainer_options, message
):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, student_path, teacher_path, trainer_options=trainer_options, **options)


def test_given_columns_are_ignored_where_nothing_reads_them(tmp_path, student_path, teacher_path):
    dataset = Dataset.from_dict({"prompt": tiny.questions()["prompt"], "completion": [None] * 8, "messages": [[]] * 8})
    opd_trainer(tmp_path, student_path, teacher_path, dataset=dataset).train()
