"""Ids that only one of both models knows: the loss is that of both distributions normalised over the others."""

import pytest
import torch

from opd_trl.losses.fused import distillation_loss
from opd_trl.losses.head import Head
from opd_trl.losses.next_token import NextToken
from opd_trl.losses.objective import Objective, Tokens

from .forms import FORMS
from .test_chunked import dense, inputs, leaves


VOCABULARY, EXCLUDED = 60, torch.tensor([0, 7, 8, 31, 59])
KEPT = torch.tensor([i for i in range(VOCABULARY) if i not in EXCLUDED.tolist()])


def likely(values: torch.Tensor) -> torch.Tensor:
    """Raise the excluded ids, so that both models would choose them."""
    with torch.no_grad():
        values[EXCLUDED] += 5.0
    return values


@pytest.mark.parametrize("form", FORMS, ids=" ".join)
def test_the_loss_is_the_dense_one_over_the_ids_that_both_models_know(form):
    support, divergence, tail = form
    arguments, keywords = inputs(vocab=VOCABULARY, hidden=4)
    student, head, teacher, teacher_head, weights = arguments
    biases = [likely(keywords[f"{name}_lm_head_bias"]) for name in ("student", "teacher")]
    sampled = torch.randint(len(KEPT), (len(student),))
    loss, stats = distillation_loss(
        NextToken(student, Head(head, biases[0], 0.7, 1.5, EXCLUDED)),
        NextToken(teacher, Head(teacher_head, biases[1], 1.0, 3.0, EXCLUDED)),
        Tokens(weights, KEPT[sampled]),
        Objective(top_k=4, support=support, divergence=divergence, tail=tail, temperature=1.3, chunk_size=3, beta=0.3),
    )
    wanted = leaves(arguments, keywords)
    gradients = torch.autograd.grad(loss, wanted)
    for gradient in gradients[1:]:
        assert not gradient[EXCLUDED].any()
    expected, expected_stats = dense(
        student,
        head[KEPT],
        teacher,
        teacher_head[KEPT],
        weights,
        top_k=4,
        support=support,
        divergence=divergence,
        tail=tail,
        beta=0.3,
        completion_ids=sampled,
        temperature=1.3,
        student_lm_head_bias=biases[0][KEPT],
        student_logit_scale=0.7,
        student_final_logit_softcapping=1.5,
        teacher_lm_head_bias=biases[1][KEPT],
        teacher_final_logit_softcapping=3.0,
    )
    for name, value in expected_stats.items():
        torch.testing.assert_close(
            stats[name], value, rtol=0, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)
    for gradient, of_dense in zip(gradients, torch.autograd.grad(expected, wanted), strict=True):
        torch.testing.assert_close(gradient, of_dense, rtol=0, atol=1e-10)


@pytest.mark.parametrize("baseline", ["full", "top_k"])
def test_the_baseline_of_a_sampled_token_is_that_over_the_ids_that_both_models_know(baseline):
    (student, head, teacher, teacher_head, weights), keywords = inputs(vocab=VOCABULARY)
    bias, sampled = likely(keywords["student_lm_head_bias"]), torch.randint(len(KEPT), (len(student),))
    objective = Objective(top_k=4, support="sampled", baseline=baseline, chunk_size=3)
    found = [
        torch.autograd.grad(
            distillation_loss(
                NextToken(student, Head(head[rows], bias[rows], excluded=excluded)),
                NextToken(teacher, Head(teacher_head[rows], excluded=excluded)),
                Tokens(weights, ids),
                objective,
            )[0],
            (student, head, bias),
        )
        for rows, excluded, ids in ((slice(None), EXCLUDED, KEPT[sampled]), (KEPT, None, sampled))
    ]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("options", [{"top_k": 4}, {"ids": KEPT[:7, None]}], ids=str)
def test_log_probabilities_and_entropy_are_those_over_the_other_ids(options):
    (student, head, *_), keywords = inputs(vocab=VOCABULARY)
    bias = likely(keywords["student_lm_head_bias"])
    excluding = NextToken(student, Head(head, bias, 1.0, 2.0, EXCLUDED))
    selected = NextToken(student, Head(head[KEPT], bias[KEPT], 1.0, 2.0))
    log_probs, ids, entropy = excluding.log_probs(chunk_size=3, **options)
    expected, _, expected_entropy = selected.log_probs(ids=torch.searchsorted(KEPT, ids), chunk_size=3)
    torch.testing.assert_close((log_probs, entropy), (expected, expected_entropy))
    gradients, of_selected = (
        torch.autograd.grad(x.sum() + 0.3 * y.sum(), (student, head, bias))
        for x, y in ((log_probs, entropy), (expected, expected_entropy))
    )
    torch.testing.assert_close(gradients, of_selected)


def test_a_capped_head_in_float32_has_finite_gradients():
    (student, head, teacher, teacher_head, weights), _ = inputs(vocab=VOCABULARY, dtype=torch.float32)
    models = [NextToken(x, Head(y, None, 1.0, 2.0, EXCLUDED)) for x, y in ((student, head), (teacher, teacher_head))]
    loss, _ = distillation_loss(*models, Tokens(weights), Objective(support="full"))
    assert all(x.isfinite().all() for x in torch.autograd.grad(loss, (student, head)))


def test_a_support_larger_than_the_ids_that_both_know_is_refused():
    (student, head, teacher, teacher_head, weights), _ = inputs(vocab=VOCABULARY)
    one, other = (
        NextToken(student, Head(head, excluded=EXCLUDED)),
        NextToken(teacher, Head(teacher_head, excluded=EXCLUDED)),
    )
    with pytest.raises(ValueError, match="loss_top_k must be at most the vocabulary of 55, got 56"):
        distillation_loss(one, other, Tokens(weights), Objective(top_k=56))
