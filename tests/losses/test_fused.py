"""The gradient of a renormalised loss stays on the support: sparse products, the same numbers."""

import pytest
import torch

from opd_trl.losses import chunked_support_loss, select_support, support_divergence
from opd_trl.losses.divergences import DIVERGENCES
from opd_trl.losses.head import LogitGradient


def inputs(vocab_size: int, *, seed: int = 0):
    torch.manual_seed(seed)
    student = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    head = torch.randn(vocab_size, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(vocab_size, dtype=torch.float64, requires_grad=True)
    return student, head, bias, torch.randn(7, 6, dtype=torch.float64), torch.randn(vocab_size, 6, dtype=torch.float64)


def test_sparse_and_dense_products_are_the_same():
    student, head, bias, *_ = (x.detach() for x in inputs(50))
    ids = torch.stack([torch.randperm(50)[:5] for _ in range(7)])
    ids[0, 1] = ids[0, 0]  # a union repeats ids that carry no gradient; adding up must be right anyway
    values = torch.randn(7, 5, dtype=torch.float64)
    sparse = LogitGradient(values, ids)
    dense = LogitGradient(torch.zeros(7, 50, dtype=torch.float64).scatter_add_(-1, ids, values))
    torch.testing.assert_close(sparse.to_hidden(head), dense.to_hidden(head))
    for method, like, arguments in (("add_to_weight", head, (student,)), ("add_to_bias", bias, ())):
        sums = [torch.ones_like(like), torch.ones_like(like)]
        for gradient, total in zip((sparse, dense), sums, strict=True):
            getattr(gradient, method)(total, *arguments)
        torch.testing.assert_close(*sums)


# 60 ids: 5 x 4 <= 60 takes the sparse form, also for the union of 10; 15 ids take the dense one.
@pytest.mark.parametrize("vocab_size", [15, 60])
@pytest.mark.parametrize("support", ["student", "teacher", "intersection", "union"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("cap", [None, 3.0])
def test_the_renormalised_loss_has_the_gradient_of_the_dense_composition(vocab_size, support, divergence, cap):
    student, head, bias, teacher, teacher_head = inputs(vocab_size)
    weights = torch.rand(7, dtype=torch.float64)
    options = {"divergence": divergence, "beta": 0.3}
    loss, _ = chunked_support_loss(
        student,
        head,
        teacher,
        teacher_head,
        weights,
        top_k=5,
        support=support,
        student_lm_head_bias=bias,
        student_logit_scale=0.7,
        student_final_logit_softcapping=cap,
        temperature=1.3,
        chunk_size=4,
        **options,
    )
    gradients = torch.autograd.grad(2 * loss, (student, head, bias))

    raw = 0.7 * (student @ head.mT + bias)
    log_probs = ((raw if cap is None else cap * torch.tanh(raw / cap)) / 1.3).log_softmax(-1)
    teacher_log_probs = (teacher @ teacher_head.mT / 1.3).log_softmax(-1)
    ids, mask = select_support(log_probs, teacher_log_probs, top_k=5, support=support)
    per_token = support_divergence(
        log_probs.gather(-1, ids), teacher_log_probs.gather(-1, ids), support_mask=mask, **options
    )
    expected = (per_token * weights).sum()
    torch.testing.assert_close(loss, expected)
    for gradient, reference in zip(gradients, torch.autograd.grad(2 * expected, (student, head, bias)), strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-9, atol=1e-11)


def test_backward_twice_adds_up_with_a_retained_graph_and_is_refused_without():
    student, head, _, teacher, teacher_head = inputs(60)
    arguments = (student, head, teacher, teacher_head, torch.ones(7, dtype=torch.float64))
    loss, _ = chunked_support_loss(*arguments, top_k=5)
    (3 * loss).backward(retain_graph=True)
    once = student.grad.clone(), head.grad.clone()
    (3 * loss).backward()
    torch.testing.assert_close((student.grad, head.grad), (2 * once[0], 2 * once[1]))
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        loss.backward()


def test_the_head_gradient_is_handed_over_not_copied():
    student, head, _, teacher, teacher_head = inputs(60)
    loss, _ = chunked_support_loss(student, head, teacher, teacher_head, torch.ones(7, dtype=torch.float64), top_k=5)
    formed = loss.grad_fn.grads[1].data_ptr()
    loss.backward()
    assert head.grad.data_ptr() == formed


@pytest.mark.parametrize("support", ["full", "sampled"])
def test_a_vocabulary_smaller_than_the_default_k_is_no_error_where_k_is_not_used(support):
    student, head, _, teacher, teacher_head = inputs(11)
    ids = torch.randint(11, (7,))
    weights = torch.ones(7, dtype=torch.float64)
    _, stats = chunked_support_loss(student, head, teacher, teacher_head, weights, support=support, completion_ids=ids)
    assert (stats["overlap"] == 1).all()  # the K of the figure is the whole vocabulary
