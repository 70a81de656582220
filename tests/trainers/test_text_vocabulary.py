"""A teacher of another tokenizer: it reads text, and what both did not read alike has no loss."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from opd_trl import OPSDConfig
from opd_trl.preflight.inspection import preflight
from opd_trl.teachers.text_ids import ALONE, SPAN, TEXT_IDS, TEXT_MASK, text_ids
from opd_trl.teachers.vocabulary import SharedIds
from opd_trl.trainers.passes import understood
from tests import tiny
from tests.two_tokenizers import build

from .build import fixed_batch, opd_trainer, settings


def folder(path, kind: str, **options) -> str:
    tokenizer = build(kind)
    return tiny.save(
        path, tokenizer=tokenizer, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **options
    )


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> str:
    return folder(tmp_path_factory.mktemp("byte-level"), "byte-level")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    return folder(tmp_path_factory.mktemp("unigram"), "unigram", seed=1, hidden_size=48)


def written(trainer, texts: list[str], end: bool = True) -> dict:
    """The batch of a trainer in which the student has written these texts."""
    batch = {name: x for name, x in fixed_batch(trainer).items() if name not in (TEXT_IDS, TEXT_MASK)}
    rows = [trainer.tokenizer.encode(text) + [trainer.tokenizer.eos_token_id] * end for text in texts]
    width = max(map(len, rows))
    batch["completion_ids"] = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    batch["completion_mask"] = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    batch |= trainer.shared_ids.entries(batch)
    batch["loss_mask"] = understood(trainer, batch, batch["completion_mask"]).long()
    batch["num_loss_tokens"] = batch["loss_mask"].sum()
    return batch


TEXTS = ["The License grants you rights.", "12 plus 345 is 357", "naïve €", "x"]


def test_with_the_students_own_tokenizer_the_loss_is_that_over_the_shared_ids(tmp_path, student_path, teacher_path):
    for options in ({}, {"loss_support": "full", "divergence": "forward_kl"}):
        text = opd_trainer(tmp_path, student_path, teacher_path, teacher_vocabulary="text", **options)
        same = opd_trainer(tmp_path, student_path, teacher_path, **options)
        batch = written(text, ["ab c", "def!", "g", "hi"])
        assert batch["loss_mask"].equal(batch["completion_mask"])
        assert batch[ALONE].long().equal(batch["completion_mask"])
        same.shared_ids = SharedIds(103, torch.tensor([0, 1]))  # without the other special tokens
        same.model.train()
        same.current_gradient_accumulation_steps = 1
        gradients = []
        for trainer in (text, same):
            loss = trainer._compute_loss(trainer.model, batch)
            gradients.append((loss, *torch.autograd.grad(loss, list(trainer.model.parameters()))))
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    "options", [{}, {"loss_support": "full", "micro_batch_tokens": 100}, {"loss_support": "sampled"}], ids=str
)
def test_training_logs_what_is_left_out_and_what_is_in_longer_spans(tmp_path, student, teacher, options):
    options = options | {"gradient_accumulation_steps": 2, "max_steps": 2}
    trainer = opd_trainer(tmp_path, student, teacher, teacher_vocabulary="text", **options)
    before = [x.detach().clone() for x in trainer.model.parameters()]
    trainer.train()
    log = trainer.state.log_history[0]
    assert 0 < log["distillation/in_longer_spans"] <= 1 - log["distillation/unknown_to_teacher"] < 1
    assert log["distillation/per_token_divergence"] == log["distillation/per_token_divergence"]
    assert ("teacher/sampled_outside" in log) == (trainer.args.loss_support != "sampled")  # a text has no rank
    assert any(not torch.equal(x, y) for x, y in zip(before, trainer.model.parameters(), strict=True))
    sample = next(tmp_path.rglob("samples.jsonl")).read_text(encoding="utf-8")
    assert "[user] a" in sample  # the teacher's prompt, by its own template and tokenizer


def test_a_span_counts_whole_or_not_at_all(tmp_path, student, teacher):
    trainer = opd_trainer(tmp_path, student, teacher, teacher_vocabulary="text")
    batch = written(trainer, TEXTS)
    assert batch["loss_mask"].equal(batch["completion_mask"])
    span = batch[SPAN]
    row, place = next((r, p) for r, p in (span == span.roll(1, 1)).nonzero().tolist() if p and span[r, p] >= 0)
    mask = batch["completion_mask"].clone()
    mask[row, place] = 0
    kept = understood(trainer, batch, mask)
    assert not kept[row][span[row] == span[row, place]].any()
    others = span[row] != span[row, place]
    assert kept[row][others].equal(mask[row][others].bool())


def test_the_log_probability_of_a_span_is_that_of_its_text(tmp_path, student, teacher):
    trainer = opd_trainer(tmp_path, student, teacher, teacher_vocabulary="text", loss_support="sampled")
    batch = written(trainer, TEXTS)
    scores = trainer.teacher_scores(trainer.model, batch)[""]
    for row in range(len(TEXTS)):
        ids = batch[TEXT_IDS][row][batch[TEXT_MASK][row].bool()]
        prompt = batch["teacher_prompt_ids"][row][batch["teacher_prompt_mask"][row].bool()]
        # special tokens of its template are tokens
        assert trainer.shared_ids.pairs[0].tokenizer.eos_token_id in prompt
        logits = trainer.teacher.model(torch.cat([prompt, ids])[None]).logits[0, len(prompt) - 1 : -1]
        logps = logits.log_softmax(-1).gather(1, ids[:, None])
        firsts = batch[SPAN][row].diff(prepend=torch.tensor([-1])) > 0
        torch.testing.assert_close(scores.span_logps[row][firsts].sum(), logps.sum(), atol=1e-4, rtol=1e-5)


def test_what_does_not_fit_into_the_teachers_window_has_no_loss(tmp_path, student):
    short = folder(tmp_path / "short", "unigram", max_position_embeddings=48)
    trainer = opd_trainer(tmp_path, student, short, teacher_vocabulary="text")
    batch = written(trainer, ["The License grants you rights. " * 8] * 4)
    lengths = batch["teacher_prompt_mask"].sum(-1) + batch[TEXT_MASK].sum(-1)
    assert lengths.tolist() == [48] * 4
    assert 0 < batch["loss_mask"].sum() < batch["completion_mask"].sum()
    assert trainer._compute_loss(trainer.model, batch).isfinite()


@pytest.mark.parametrize("support", ["student", "sampled"])
def test_a_broken_teacher_stops_the_run(tmp_path, student, teacher, support):
    trainer = opd_trainer(tmp_path, student, teacher, teacher_vocabulary="text", loss_support=support)
    batch = written(trainer, TEXTS)
    trainer.teacher.model.get_output_embeddings().weight.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="finite"):
        trainer._compute_loss(trainer.model, batch)


def test_the_preflight_says_what_is_compared(tmp_path, student, teacher):
    trainer = opd_trainer(tmp_path, student, teacher, teacher_vocabulary="text")
    found = {x["name"]: x for x in preflight(trainer, prompts=4, contexts=2)["findings"]}
    assert found["vocabulary"]["figure"].startswith("text: 3")
    assert found["tokens aligned"]["verdict"] == "ok"  # bytes that are no text are read as decoding shows them
    assert found["answers"]["verdict"] == "not run"


def test_the_preflight_measures_the_probability_on_shared_tokens(tmp_path, student, teacher):
    from opd_trl.preflight.coverage import judge_alignment
    from opd_trl.trainers.looks.rollouts import Rollout

    trainer = opd_trainer(tmp_path, student, teacher, teacher_vocabulary="text")
    batch = written(trainer, TEXTS)
    tokens, probability = judge_alignment(trainer, [Rollout([], batch)])
    assert tokens.verdict == "ok"
    trainer.args.loss_support = "sampled"
    assert [x.name for x in judge_alignment(trainer, [Rollout([], batch)])] == ["tokens aligned"]
    (unread,) = judge_alignment(trainer, [Rollout([], batch | {SPAN: torch.full_like(batch[SPAN], -1)})])
    assert unread.verdict == "stop"
    alone = batch[ALONE]
    excluded = torch.tensor([i for i in range(len(trainer.tokenizer)) if i not in trainer.shared_ids.pairs[0].same])
    prompts, completions = batch["prompt_ids"], batch["completion_ids"]
    ids, mask = torch.cat([prompts, completions], 1), torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = trainer.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    probs = logits[:, prompts.size(1) - 1 : -1].softmax(-1)[alone]
    assert f"{1 - probs[:, excluded].sum(-1).mean():.1%} of the student's" in probability.figure


REFUSED = [
    ({"loss_importance_cap": 2.0}, "teacher_vocabulary='text' with loss_importance_cap"),
    ({"loss_support": "sampled", "loss_baseline": "full"}, "teacher_vocabulary='text' with loss_baseline"),
    ({"loss_support": "sampled", "loss_extrapolation": 1.25}, "teacher_vocabulary='text' with loss_extrapolation"),
    ({"loss_position_weight": "iw_opd"}, "teacher_vocabulary='text' with loss_position_weight"),
    ({"advantage_shaping": "rlsd", "num_generations": 2}, "teacher_vocabulary='text' with advantage_shaping"),
    ({"loss_tail": "sample"}, "teacher_vocabulary='text' with loss_tail: sample"),
    ({"loss_top_k": 500}, "loss_top_k must be at most 36"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda x: next(iter(x)) if isinstance(x, dict) else "")
def test_what_a_teacher_of_another_tokenizer_cannot_do_is_refused(tmp_path, student, teacher, options, message):
    with pytest.raises(ValueError, match=message):
        opd_trainer(tmp_path, student, teacher, teacher_vocabulary="text", **options)


def test_a_mean_and_a_self_teacher_are_refused(tmp_path, student, teacher):
    options = {"teacher_vocabulary": "text", "teacher_mix": {"a": 0.5, "b": 0.5}}
    with pytest.raises(ValueError, match="teacher_vocabulary='text' with teacher_mix"):
        opd_trainer(tmp_path, student, {"a": teacher, "b": teacher}, **options)
    with pytest.raises(ValueError, match="teacher_vocabulary='text' in OPSD"):
        OPSDConfig(**settings(tmp_path, teacher_vocabulary="text"))


def test_tokenizers_that_do_not_fit_are_refused(tmp_path, student, teacher):
    plain, own = build("unigram"), build("byte-level")
    loud = tiny.questions().map(lambda row: {"prompt": [{"role": "user", "content": "ALL IN CAPITALS"}]})
    quiet = folder(tmp_path / "quiet", "lower case")
    with pytest.raises(ValueError, match=r"0% of the student's tokens of the first prompts .* from 'ALL IN CA'"):
        opd_trainer(tmp_path, student, quiet, teacher_vocabulary="text", dataset=loud)
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordPiece({"a": 0})))
    words.backend_tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match="with the decoder WordPiece does not tell them"):
        text_ids(own, words, 600, 1)
    endless = PreTrainedTokenizerFast(tokenizer_object=plain.backend_tokenizer)
    with pytest.raises(ValueError, match="the teacher's tokenizer has no EOS token"):
        text_ids(own, endless, 600, 600)
    silent = PreTrainedTokenizerFast(tokenizer_object=plain.backend_tokenizer, eos_token="</s>", unk_token="<unk>")
    with pytest.raises(ValueError, match="the teacher's tokenizer has no chat template"):
        opd_trainer(
            tmp_path,
            student,
            teacher,
            teacher_vocabulary="text",
            trainer_options={"teacher_processing_class": silent},
        )
