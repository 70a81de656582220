"""No function of the losses makes a tensor on another device than its inputs' one, proven with fake tensors.

A fake tensor knows its shape, dtype and device; an operation on tensors of two devices raises, as it does on a GPU.
The device is `meta`, since autograd on a fake `cuda` tensor needs a torch that was built for CUDA.
"""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from opd_trl.diagnostics import position_quartiles, repeated_trigrams, repetition, token_sums
from opd_trl.losses import (
    chunked_loss_from_log_probs,
    chunked_support_log_probs,
    chunked_support_loss,
    masked_mean,
)
from opd_trl.losses.comparison import compare_gradients
from opd_trl.losses.head import Head
from opd_trl.losses.next_token import NextToken
from opd_trl.losses.objective import Objective, Tokens
from opd_trl.losses.spread import context_spread
from tests.losses.forms import FORMS


# Long rows go through the piles of `top_ids`; a renormalised loss of 5 x 8 <= V numbers takes the sparse products.
N, HIDDEN, VOCAB, TOP_K = 2, 8, 5000, 5
ELSEWHERE = torch.device("meta")
ALL = {"temperature": 0.7}
OF_STUDENT = {"student_logit_scale": 0.5, "student_final_logit_softcapping": 3.0}
OF_TEACHER = {"teacher_logit_scale": 2.0, "teacher_final_logit_softcapping": 3.0}


@pytest.fixture
def make(monkeypatch):
    """Make fake tensors that lie on an accelerator: shape, dtype."""
    # Autocast does not know the stand-in.
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *args: False)
    with FakeTensorMode():
        yield partial(torch.empty, device=ELSEWHERE)


def assert_elsewhere(*tensors):
    assert all(x.device == ELSEWHERE for x in tensors)


def student_and_rest(make, dtype):
    """Hidden states, head and bias of the student with gradients, and what a loss is told of the tokens."""
    student = [make(shape, dtype=dtype).requires_grad_() for shape in ((N, HIDDEN), (VOCAB, HIDDEN), (VOCAB,))]
    tokens = {"completion_ids": make(N, dtype=torch.int64), "sampling_logps": make(N), "reference_logps": make(N)}
    return student, tokens


@pytest.mark.parametrize(("support", "divergence", "tail"), FORMS)
def test_the_loss_stays_on_its_device(make, support, divergence, tail):
    dtype = torch.bfloat16 if tail == "renormalize" else torch.float32
    (hidden, head, bias), tokens = student_and_rest(make, dtype)
    teacher = make(N, 4, dtype=dtype), make(VOCAB, 4, dtype=dtype)
    options = {"support": support, "divergence": divergence, "tail": tail, "importance_cap": 2.0, **tokens}
    if support == "sampled":
        options |= {"baseline": "full", "extrapolation": 1.25}
    biases = {"student_lm_head_bias": bias, "teacher_lm_head_bias": make(VOCAB, dtype=dtype)}
    options |= ALL | OF_STUDENT | OF_TEACHER | biases
    loss, stats = chunked_support_loss(hidden, head, *teacher, make(N), top_k=TOP_K, **options)
    loss.backward()
    assert_elsewhere(loss, *stats.values(), hidden.grad, head.grad, bias.grad)


@pytest.mark.parametrize("support", ["teacher", "intersection", "sampled"])
def test_the_loss_of_a_served_teacher_stays_on_its_device(make, support):
    (hidden, head, bias), tokens = student_and_rest(make, torch.float32)
    ids, log_probs = make(N, TOP_K, dtype=torch.int64), make(N, TOP_K)
    options = {"support": support, "student_lm_head_bias": bias, "completion_log_probs": make(N)}
    loss, stats = chunked_loss_from_log_probs(
        hidden, head, ids, log_probs, make(N), **options, **tokens, **ALL, **OF_STUDENT
    )
    loss.backward()
    assert_elsewhere(loss, *stats.values(), hidden.grad, head.grad, bias.grad)


@pytest.mark.parametrize("chosen", ["ids", "top_k"])
def test_log_probs_stay_on_their_device(make, chosen):
    (hidden, head, bias), _ = student_and_rest(make, torch.float32)
    which = {"ids": make(N, 2, dtype=torch.int64)} if chosen == "ids" else {"top_k": TOP_K}
    log_probs, ids, entropy = chunked_support_log_probs(hidden, head, bias=bias, **which)
    (log_probs.sum() + entropy.sum()).backward()
    assert_elsewhere(log_probs, ids, entropy, hidden.grad, head.grad, bias.grad)


def test_a_mean_over_the_kept_tokens_stays_on_its_device_whatever_counts_them(make):
    values, mask = make(N).requires_grad_(), make(N, dtype=torch.bool)
    for count in (None, 3.0, torch.tensor(3.0), make(())):
        assert_elsewhere(masked_mean(values, mask, num_items_in_batch=count))


def test_what_the_checks_compute_stays_on_its_device(make):
    _, tokens = student_and_rest(make, torch.float32)
    student, *teachers = (NextToken(make(N, HIDDEN), Head(make(VOCAB, HIDDEN), make(VOCAB))) for _ in range(4))
    objectives = {
        support: Objective(TOP_K, support, "reverse_kl", 0.5, "drop", stop_gradient=True, pointwise_clip=None)
        for support, *_ in FORMS
    }
    of_tokens = Tokens(make(N), tokens["completion_ids"])
    exact, found = compare_gradients(student, teachers[0], of_tokens, objectives)
    assert_elsewhere(*vars(exact).values(), *(x for gradients in found.values() for x in vars(gradients).values()))
    spread = context_spread(student, teachers, divergence="reverse_kl")
    assert_elsewhere(spread.per_context, spread.irreducible, spread.irreducible_without)


def test_the_figures_of_a_step_stay_on_their_device(make):
    ids, mask = make(2, 9, dtype=torch.int64), make(2, 9, dtype=torch.int64)
    repeated, quartiles = repeated_trigrams(ids, mask), position_quartiles(mask)
    names = ("per_token_divergence", "entropy", "student_mass", "teacher_mass", "overlap")
    stats = {name: make(18) for name in (*names, "sampled_log_ratio", "teacher_rank")}
    places = {"quartile": quartiles.flatten(), "repeated": repeated.flatten()}
    sums = token_sums(stats, **places, repetition=repetition(repeated, mask), top_k=TOP_K)
    assert_elsewhere(repeated, quartiles, sums)


def test_a_tensor_that_is_made_on_the_cpu_by_mistake_is_noticed(make):
    with pytest.raises(RuntimeError, match=r"two.* devices,? meta,? (and )?cpu"):
        make(N) + torch.ones(N)
