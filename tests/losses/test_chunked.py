"""chunked_support_loss against the dense composition of the other functions: values, gradients and stats."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_trl.losses import (
    chunked_support_loss,
    sampled_token_loss,
    select_support,
    support_divergence,
)
from opd_trl.losses.divergences import DIVERGENCES


SUPPORTS = ("student", "teacher", "intersection", "union", "full", "sampled")
TAILS = ("drop", "bucket", "renormalize")
every_support = pytest.mark.parametrize("support", SUPPORTS)
TOLERANCE = {torch.float64: {"rtol": 0, "atol": 1e-10}, torch.float32: {"rtol": 1e-5, "atol": 1e-5}}


def inputs(n=7, hidden=4, vocab=11, dtype=torch.float64, seed=0, teacher_hidden=3):
    """Positional arguments of chunked_support_loss, the three of the student with requires_grad, and its keywords."""
    torch.manual_seed(seed)
    student, teacher = torch.randn(n, hidden, dtype=dtype), torch.randn(n, teacher_hidden, dtype=dtype)
    heads = [torch.randn(vocab, size, dtype=dtype) for size in (hidden, teacher_hidden)]
    biases = {f"{name}_lm_head_bias": torch.randn(vocab, dtype=dtype) for name in ("student", "teacher")}
    for x in (student, heads[0], biases["student_lm_head_bias"]):
        x.requires_grad_()
    weights = torch.rand(n, dtype=dtype)
    keywords = {**biases, "completion_ids": torch.randint(vocab, (n,)), "top_k": min(4, vocab)}
    return [student, heads[0], teacher, heads[1], weights], keywords


def logits_of(hidden, weight, bias, scale, cap, temperature):
    z = (hidden @ weight.T + (0 if bias is None else bias)) * scale
    return (z if cap is None else cap * torch.tanh(z / cap)) / temperature


def dense(
    student,
    head,
    teacher,
    teacher_head,
    weights,
    *,
    top_k=20,
    support="student",
    completion_ids=None,
    temperature=1.0,
    student_lm_head_bias=None,
    student_logit_scale=1.0,
    student_final_logit_softcapping=None,
    teacher_lm_head_bias=None,
    teacher_logit_scale=1.0,
    teacher_final_logit_softcapping=None,
    **options,
):
    """The same loss and stats without chunks, `[N, V]` at once."""
    log_p = logits_of(
        student, head, student_lm_head_bias, student_logit_scale, student_final_logit_softcapping, temperature
    ).log_softmax(-1)
    log_q = logits_of(
        teacher, teacher_head, teacher_lm_head_bias, teacher_logit_scale, teacher_final_logit_softcapping, temperature
    ).log_softmax(-1)
    _, both_mask = select_support(log_p, log_q, top_k=top_k, support="intersection")
    if support == "sampled":
        ids, mask = completion_ids[:, None], torch.ones_like(completion_ids[:, None], dtype=torch.bool)
        p, q = log_p.gather(-1, ids), log_q.gather(-1, ids)
        losses, divergences = sampled_token_loss(p, q).squeeze(-1), (p - q).squeeze(-1)
    else:
        if support == "full":
            ids = torch.arange(head.size(0)).expand(log_p.shape)
            mask, options["tail"] = torch.ones_like(ids, dtype=torch.bool), "drop"
        else:
            ids, mask = select_support(log_p, log_q, top_k=top_k, support=support)
        p, q = log_p.gather(-1, ids), log_q.gather(-1, ids)
        if options.get("tail") == "sample":
            losses = divergences = dense_sampled_tail(log_p, log_q, ids, mask, completion_ids)
        else:
            losses = divergences = support_divergence(p, q, support_mask=mask, **options)
    stats = {
        "per_token_divergence": divergences,
        "entropy": torch.special.entr(log_p.exp()).sum(-1),
        "student_mass": (p.exp() * mask).sum(-1),
        "teacher_mass": (q.exp() * mask).sum(-1),
        "overlap": both_mask.sum(-1).to(p.dtype) / top_k,
    }
    if completion_ids is not None:
        of_student, of_teacher = (x.gather(-1, completion_ids[:, None]) for x in (log_p, log_q))
        stats["sampled_log_ratio"] = (of_teacher - of_student).squeeze(-1)
        stats["teacher_rank"] = (log_q > of_teacher).sum(-1).clamp(max=top_k).to(p.dtype)
    return (losses * weights).sum(), {name: x.detach() for name, x in stats.items()}


def dense_sampled_tail(log_p, log_q, ids, mask, completion_ids):
    """Its value and gradient by autograd over `[N, V]`, with c = log((1 - sum_S p) / (1 - sum_S q))."""
    inside = torch.zeros_like(log_p, dtype=torch.long).scatter_add_(-1, ids, mask.long()) > 0
    tails = [1 - (x.detach().exp() * inside).sum(-1, keepdim=True) for x in (log_p, log_q)]
    centred = (log_p - log_q).detach() - (tails[0] / tails[1]).log()
    estimate = (log_p.exp() * centred * inside).sum(-1, keepdim=True) + (tails[0] / tails[1]).log()
    of_token = centred * ~inside * (1 + log_p - log_p.detach())
    return (estimate + of_token.gather(-1, completion_ids[:, None])).squeeze(-1)


def leaves(arguments, keywords):
    bias = keywords.get("student_lm_head_bias")
    return [x for x in (arguments[0], arguments[1], bias) if x is not None and x.requires_grad]


def assert_same_as_dense(arguments, keywords, tolerance, *, chunk_size, **options):
    loss, stats = chunked_support_loss(*arguments, chunk_size=chunk_size, **keywords, **options)
    expected, expected_stats = dense(*arguments, **keywords, **options)
    torch.testing.assert_close(loss, expected, **tolerance)
    assert stats.keys() == expected_stats.keys()
    for name, value in expected_stats.items():
        assert not stats[name].requires_grad
        torch.testing.assert_close(stats[name], value, msg=lambda text, name=name: f"{name}: {text}", **tolerance)
    wanted = leaves(arguments, keywords)
    for grad, expected_grad in zip(
        torch.autograd.grad(loss, wanted), torch.autograd.grad(expected, wanted), strict=True
    ):
        torch.testing.assert_close(grad, expected_grad, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("divergence", "tail"), list(itertools.product(DIVERGENCES, TAILS)))
@every_support
def test_the_loss_equals_its_dense_composition_in_value_gradient_and_stats(support, divergence, tail, dtype):
    options = {"support": support, "divergence": divergence, "tail": tail, "beta": 0.3}
    for stop_gradient in (True, False):
        arguments, keywords = inputs(dtype=dtype)
        assert_same_as_dense(
            arguments, keywords, TOLERANCE[dtype], chunk_size=3, stop_gradient=stop_gradient, **options
        )


CONVENTIONS = {
    "temperature": {"temperature": 0.7},
    "logit scales": {"student_logit_scale": 0.5, "teacher_logit_scale": 2.0},
    "soft caps": {"student_final_logit_softcapping": 1.5, "teacher_final_logit_softcapping": 3.0},
    "all of them": {
        "temperature": 1.3,
        "student_logit_scale": 0.5,
        "teacher_logit_scale": 2.0,
        "student_final_logit_softcapping": 1.5,
        "teacher_final_logit_softcapping": 3.0,
    },
    "no biases": {"student_lm_head_bias": None, "teacher_lm_head_bias": None},
    "pointwise clip": {"pointwise_clip": 0.05},
}


@pytest.mark.parametrize("convention", CONVENTIONS)
@every_support
def test_the_logit_conventions_of_each_model_are_applied_in_the_order_scale_cap_temperature(support, convention):
    arguments, keywords = inputs()
    keywords |= CONVENTIONS[convention]
    if support == "sampled":
        keywords.pop("pointwise_clip", None)
    assert_same_as_dense(arguments, keywords, TOLERANCE[torch.float64], chunk_size=3, support=support)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 6, 7, 8, 256])
@every_support
def test_the_loss_does_not_depend_on_the_chunk_size(support, chunk_size):
    arguments, keywords = inputs()
    assert_same_as_dense(arguments, keywords, TOLERANCE[torch.float64], chunk_size=chunk_size, support=support)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), n=st.integers(0, 9), hidden=st.integers(1, 5), vocab=st.integers(2, 12))
def test_the_loss_equals_its_dense_composition_for_every_shape(data, n, hidden, vocab):
    arguments, keywords = inputs(n, hidden, vocab, seed=data.draw(st.integers(0, 10_000)))
    assert_same_as_dense(
        arguments,
        keywords | {"top_k": data.draw(st.integers(2, vocab))},
        TOLERANCE[torch.float64],
        chunk_size=data.draw(st.integers(1, 12)),
        support=data.draw(st.sampled_from(SUPPORTS)),
        divergence=data.draw(st.sampled_from(list(DIVERGENCES))),
        tail=data.draw(st.sampled_from(TAILS)),
    )


@every_support
def test_a_frozen_head_gets_no_gradient_and_the_hidden_states_the_same_one(support):
    arguments, keywords = inputs()
    expected = torch.autograd.grad(dense(*arguments, **keywords, support=support)[0], arguments[0])[0]
    arguments[1].requires_grad_(False)
    keywords["student_lm_head_bias"].requires_grad_(False)
    loss, _ = chunked_support_loss(*arguments, **keywords, support=support, chunk_size=3)
    loss.backward()
    torch.testing.assert_close(arguments[0].grad, expected, rtol=0, atol=1e-10)
    assert arguments[1].grad is None
    assert keywords["student_lm_head_bias"].grad is None


@pytest.mark.parametrize("trained", [0, 1])
def test_each_student_tensor_can_be_the_only_one_that_trains(trained):
    arguments, keywords = inputs()
    keywords["student_lm_head_bias"].requires_grad_(False)
    arguments[1 - trained].requires_grad_(False)
    assert_same_as_dense(arguments, keywords, TOLERANCE[torch.float64], chunk_size=3)


def test_a_live_teacher_that_shares_the_head_adds_nothing_to_the_head_gradient():
    (student, head, *_, weights), _ = inputs()
    teacher = torch.randn(7, 4, dtype=torch.float64)
    expected = torch.autograd.grad(
        dense(student, head, teacher, head.detach(), weights, top_k=4, tail="drop")[0], head
    )
    loss, _ = chunked_support_loss(student, head, teacher, head, weights, top_k=4, tail="drop", chunk_size=3)
    torch.testing.assert_close(torch.autograd.grad(loss, head), expected, rtol=0, atol=1e-10)


def assert_near(actual, expected, rel):
    assert (actual.double() - expected).norm() <= rel * expected.norm() + 1e-12


def in_float64(arguments, keywords):
    """The same numbers in float64, as leaves of their own."""
    wide = [x.detach().double().requires_grad_(x.requires_grad) for x in arguments]
    return wide, {
        name: x.detach().double().requires_grad_(x.requires_grad) if name.endswith("bias") else x
        for name, x in keywords.items()
    }


@every_support
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_bfloat16_inputs_stay_near_the_dense_float64_loss_and_get_gradients_of_their_own_dtype(support, divergence):
    arguments, keywords = inputs(n=16, hidden=8, vocab=32, dtype=torch.bfloat16)
    keywords["top_k"] = 32  # no choice of ids that rounding could flip
    options = {"support": support, "divergence": divergence, "tail": "drop", "temperature": 2.0}
    wide, wide_keywords = in_float64(arguments, keywords)
    expected, _ = dense(*wide, **wide_keywords, **options)
    loss, stats = chunked_support_loss(*arguments, **keywords, **options, chunk_size=5)
    assert loss.dtype == torch.float32
    assert all(x.dtype == torch.float32 for x in stats.values())
    assert loss.item() == pytest.approx(expected.item(), rel=0.01)
    loss.backward()
    expected.backward()
    for leaf, wide_leaf in zip(leaves(arguments, keywords), leaves(wide, wide_keywords), strict=True):
        assert leaf.grad.dtype == torch.bfloat16
        assert_near(leaf.grad, wide_leaf.grad, 0.02)


def test_the_gradient_of_a_16_bit_head_is_summed_over_the_chunks_in_float32():
    arguments, keywords = inputs(n=400, hidden=4, vocab=8, dtype=torch.bfloat16)
    keywords["top_k"] = 8
    wide, wide_keywords = in_float64(arguments, keywords)
    loss, _ = chunked_support_loss(*arguments, **keywords, tail="drop", chunk_size=1)
    expected, _ = dense(*wide, **wide_keywords, tail="drop")
    gradient = torch.autograd.grad(loss, arguments[1])[0]
    wide_gradient = torch.autograd.grad(expected, wide[1])[0]
    assert_near(gradient, wide_gradient, 0.01)


@pytest.mark.parametrize(("hidden_dtype", "head_dtype"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_hidden_states_and_head_can_differ_in_dtype(hidden_dtype, head_dtype):
    (student, head, teacher, teacher_head, weights), _ = inputs(n=16, hidden=8, vocab=32)
    student, teacher = (x.detach().to(getattr(torch, hidden_dtype)) for x in (student, teacher))
    head, teacher_head = (x.detach().to(getattr(torch, head_dtype)) for x in (head, teacher_head))
    arguments = [student.requires_grad_(), head.requires_grad_(), teacher, teacher_head, weights.float()]
    wide, _ = in_float64(arguments, {})
    expected, _ = dense(*wide, top_k=32)
    loss, _ = chunked_support_loss(*arguments, top_k=32, chunk_size=5)
    for grad, leaf, wide_grad in zip(
        torch.autograd.grad(loss, (student, head)),
        (student, head),
        torch.autograd.grad(expected, wide[:2]),
        strict=True,
    ):
        assert grad.dtype == leaf.dtype
        assert_near(grad, wide_grad, 0.02)


def test_autocast_projects_in_bfloat16_and_keeps_the_loss_and_the_gradients_in_float32():
    arguments, keywords = inputs(n=16, hidden=8, vocab=32, dtype=torch.float32)
    keywords["top_k"] = 32
    wide, wide_keywords = in_float64(arguments, keywords)
    expected, _ = dense(*wide, **wide_keywords, tail="drop")
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = chunked_support_loss(*arguments, **keywords, tail="drop", chunk_size=5)
    assert loss.dtype == torch.float32
    wanted = zip(leaves(arguments, keywords), leaves(wide, wide_keywords), strict=True)
    for leaf, wide_leaf in wanted:
        (grad,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        assert grad.dtype == torch.float32
        assert_near(grad, torch.autograd.grad(expected, wide_leaf, retain_graph=True)[0], 0.02)
