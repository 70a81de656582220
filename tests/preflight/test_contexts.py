"""The privileged-context test on real trainers: whose prompts, whose distributions, what is refused."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from opd_trl.preflight.context_check import objective_of, probe_contexts
from opd_trl.preflight.context_draw import answer_of, draw_contexts, question_of, teacher_prompts, without_question
from opd_trl.preflight.context_figures import judge, judge_rows
from opd_trl.trainers.looks.rollouts import roll_out, take_rows
from tests import tiny
from tests.trainers import vision
from tests.trainers.build import opd_trainer, opsd_trainer
from tests.trainers.test_loss import dense_log_probs


CONTEXTS = [f"The answer is {i * 7} or {'xyz'[i % 3] * (i + 1)}." for i in range(8)]


def per_row(start="", **columns):
    return tiny.questions(privileged_context=[start + context for context in CONTEXTS], **columns)


def rolled(trainer, count=6):
    return roll_out(trainer, take_rows(trainer.train_dataset, count, seed=0))


def padded(rows):
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def rendered(trainer, rows, contexts, *, question=True):
    """The reference: `system_prompt` written out, through the chat template itself."""
    found = []
    for row, context in zip(rows, contexts, strict=True):
        messages = [{"role": "user", "content": row["prompt"][-1]["content"] if question else ""}]
        if context is not None:
            messages.insert(0, {"role": "system", "content": context})
        text = trainer.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        found.append(trainer.tokenizer.encode(text, add_special_tokens=False))
    return found


def ignores(prompt, context):
    return prompt


def needs_a_question(prompt, context):
    return [{"role": "user", "content": f"{context} {prompt[-1]['content'].split()[0]}"}]


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"teacher_batch_size": 3},
        {"dataset": per_row(start="Think. " * 20)},
    ],
    ids=["", "ahead", "contexts that begin alike"],
)
def test_every_divergence_is_that_of_the_models_own_logits(tmp_path, student_path, teacher_path, divergence, options):
    trainer = opd_trainer(
        tmp_path,
        student_path,
        teacher_path,
        loss_temperature=1.3,
        divergence=divergence,
        **{"loss_support": "full", "dataset": per_row()} | options,
    )
    (rollout,) = rolled(trainer, 4)
    figures = probe_contexts(trainer, [rollout], contexts=3, seed=5)
    draw, kept = draw_contexts(trainer, [rollout], 3, 5), rollout.kept
    own = [row["privileged_context"] for row in rollout.rows]

    def dense(model, prompts):
        with torch.no_grad():
            return dense_log_probs(model, *padded(prompts), rollout.batch, 1.3)[kept].double()

    def under(contexts, **options):
        return dense(trainer.teacher.model, rendered(trainer, rollout.rows, contexts, **options))

    def divergence_of(p, q):
        return (p.exp() * (p - q) if divergence == "reverse_kl" else q.exp() * (q - p)).sum(-1)

    p = dense(trainer.model, rendered(trainer, rollout.rows, [None] * 4))
    columns = [[own[k] for k in draw.columns[:, c]] for c in range(3)]
    q = torch.stack([under(column) for column in columns])
    each = divergence_of(p, q)
    empty = under([None] * 4)
    assert figures.own.value == pytest.approx(each[0].mean().item(), rel=1e-4)
    assert figures.other.value == pytest.approx(each[1:].mean().item(), rel=1e-4)
    assert figures.empty.value == pytest.approx(divergence_of(p, empty).mean().item(), rel=1e-4)
    assert figures.alone.value == pytest.approx(divergence_of(p, under(own, question=False)).mean().item(), rel=1e-4)
    assert figures.moved.value == pytest.approx(divergence_of(empty, q[0]).mean().item(), rel=1e-4)

    def stays(q):
        if divergence == "reverse_kl":
            return -q.mean(0).logsumexp(-1)
        return (q.exp() * (q - q.exp().mean(0).log())).sum(-1).mean(0)

    corrected = 3 * stays(q) - 2 * torch.stack([stays(q[[j for j in range(3) if j != i]]) for i in range(3)]).mean(0)
    assert figures.irreducible.value == pytest.approx(corrected.mean().item(), rel=1e-3)
    assert figures.total.value == pytest.approx(figures.learnable.value + figures.irreducible.value)
    assert (figures.prompts, figures.tokens, figures.contexts) == (4, int(kept.sum()), 3)
    assert figures.divergence == divergence


def test_the_gains_are_differences_of_the_teachers_own_log_probabilities(tmp_path, student_path, teacher_path):
    dataset = per_row(answer=[f"{i} and b" for i in range(8)])
    trainer = opd_trainer(tmp_path, student_path, teacher_path, dataset=dataset, loss_temperature=1.7)
    (rollout,) = rolled(trainer, 4)
    figures = probe_contexts(trainer, [rollout], contexts=3, seed=1)
    draw, encode = draw_contexts(trainer, [rollout], 3, 1), trainer.tokenizer.encode

    def log_prob(prefix, text):
        with torch.no_grad():
            logs = trainer.teacher.model(torch.tensor([prefix + text])).logits[0].log_softmax(-1)
        return sum(logs[len(prefix) - 1 + i, token].item() for i, token in enumerate(text)) / len(text)

    of_prompt, of_answer = [], []
    for k, row in enumerate(rollout.rows):
        texts = [draw.own[c] for c in draw.columns[k]]
        prompt, answer = encode(row["prompt"][0]["content"]), encode(row["answer"])
        own, *others = (log_prob(encode(f"{text}\n\n"), prompt) for text in texts)
        of_prompt.append(own - sum(others) / 2)
        own, *others = (log_prob(rendered(trainer, [row], [text])[0], answer) for text in texts)
        of_answer.append(own - sum(others) / 2)
    assert figures.prompt_gain.value == pytest.approx(sum(of_prompt) / 4, abs=1e-4)
    assert figures.answer_gain.value == pytest.approx(sum(of_answer) / 4, abs=1e-4)
    assert judge_rows(figures) is not None


def test_a_shared_context_is_a_rule_that_can_be_learned(tmp_path, student_path):
    for options in ({"privileged_context": "Answer with b.", "dataset": tiny.questions()}, {}):
        figures = probe_contexts(trainer := opsd_trainer(tmp_path, student_path, **options), rolled(trainer))
        assert figures.is_shared
        assert (figures.contexts, figures.share.value) == (1, 0.0)
        assert figures.empty.value == pytest.approx(0.0, abs=1e-6)  # the student itself
        assert figures.own.value == pytest.approx(figures.moved.value, rel=1e-4)
        assert figures.alone.value > 0
        assert judge(figures)[1].startswith("Shared rule: can be internalised.")
        assert judge_rows(figures) is None


def test_a_column_of_contexts_is_split_with_the_adapter_off(tmp_path, student_path):
    trainer = opsd_trainer(tmp_path, student_path, dataset=per_row())
    rollouts, calls = rolled(trainer), []
    figures = probe_contexts(trainer, rollouts, on_batch=lambda: calls.append(1))
    assert len(calls) == len(rollouts) == 2
    assert (figures.contexts, figures.prompts) == (4, 6)
    assert figures.empty.value == pytest.approx(0.0, abs=1e-6)
    assert 0 < figures.irreducible.value < figures.total.value
    assert figures.sampling_error > 0
    assert len(figures.quarters) == 4
    assert figures == probe_contexts(trainer, rollouts)
    assert all(x.grad is None for x in trainer.model.parameters())


def test_a_context_that_the_builder_drops_does_not_change_the_teacher(tmp_path, student_path):
    builder = "tests.preflight.test_contexts:ignores"
    trainer = opsd_trainer(tmp_path, student_path, dataset=per_row(), privileged_builder=builder)
    word, sentence = judge(probe_contexts(trainer, rolled(trainer)))
    assert word == "stop"
    assert sentence.startswith("The context does not change the teacher")


def test_a_builder_that_cannot_word_an_empty_question_leaves_that_figure_out(tmp_path, student_path):
    builder = "tests.preflight.test_contexts:needs_a_question"
    trainer = opsd_trainer(tmp_path, student_path, dataset=per_row(), privileged_builder=builder)
    figures = probe_contexts(trainer, rolled(trainer))
    assert figures.alone is None
    assert figures.own.value > 0


@pytest.mark.parametrize("pictures", [1, 4])
def test_contexts_that_differ_in_their_pictures_alone_are_told_apart(tmp_path, pictures):
    seen, said = vision.pictures(pictures), {"role": "assistant", "content": [{"type": "text", "text": "a"}]}
    contexts = [
        [{"role": "user", "content": [{"type": "image", "image": seen[i % pictures]}]}, said] for i in range(4)
    ]
    prompts = [[{"role": "user", "content": f"what is {i}?"}] for i in range(4)]
    trainer = vision.vlm_trainer(
        tmp_path,
        vision.build_processor(),
        dataset=Dataset.from_dict({"prompt": prompts, "privileged_context": contexts}),
        privileged_builder="few_shot",
        teacher_model_kind="live",
    )
    figures = probe_contexts(trainer, rolled(trainer, 4))
    assert figures.empty.value == pytest.approx(0.0, abs=1e-6)  # the student itself, which sees no picture
    assert figures.own.value > 1e-3
    assert figures.is_shared == (pictures == 1)
    assert (figures.irreducible.value > 1e-5) == (pictures > 1)


def test_several_teachers_answer_for_their_own_rows(tmp_path, student_path, teacher_path):
    dataset = per_row(teacher=["near", "far"] * 4, answer=7)
    trainer = opd_trainer(tmp_path, student_path, {"near": student_path, "far": teacher_path}, dataset=dataset)
    rollouts = rolled(trainer)
    figures = probe_contexts(trainer, rollouts)
    assert figures.tokens == sum(int(rollout.kept.sum()) for rollout in rollouts)
    assert figures.answer_gain is not None
    alone = opd_trainer(tmp_path, student_path, teacher_path, dataset=per_row(answer=7))
    assert probe_contexts(alone, rolled(alone)).prompt_gain != figures.prompt_gain


@pytest.mark.parametrize(
    ("divergence", "support", "split"),
    [
        ("forward_kl", "union", "forward_kl"),
        ("mixed", "union", "mixed"),
        ("jsd", "full", "reverse_kl"),
        ("forward_kl", "sampled", "reverse_kl"),
    ],
)
def test_the_divergence_that_is_split_is_the_one_that_trains_where_it_can_be(divergence, support, split):
    args = SimpleNamespace(divergence=divergence, loss_support=support, divergence_beta=0.3)
    assert objective_of(args) == {"divergence": split, "beta": 0.3}


def test_contexts_are_drawn_from_other_prompts_without_repeats_and_copies_of_a_prompt_share_them(
    tmp_path, student_path
):
    trainer = opsd_trainer(
        tmp_path,
        student_path,
        dataset=per_row(),
        num_generations_eval=2,
    )
    rollouts = rolled(trainer, 5)
    draw = draw_contexts(trainer, rollouts, 4, 0)
    assert sum(len(rollout.rows) for rollout in rollouts) == 10
    assert draw.columns[:, 0].tolist() == list(range(5))
    assert all(len(set(row)) == 4 and max(row) < 5 for row in draw.columns.tolist())
    assert draw.of(rollouts[0].rows) == [0, 0, 1, 1]
    assert draw_contexts(trainer, rollouts, 100, 0).columns.shape == (5, 5)
    assert not torch.equal(draw.columns, draw_contexts(trainer, rollouts, 4, 1).columns)
    figures = probe_contexts(trainer, rollouts)
    assert figures.prompts == 5
    single = opsd_trainer(tmp_path, student_path, dataset=per_row())
    once = probe_contexts(single, rolled(single, 5))
    assert tuple(figures.prompt_gain) == pytest.approx(tuple(once.prompt_gain), rel=1e-4)


@pytest.mark.parametrize(
    "builder", ["system_prompt", "answer", "solution", "hint", "feedback", "few_shot", "document"]
)
@pytest.mark.parametrize("conversational", [True, False])
def test_every_builder_words_its_context_without_the_question(tmp_path, student_path, builder, conversational):
    dataset = tiny.questions(privileged_context=CONTEXTS, conversational=conversational)
    trainer = opsd_trainer(tmp_path, student_path, dataset=dataset, privileged_builder=builder)
    rollouts = rolled(trainer, 3)
    ids = teacher_prompts(trainer, rollouts[0], draw_contexts(trainer, rollouts, 2, 0))
    for row, alone, empty in zip(rollouts[0].rows, ids.alone, ids.empty, strict=True):
        text = trainer.tokenizer.decode(alone.ids)
        assert row["privileged_context"] in text
        assert "plus" not in text
        assert "plus" in trainer.tokenizer.decode(empty.ids)
        assert row["privileged_context"] not in trainer.tokenizer.decode(empty.ids)


def test_questions_and_answers_are_texts():
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    assert without_question([*turns, {"role": "user", "content": "Why?"}]) == [{"role": "user", "content": ""}]
    assert question_of("Why?") == "Why?"
    assert question_of([*turns, {"role": "user", "content": "Why?"}]) == "Hi\nYes?\nWhy?"
    assert question_of([{"role": "user", "content": [{"type": "image"}]}]) is None
    assert [answer_of({"answer": x}, "privileged_context") for x in (7, "b", " ", None, ["b"])] == [
        "7",
        "b",
        None,
        None,
        None,
    ]
    assert answer_of({"answer": "b"}, "answer") is None


def test_what_cannot_be_tested_is_refused_with_the_remedy(tmp_path, student_path, teacher_path):
    bare = opd_trainer(tmp_path, student_path, teacher_path)
    with pytest.raises(ValueError, match="there is no privileged context to test"):
        probe_contexts(bare, rolled(bare))
    trainer = opsd_trainer(tmp_path, student_path, dataset=per_row())
    with pytest.raises(ValueError, match="contexts must be >= 2, got 1"):
        probe_contexts(trainer, rolled(trainer), contexts=1)
    with pytest.raises(ValueError, match="needs at least 2 prompts, got 1"):
        probe_contexts(trainer, rolled(trainer, 1))
    trainer.args.sibling_context = True
    with pytest.raises(ValueError, match="with sibling_context"):
        probe_contexts(trainer, rolled(opsd_trainer(tmp_path, student_path)))
