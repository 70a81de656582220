"""A mean of several teachers: the loss is that of a teacher whose whole distribution is the mean."""

from dataclasses import replace

import pytest
import torch

from opd_trl.losses import mixture
from opd_trl.losses.divergences import forward_kl, reverse_kl
from opd_trl.losses.fused import distillation_loss
from opd_trl.losses.head import Head
from opd_trl.losses.mixture import MEANS, Mixture
from opd_trl.losses.next_token import NextToken
from opd_trl.losses.objective import Objective, Tokens

from .forms import FORMS
from .test_chunked import dense, inputs, leaves, logits_of
from .test_chunked_graph import LargeStorages, LargestOutput


N, VOCABULARY, TEMPERATURE = 7, 11, 1.3
EXACT = {"rtol": 0, "atol": 1e-10}


@pytest.fixture(autouse=True, scope="module")
def blocks_of_two_tokens_in_the_mean():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixture, "block_size_for", lambda vocab_size, device: 2)
        yield


def teachers(n=N, vocab=VOCABULARY, dtype=torch.float64):
    """Three teachers of different widths and conventions, and weights of their own at each position."""
    torch.manual_seed(1)
    conventions = [(1.0, None), (0.7, 3.0), (1.2, None)]
    parts = tuple(
        NextToken(
            torch.randn(n, size, dtype=dtype),
            Head(torch.randn(vocab, size, dtype=dtype), torch.randn(vocab, dtype=dtype), *convention),
        )
        for size, convention in zip((3, 5, 4), conventions, strict=True)
    )
    return parts, torch.rand(n, 3, dtype=dtype).softmax(-1)


def mean_of(parts, weights, mean, temperature=1.0):
    """The mean in probabilities, `[N, V]` at once."""
    logits = [
        logits_of(x.hidden_states, x.head.weight, x.head.bias, *x.head.transform(temperature)[1:3], temperature)
        for x in parts
    ]
    probs = torch.stack([x.softmax(-1) for x in logits])
    weights = weights.T.unsqueeze(-1)
    if mean == "arithmetic":
        return (weights * probs).sum(0)
    product = (probs**weights).prod(0)
    return product / product.sum(-1, keepdim=True)


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("form", FORMS, ids=" ".join)
def test_the_loss_is_the_dense_one_against_the_mean(form, mean):
    support, divergence, tail = form
    arguments, keywords = inputs(n=N, vocab=VOCABULARY)
    student, head, _, _, weights = arguments
    parts, shares = teachers()
    bias, sampled = keywords["student_lm_head_bias"], keywords["completion_ids"]
    options = {"top_k": 4, "support": support, "divergence": divergence, "tail": tail, "beta": 0.3}
    loss, stats = distillation_loss(
        NextToken(student, Head(head, bias)),
        Mixture(parts, shares, mean),
        Tokens(weights, sampled),
        Objective(temperature=TEMPERATURE, chunk_size=3, **options),
    )
    expected, expected_stats = dense(
        student,
        head,
        mean_of(parts, shares, mean, TEMPERATURE).log() * TEMPERATURE,
        torch.eye(VOCABULARY, dtype=torch.float64),
        weights,
        completion_ids=sampled,
        temperature=TEMPERATURE,
        student_lm_head_bias=bias,
        **options,
    )
    torch.testing.assert_close(stats, expected_stats, **EXACT)
    torch.testing.assert_close(loss, expected, **EXACT)
    wanted = leaves(arguments, keywords)
    found, of_dense = (torch.autograd.grad(x, wanted) for x in (loss, expected))
    torch.testing.assert_close(found, of_dense, **EXACT)


@pytest.mark.parametrize(
    ("mean", "divergence", "kl"),
    [("arithmetic", "forward_kl", forward_kl), ("geometric", "reverse_kl", reverse_kl)],
)
def test_its_gradient_is_the_mean_of_the_gradients_to_each_teacher(mean, divergence, kl):
    arguments, _ = inputs(n=N, vocab=VOCABULARY)
    student, head, _, _, weights = arguments
    parts, shares = teachers()
    loss, _ = distillation_loss(
        NextToken(student, Head(head)),
        Mixture(parts, shares, mean),
        Tokens(weights),
        Objective(support="full", divergence=divergence, chunk_size=3),
    )
    log_p = (student @ head.T).log_softmax(-1)
    each = torch.stack([kl(log_p, x.logits(slice(None)).log_softmax(-1)) for x in parts], -1)
    expected = ((shares * each).sum(-1) * weights).sum()
    found, of_each = (torch.autograd.grad(x, (student, head)) for x in (loss, expected))
    torch.testing.assert_close(found, of_each, **EXACT)


@pytest.mark.parametrize("baseline", ["full", "top_k"])
@pytest.mark.parametrize("mean", MEANS)
def test_the_baseline_of_a_sampled_token_reads_the_mean(mean, baseline):
    (student, head, _, _, weights), keywords = inputs(n=N, vocab=VOCABULARY)
    parts, shares = teachers()
    one = NextToken(mean_of(parts, shares, mean).log(), Head(torch.eye(VOCABULARY, dtype=torch.float64)))
    losses = [
        distillation_loss(
            NextToken(student, Head(head)),
            teacher,
            Tokens(weights, keywords["completion_ids"]),
            Objective(top_k=4, support="sampled", baseline=baseline, chunk_size=3),
        )[0]
        for teacher in (Mixture(parts, shares, mean), one)
    ]
    torch.testing.assert_close(*losses, **EXACT)


@pytest.mark.parametrize("mean", MEANS)
def test_a_teacher_of_weight_zero_has_no_part_and_one_alone_is_itself(mean):
    parts, _ = teachers()
    nothing = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64).expand(N, 3)
    expected = parts[1].logits(slice(None), TEMPERATURE).log_softmax(-1)
    for found in (Mixture(parts, nothing, mean), Mixture(parts[1:2], nothing[:, 1:2], mean)):
        torch.testing.assert_close(found.logits(slice(None), TEMPERATURE).log_softmax(-1), expected, **EXACT)


@pytest.mark.parametrize("mean", MEANS)
def test_log_probabilities_and_entropies_at_some_positions_are_those_of_the_mean(mean):
    parts, shares = teachers()
    at, ids = torch.tensor([5, 0, 3]), torch.tensor([[1], [10], [4]])
    probs = mean_of(parts, shares, mean, TEMPERATURE)[at]
    mixed, options = Mixture(parts, shares, mean).select(at), {"temperature": TEMPERATURE, "chunk_size": 2}
    log_probs, _, entropy = mixed.log_probs(ids=ids, **options)
    torch.testing.assert_close(log_probs, probs.log().gather(-1, ids), **EXACT)
    torch.testing.assert_close(entropy, torch.special.entr(probs).sum(-1), **EXACT)
    best, found, _ = mixed.log_probs(top_k=3, **options)
    expected = probs.log().topk(3)
    assert found.tolist() == expected.indices.tolist()
    torch.testing.assert_close(best, expected.values, **EXACT)


@pytest.mark.parametrize("mean", MEANS)
def test_ids_that_are_left_out_have_no_part_in_the_mean(mean):
    excluded = torch.tensor([0, 4])
    kept = torch.tensor([i for i in range(VOCABULARY) if i not in (0, 4)])
    parts, shares = teachers()
    left, selected = (
        Mixture(
            tuple(
                replace(x, head=replace(x.head, weight=x.head.weight[rows], bias=x.head.bias[rows], excluded=out))
                for x in parts
            ),
            shares,
            mean,
        )
        for rows, out in ((slice(None), excluded), (kept, None))
    )
    probs = left.logits(slice(None)).softmax(-1)
    assert not probs[:, excluded].any()
    torch.testing.assert_close(probs[:, kept], selected.logits(slice(None)).softmax(-1), **EXACT)


@pytest.mark.parametrize("mean", MEANS)
def test_tokens_that_a_float32_teacher_calls_impossible_stay_finite(mean):
    hidden = torch.tensor([[200.0, 0.0, -200.0]])
    parts = tuple(NextToken(x, Head(torch.eye(3))) for x in (hidden, hidden.flip(-1)))
    student = torch.zeros(1, 3, requires_grad=True)
    loss, _ = distillation_loss(
        NextToken(student, Head(torch.eye(3))),
        Mixture(parts, torch.tensor([[0.5, 0.5]]), mean),
        Tokens(torch.ones(1)),
        Objective(support="full"),
    )
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("support", ["student", "full"])
def test_three_chunks_of_logits_live_at_a_time_and_no_more(support, mean):
    n, vocab, chunk = 64, 97, 8
    arguments, _ = inputs(n=n, vocab=vocab)
    parts, shares = teachers(n=n, vocab=vocab)
    with LargeStorages(chunk * vocab * 8) as mode, LargestOutput() as largest:
        loss, _ = distillation_loss(
            NextToken(arguments[0], Head(arguments[1])),
            Mixture(parts, shares, mean),
            Tokens(arguments[4]),
            Objective(support=support, chunk_size=chunk),
        )
        loss.backward()
    assert mode.most == mixture.LIVE_LOGITS
    assert largest.numel <= 2 * chunk * vocab < n * vocab


def test_no_part_gets_a_gradient():
    arguments, _ = inputs(n=N, vocab=VOCABULARY)
    parts, shares = teachers()
    tensors = [y.requires_grad_() for x in parts for y in (x.hidden_states, x.head.weight, x.head.bias)]
    student = NextToken(arguments[0], Head(arguments[1]))
    loss, _ = distillation_loss(student, Mixture(parts, shares), Tokens(arguments[4]), Objective(top_k=4))
    loss.backward()
    assert all(x.grad is None for x in tensors)


def test_parts_that_do_not_fit_are_refused():
    parts, shares = teachers()
    with pytest.raises(ValueError, match="mean must be one of 'arithmetic', 'geometric', got 'harmonic'"):
        Mixture(parts, shares, "harmonic")
    with pytest.raises(ValueError, match="2 teachers need as many weights"):
        Mixture(parts[:2], shares)
    with pytest.raises(ValueError, match="teacher 0 must have one row for each of the 6 tokens"):
        Mixture(parts, shares[:6])
