"""`shuffle_privileged_context`: the teacher reads another problem's context, the same one in every epoch."""

import pytest
import torch
from datasets import IterableDataset

from opd_trl import OPSDConfig
from opd_trl.trainers.other_contexts import other_rows
from tests import tiny
from tests.trainers.build import fixed_batch, opd_trainer, opsd_trainer


CONTEXTS = ["Say b.", "Say c.", "Say d.", "Say e.", "Say f.", "Say g.", "Say h.", "Say i."]


def build(tmp_path, student_path, **options):
    dataset = options.pop("dataset", None) or tiny.questions(privileged_context=CONTEXTS)
    return opsd_trainer(tmp_path, student_path, dataset=dataset, shuffle_privileged_context=True, **options)


def read_by_teacher(trainer, batch):
    masks = batch["teacher_prompt_mask"].bool()
    rows = zip(batch["teacher_prompt_ids"], masks, strict=True)
    return [trainer.tokenizer.decode(ids[mask].tolist()) for ids, mask in rows]


def test_the_teacher_reads_another_rows_context_and_never_the_rows_own(tmp_path, student_path):
    trainer = build(tmp_path, student_path)
    batch = fixed_batch(trainer)
    for row, text in enumerate(read_by_teacher(trainer, batch)):
        found = [context for context in CONTEXTS if context in text]
        assert len(found) == 1
        assert found[0] != CONTEXTS[row]


def test_who_reads_whose_context_depends_on_the_seed_alone(tmp_path, student_path):
    seeds = {}, {}, {"seed": 7}
    columns = [build(tmp_path, student_path, **x).train_dataset["privileged_context"][:] for x in seeds]
    assert columns[0] == columns[1] != columns[2]
    by_data_seed = build(tmp_path, student_path, seed=42, data_seed=7).train_dataset["privileged_context"][:]
    assert by_data_seed == columns[2]


def test_a_resumed_run_reads_the_same_contexts_and_ends_where_an_unbroken_one_does(tmp_path, student_path):
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "lora": False}
    whole = build(tmp_path / "whole", student_path, **options)
    whole.train()
    resumed = build(tmp_path / "again", student_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "out" / "checkpoint-1"))
    for ours, theirs in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_evaluation_has_other_contexts_too_whichever_set_it_is_of(tmp_path, student_path, monkeypatch):
    own = tiny.questions(privileged_context=CONTEXTS)
    given = tiny.questions(privileged_context=CONTEXTS[::-1])
    sets = {"one": own}
    trainer = build(tmp_path, student_path, trainer_options={"eval_dataset": sets}, per_device_eval_batch_size=8)
    seen = []
    answer = trainer._generate_and_score_completions
    monkeypatch.setattr(
        trainer,
        "_generate_and_score_completions",
        lambda rows: seen.append({str(row["prompt"]): row["privileged_context"] for row in rows}) or answer(rows),
    )
    trainer.evaluate()
    trainer.evaluate(trainer.eval_dataset["one"])
    trainer.evaluate(given)
    assert seen[0] == seen[1] == {str(row["prompt"]): row["privileged_context"] for row in trainer.eval_dataset["one"]}
    for found, before in ((seen[0], own), (seen[2], given)):
        assert len(found) == len(before)
        assert all(found[str(row["prompt"])] != row["privileged_context"] for row in before)
        assert set(found.values()) <= set(CONTEXTS)


def test_another_row_asks_another_prompt_and_has_another_context():
    prompts = ["p", "p", "q", "q", "r"]
    contexts = ["1", "2", "3", "1", "3"]
    for seed in range(20):
        for row, other in enumerate(other_rows(prompts, contexts, seed=str(seed))):
            assert prompts[row] != prompts[other]
            assert contexts[row] != contexts[other]


def test_a_row_that_only_one_other_fits_finds_it():
    count = 3000
    contexts = ["same"] * (count - 1) + ["other"]
    found = other_rows([str(i) for i in range(count)], contexts, seed="0")
    assert found[:-1] == [count - 1] * (count - 1)


def test_contexts_of_messages_move_as_they_are(tmp_path, student_path):
    contexts = [[{"role": "user", "content": text}, {"role": "assistant", "content": "b"}] for text in CONTEXTS]
    dataset = tiny.questions(privileged_context=contexts)
    trainer = build(tmp_path, student_path, dataset=dataset, privileged_builder="few_shot")
    found = trainer.train_dataset["privileged_context"][:]
    assert all(x in contexts and x != own for x, own in zip(found, contexts, strict=True))


@pytest.mark.parametrize(
    ("contexts", "message"),
    [
        (["the same"] * 8, r"row 0 of the train set: no other prompt .* at least 2 prompts with 2 distinct contexts"),
        ([*CONTEXTS[:5], "", *CONTEXTS[6:]], "'privileged_context' is empty in row 5 of the train set"),
    ],
)
def test_contexts_that_cannot_be_another_rows_are_refused(tmp_path, student_path, contexts, message):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, student_path, dataset=tiny.questions(privileged_context=contexts))


def test_a_stream_and_a_set_without_contexts_are_refused(tmp_path, student_path, teacher_path):
    rows = tiny.questions(privileged_context=CONTEXTS)
    stream = IterableDataset.from_generator(lambda: iter(rows))
    with pytest.raises(ValueError, match=r"draws from all rows, and the train set is a stream"):
        build(tmp_path, student_path, dataset=stream)
    with pytest.raises(ValueError, match="has no column 'privileged_context'"):
        opd_trainer(tmp_path, student_path, teacher_path, shuffle_privileged_context=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"privileged_context": "Be brief."}, "together with a privileged context that all rows share"),
        ({"sibling_context": True, "num_generations": 2}, "together with sibling_context"),
    ],
)
def test_what_has_no_other_rows_context_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OPSDConfig(output_dir="out", use_cpu=True, shuffle_privileged_context=True, **options)
