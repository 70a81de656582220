"""chunked_support_loss as a node of the graph: who gets a gradient, how large a tensor gets, what is refused."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from opd_trl.losses import chunked_support_log_probs, chunked_support_loss
from opd_trl.losses.divergences import DIVERGENCES


SUPPORTS = ("student", "teacher", "intersection", "union", "full", "sampled")
TAILS = ("drop", "bucket", "renormalize")
every_support = pytest.mark.parametrize("support", SUPPORTS)


def inputs(n=7, hidden=4, vocab=11, dtype=torch.float64):
    """Positional arguments of chunked_support_loss, the three of the student with requires_grad, and its keywords."""
    torch.manual_seed(0)
    student, teacher, head, teacher_head = (
        torch.randn(*shape, dtype=dtype) for shape in ((n, hidden), (n, 3), (vocab, hidden), (vocab, 3))
    )
    keywords = {
        "student_lm_head_bias": torch.randn(vocab, dtype=dtype).requires_grad_(),
        "teacher_lm_head_bias": torch.randn(vocab, dtype=dtype),
        "completion_ids": torch.randint(vocab, (n,)),
        "top_k": 4,
    }
    return [
        student.requires_grad_(),
        head.requires_grad_(),
        teacher,
        teacher_head,
        torch.rand(n, dtype=dtype),
    ], keywords


def leaves(arguments, keywords):
    return arguments[0], arguments[1], keywords["student_lm_head_bias"]


@every_support
def test_no_token_at_all_gives_a_zero_that_keeps_its_graph(support):
    arguments, keywords = inputs(n=0)
    loss, stats = chunked_support_loss(*arguments, **keywords, support=support)
    assert loss.item() == 0.0
    assert all(x.shape == (0,) for x in stats.values())
    loss.backward()
    for leaf in leaves(arguments, keywords):
        assert leaf.grad.abs().sum().item() == 0.0


@every_support
def test_the_teacher_gets_no_gradient_even_where_its_tensors_require_one(support):
    arguments, keywords = inputs()
    teacher = [arguments[2], arguments[3], keywords["teacher_lm_head_bias"]]
    for x in teacher:
        x.requires_grad_()
    loss, _ = chunked_support_loss(*arguments, **keywords, support=support, chunk_size=3)
    loss.backward()
    assert arguments[0].grad.abs().max() > 0
    assert all(x.grad is None for x in teacher)


def test_a_perfect_student_gets_exactly_no_gradient():
    arguments, keywords = inputs(dtype=torch.float32)
    options = {"top_k": 4, "completion_ids": keywords["completion_ids"]}
    student, head, *_, weights = arguments
    for support in SUPPORTS:
        for tail in TAILS:
            loss, _ = chunked_support_loss(
                student, head, student, head, weights, support=support, tail=tail, chunk_size=3, **options
            )
            grads = torch.autograd.grad(loss, (student, head))
            assert all(grad.abs().max().item() == 0.0 for grad in grads)


@every_support
def test_the_incoming_gradient_multiplies_and_backward_can_run_again(support):
    arguments, keywords = inputs()
    wanted = leaves(arguments, keywords)
    loss, _ = chunked_support_loss(*arguments, **keywords, support=support, chunk_size=3)
    once = torch.autograd.grad(loss, wanted, retain_graph=True)
    thrice = torch.autograd.grad(3 * loss, wanted)
    for a, b in zip(once, thrice, strict=True):
        torch.testing.assert_close(3 * a, b, rtol=0, atol=1e-12)


@every_support
def test_a_token_of_weight_zero_moves_nothing_and_still_has_its_stats(support):
    arguments, keywords = inputs()
    arguments[4] = torch.tensor([0.5, 0.0, 1.0, 0.0, 0.0, 2.0, 1.0], dtype=torch.float64)
    loss, stats = chunked_support_loss(*arguments, **keywords, support=support, tail="drop", chunk_size=3)
    (grad,) = torch.autograd.grad(loss, arguments[0])
    assert ((grad.abs().sum(-1) == 0) == (arguments[4] == 0)).all()
    assert stats["per_token_divergence"].abs().min() > 0


@every_support
def test_without_grad_the_numbers_are_the_same_and_no_graph_is_built(support):
    arguments, keywords = inputs()
    with_grad, stats = chunked_support_loss(*arguments, **keywords, support=support, chunk_size=3)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            without, same_stats = chunked_support_loss(*arguments, **keywords, support=support, chunk_size=3)
        assert not without.requires_grad
        assert without.item() == with_grad.item()
        assert all(torch.equal(same_stats[name], stats[name]) for name in stats)


@pytest.mark.parametrize("support", SUPPORTS[:-1])  # the sampled value is no integral of its gradient, by design
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_plain_loss_passes_gradcheck(support, divergence):
    arguments, keywords = inputs(n=3, hidden=2, vocab=5)

    def loss(hidden, head, bias):
        keywords["student_lm_head_bias"] = bias
        return chunked_support_loss(
            hidden,
            head,
            *arguments[2:],
            **keywords,
            support=support,
            divergence=divergence,
            tail="drop",
            stop_gradient=False,
            temperature=1.4,
            student_final_logit_softcapping=3.0,
            chunk_size=2,
        )[0]

    assert torch.autograd.gradcheck(loss, (*arguments[:2], keywords["student_lm_head_bias"]))


class LargestOutput(TorchDispatchMode):
    """Remembers the largest number of elements of any tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))])
        return out


N, VOCAB, HIDDEN, CHUNK = 64, 97, 4, 8


@every_support
def test_no_tensor_of_all_tokens_times_the_vocabulary_exists_in_forward_or_backward_of_the_loss(support):
    arguments, keywords = inputs(N, HIDDEN, VOCAB)
    with LargestOutput() as forward:
        loss, _ = chunked_support_loss(*arguments, **keywords, support=support, chunk_size=CHUNK)
    with LargestOutput() as backward:
        loss.backward()
    assert CHUNK * VOCAB <= forward.numel <= 2 * CHUNK * VOCAB < N * VOCAB  # the lower bound: the mode does see it
    assert backward.numel <= VOCAB * HIDDEN


@pytest.mark.parametrize("options", [{"top_k": 5}, {"ids": torch.arange(5).expand(N, 5)}], ids=["top_k", "ids"])
def test_no_tensor_of_all_tokens_times_the_vocabulary_exists_in_forward_or_backward_of_the_log_probs(options):
    (hidden, head, *_), keywords = inputs(N, HIDDEN, VOCAB)
    bias = keywords["student_lm_head_bias"]
    with LargestOutput() as forward:
        log_probs, _, entropy = chunked_support_log_probs(hidden, head, bias=bias, chunk_size=CHUNK, **options)
    with LargestOutput() as backward:
        (log_probs.sum() + entropy.sum()).backward()
    for seen in (forward, backward):
        assert CHUNK * VOCAB <= seen.numel <= 2 * CHUNK * VOCAB < N * VOCAB


class LargeStorages(TorchDispatchMode):
    """Counts the storages of at least `nbytes` that live at a time."""

    def __init__(self, nbytes):
        super().__init__()
        self.nbytes, self.alive, self.most = nbytes, {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.untyped_storage().nbytes() >= self.nbytes:
                storage = x.untyped_storage()
                self.alive[storage.data_ptr()] = weakref.ref(storage)
                del storage
        self.alive = {key: ref for key, ref in self.alive.items() if ref() is not None}
        self.most = max(self.most, len(self.alive))
        return out


@every_support
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("cap", [None, 3.0])
def test_two_chunks_of_logits_live_at_a_time_and_no_more(support, tail, cap):
    """Everything else (softmax, soft-capping, the divergence of a whole vocabulary) has the size of a block."""
    arguments, keywords = inputs(N, HIDDEN, VOCAB)
    options = {"support": support, "tail": tail, "student_final_logit_softcapping": cap}
    with LargeStorages(CHUNK * VOCAB * 8) as mode:
        chunked_support_loss(*arguments, **keywords, **options, chunk_size=CHUNK)
    assert mode.most == 2


class NumbersFetched(TorchDispatchMode):
    """Counts the operations that make a GPU wait for the host: `.item()`, and sizes that depend on values."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += [name for name in self.WAITING if name in str(func)]
        return func(*args, **(kwargs or {}))


@every_support
@pytest.mark.parametrize("tail", TAILS)
def test_forward_and_backward_never_wait_for_a_number(support, tail):
    arguments, keywords = inputs(N, HIDDEN, VOCAB)
    with NumbersFetched() as mode:
        loss, _ = chunked_support_loss(*arguments, **keywords, support=support, tail=tail, chunk_size=CHUNK)
        loss.backward()
        log_probs, _, entropy = chunked_support_log_probs(arguments[0], arguments[1], top_k=3, chunk_size=CHUNK)
        (log_probs.sum() + entropy.sum()).backward()
    assert mode.seen == []
    with NumbersFetched() as mode:
        loss.item()
    assert mode.seen == ["_local_scalar_dense"]


REFUSED = {
    "unknown support": ({"support": "both"}, "support must be one of 'student', .* 'full', 'sampled', got 'both'"),
    "unknown divergence": ({"divergence": "kl"}, "divergence must be one of 'reverse_kl', .* got 'kl'"),
    "unknown tail": (
        {"tail": "keep"},
        "tail must be one of 'drop', .* 'reweight', 'sample', got 'keep'",
    ),
    "beta": ({"beta": 1.5}, r"beta must lie in \[0, 1\], got 1.5"),
    "top_k too small": ({"top_k": 0}, "loss_top_k must be >= 1, got 0. Use loss_support='full'"),
    "top_k too large": ({"top_k": 12}, "loss_top_k must be at most the vocabulary of 11, got 12"),
    "one token renormalised": ({"top_k": 1}, "support of one token is identically zero. Use a larger top_k"),
    "no sampled tokens": ({"support": "sampled", "completion_ids": None}, "'sampled' needs completion_ids"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_an_impossible_option_is_refused_with_the_remedy(what):
    options, message = REFUSED[what]
    arguments, keywords = inputs()
    with pytest.raises(ValueError, match=message):
        chunked_support_loss(*arguments, **(keywords | options))


def test_heads_of_different_vocabularies_are_refused():
    arguments, keywords = inputs()
    arguments[3] = arguments[3][:9]
    with pytest.raises(ValueError, match=r"same vocabulary, got 11 and 9 rows\. Cut both to the rows that"):
        chunked_support_loss(*arguments, **keywords)


@pytest.mark.parametrize(
    ("position", "wrong", "message"),
    [
        (
            2,
            torch.zeros(9, 3).double(),
            r"teacher_hidden_states must have one row for each of the 7 tokens, got \(9,\)",
        ),
        (4, torch.ones(7, 1), r"token_weights must have one row for each of the 7 tokens, got \(7, 1\)"),
        ("completion_ids", torch.zeros(1, dtype=torch.int64), r"completion_ids must have one row .* got \(1,\)"),
    ],
)
def test_tensors_of_another_length_are_refused_where_slicing_would_hide_it(position, wrong, message):
    arguments, keywords = inputs()
    (keywords if isinstance(position, str) else arguments)[position] = wrong
    with pytest.raises(ValueError, match=message):
        chunked_support_loss(*arguments, **keywords, support="sampled")
