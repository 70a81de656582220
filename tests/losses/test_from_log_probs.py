"""chunked_loss_from_log_probs against chunked_support_loss, which sees the teacher's whole head."""

import itertools

import pytest
import torch

from opd_trl.losses import chunked_loss_from_log_probs, chunked_support_loss
from opd_trl.losses.fused import distillation_loss
from opd_trl.losses.head import Head
from opd_trl.losses.next_token import FromTopK, NextToken, TeacherTopK
from opd_trl.losses.objective import Objective, Tokens
from tests.losses.test_chunked import DIVERGENCES, TAILS, inputs, logits_of


KNOWN = ("teacher", "intersection", "sampled")


def served(teacher, head, bias, completion_ids, *, top_k, temperature):
    """What a server says of the teacher: its TopK in any order, and the sampled token's log-probability."""
    log_probs = logits_of(teacher, head, bias, 1.0, None, temperature).log_softmax(-1)
    values, ids = log_probs.topk(top_k)
    of_sampled = log_probs.gather(-1, completion_ids[:, None]).squeeze(-1)
    return {"teacher_ids": ids.flip(-1), "teacher_log_probs": values.flip(-1), "completion_log_probs": of_sampled}


def both(*, support="teacher", temperature=1.0, chunk_size=3, top_k=4, **options):
    """((loss, stats, gradients) from log-probabilities, the same from the head)."""
    results = []
    for use_head in (False, True):
        (student, head, teacher, teacher_head, weights), keywords = inputs(n=9)
        bias, teacher_bias = keywords["student_lm_head_bias"], keywords["teacher_lm_head_bias"]
        completion_ids = keywords["completion_ids"]
        common = {
            "support": support,
            "temperature": temperature,
            "chunk_size": chunk_size,
            "student_lm_head_bias": bias,
            "student_logit_scale": 0.7,
            "student_final_logit_softcapping": 5.0,
            "completion_ids": completion_ids,
            **options,
        }
        if use_head:
            loss, stats = chunked_support_loss(
                student, head, teacher, teacher_head, weights, top_k=top_k, teacher_lm_head_bias=teacher_bias, **common
            )
        else:
            known = served(teacher, teacher_head, teacher_bias, completion_ids, top_k=top_k, temperature=temperature)
            loss, stats = chunked_loss_from_log_probs(student, head, token_weights=weights, **known, **common)
        results.append((loss.detach(), stats, torch.autograd.grad(loss, [student, head, bias])))
    return results


def assert_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        if isinstance(a, dict):
            assert a.keys() == b.keys()
            a, b = a.values(), b.values()
        elif isinstance(a, torch.Tensor):
            a, b = [a], [b]
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("divergence", "tail"), list(itertools.product(DIVERGENCES, TAILS)))
@pytest.mark.parametrize("support", ["teacher", "intersection"])
def test_top_k_log_probs_of_the_teacher_give_the_numbers_of_its_head(support, divergence, tail):
    assert_equal(*both(support=support, divergence=divergence, tail=tail))


def test_the_sampled_token_gives_the_numbers_of_the_head():
    assert_equal(*both(support="sampled"))


@pytest.mark.parametrize("support", KNOWN)
@pytest.mark.parametrize(
    "options", [{"temperature": 0.6}, {"chunk_size": 1}, {"chunk_size": 100}, {"top_k": 11}], ids=str
)
def test_temperature_chunks_and_k_change_nothing_about_that(support, options):
    assert_equal(*both(support=support, **options))


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_stop_gradient_and_clip_act_as_with_the_head(stop_gradient):
    assert_equal(*both(tail="drop", stop_gradient=stop_gradient, pointwise_clip=0.05))


def test_an_empty_batch_gives_a_zero_that_keeps_its_graph():
    hidden, head = torch.zeros(0, 4, requires_grad=True), torch.randn(11, 4)
    ids = torch.zeros(0, 3, dtype=torch.int64)
    loss, stats = chunked_loss_from_log_probs(hidden, head, ids, torch.zeros(0, 3), torch.zeros(0))
    loss.backward()
    assert loss.item() == 0.0
    assert hidden.grad.shape == (0, 4)
    assert stats["overlap"].shape == (0,)


def test_an_id_that_the_teacher_was_not_asked_for_has_no_probability():
    teacher = FromTopK(torch.tensor([[7, 2]]), torch.tensor([[7, 2, 5]]), torch.tensor([[-0.5, -1.5, -9.0]]))
    expected = torch.tensor([[-1.5, -9.0, -0.5, -1e30]])
    torch.testing.assert_close(teacher.at(torch.tensor([[2, 5, 7, 3]])), expected)


def test_the_teacher_gets_no_gradient():
    log_probs = torch.tensor([[-0.5, -1.5]], requires_grad=True)
    hidden = torch.ones(1, 4, requires_grad=True)
    loss, _ = chunked_loss_from_log_probs(hidden, torch.randn(11, 4), torch.tensor([[7, 2]]), log_probs, torch.ones(1))
    loss.backward()
    assert log_probs.grad is None


@pytest.mark.parametrize("support", ["student", "union", "full"])
def test_a_support_that_needs_other_ids_is_refused(support):
    with pytest.raises(ValueError, match="support must be one of 'teacher', 'intersection', 'sampled'"):
        chunked_loss_from_log_probs(
            torch.ones(1, 4), torch.ones(9, 4), torch.zeros(1, 2, dtype=int), torch.zeros(1, 2), torch.ones(1),
            support=support,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher_log_probs": torch.zeros(2, 3)}, r"one shape \(N, K\), got \(2, 2\) and \(2, 3\)"),
        (
            {"teacher_ids": torch.zeros(3, 2, dtype=int), "teacher_log_probs": torch.zeros(3, 2)},
            "teacher_ids must have one row for each of the 2 tokens",
        ),
        ({"token_weights": torch.ones(3)}, "token_weights must have one row"),
        ({"support": "sampled"}, "needs completion_ids and completion_log_probs"),
        (
            {"completion_ids": torch.zeros(2, dtype=int), "completion_log_probs": torch.zeros(1)},
            "completion_log_probs must have one row",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change, message):
    arguments = {
        "student_hidden_states": torch.ones(2, 4),
        "student_lm_head_weight": torch.ones(9, 4),
        "teacher_ids": torch.zeros(2, 2, dtype=int),
        "teacher_log_probs": torch.zeros(2, 2),
        "token_weights": torch.ones(2),
    }
    with pytest.raises(ValueError, match=message):
        chunked_loss_from_log_probs(**arguments | change)


def test_a_baseline_is_refused_since_it_reads_the_teacher_on_other_ids():
    tokens = Tokens(torch.ones(2), torch.zeros(2, dtype=int))
    student = NextToken(torch.ones(2, 4), Head(torch.ones(9, 4)))
    teacher = TeacherTopK(torch.zeros(2, 2, dtype=int), torch.zeros(2, 2), torch.zeros(2))
    with pytest.raises(ValueError, match=r"baseline='full' reads the teacher on .* ids.*\. Leave it out"):
        distillation_loss(student, teacher, tokens, Objective(support="sampled", baseline="full"))
