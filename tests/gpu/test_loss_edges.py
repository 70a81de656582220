"""The loss on the device where there is nothing to learn, where rows are padded, and at the size of a model."""

import pytest
import torch

from opd_trl.losses import chunk_size_for, chunked_support_log_probs, chunked_support_loss
from opd_trl.losses.head import Head, block_size_for, chunks
from tests.gpu.near import assert_near, error, loss_errors, on_device
from tests.gpu.place import Place
from tests.gpu.planted import Planted
from tests.gpu.test_loss import every_dtype
from tests.losses.forms import TOP_K_SUPPORTS
from tests.memory import PeakBytes


every_support = pytest.mark.parametrize("support", [*TOP_K_SUPPORTS, "full", "sampled"])
MIB = 2**20


def arguments_of(planted: Planted, place: Place, dtype: torch.dtype, count: int | None = None):
    """Positional arguments of the loss for the first tokens, the student's with gradients, and its keywords."""
    student, teacher = (
        (on_device(hidden[:count], place, dtype), on_device(head, place, dtype))
        for hidden, head in (planted.student, planted.teacher)
    )
    student[0].requires_grad_()
    student[1].requires_grad_()
    weights = on_device(planted.weights[:count], place, torch.float32)
    keywords = {"completion_ids": planted.completion_ids[:count].to(place.device), "top_k": place.small.top_k}
    return [*student, *teacher, weights], keywords


@every_dtype
@every_support
def test_no_token_at_all_gives_a_zero_that_keeps_its_graph(place, planted, support, dtype):
    arguments, keywords = arguments_of(planted, place, dtype, count=0)
    for tail in ("drop", "renormalize"):
        loss, stats = chunked_support_loss(*arguments, support=support, tail=tail, **keywords)
        loss.backward()
        assert loss.item() == 0.0
        assert all(x.shape == (0,) for x in stats.values())
    log_probs, _, entropy = chunked_support_log_probs(*arguments[:2], top_k=keywords["top_k"])
    (log_probs.sum() + entropy.sum()).backward()
    assert not any(x.grad.any() for x in arguments[:2])


@every_support
def test_tokens_of_weight_zero_move_nothing_and_have_their_figures(place, planted, support):
    arguments, keywords = arguments_of(planted, place, torch.bfloat16)
    arguments[4] = torch.zeros_like(arguments[4])
    for tail in ("drop", "renormalize"):
        loss, stats = chunked_support_loss(*arguments, support=support, tail=tail, **keywords)
        loss.backward()
        assert loss.item() == 0.0
        assert not any(x.grad.any() for x in arguments[:2])
        assert stats["per_token_divergence"].isfinite().all()
        assert stats["per_token_divergence"].any()


@every_dtype
@pytest.mark.parametrize("tail", ["drop", "renormalize"])
def test_padded_rows_of_a_head_count_nowhere_and_get_no_gradient(place, planted, tail, dtype):
    """Heads are cut to the rows that the tokenizer uses; the padded rows here would win every TopK."""
    arguments, keywords = arguments_of(planted, place, dtype)
    expected, _ = chunked_support_loss(*arguments, tail=tail, **keywords)
    gradients = torch.autograd.grad(expected, arguments[:2])
    padding = (0, 0, 0, 77)
    padded = torch.nn.functional.pad(arguments[1].detach(), padding, value=10.0).requires_grad_()
    teacher = torch.nn.functional.pad(arguments[3], padding, value=-10.0)
    rows = len(arguments[1])
    heads = [Head(weight, None, 1.0, None).rows(rows).weight for weight in (padded, teacher)]
    loss, _ = chunked_support_loss(arguments[0], heads[0], arguments[2], heads[1], arguments[4], tail=tail, **keywords)
    of_hidden, of_head = torch.autograd.grad(loss, (arguments[0], padded))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert not of_head[rows:].any()
    for found, wanted in ((of_hidden, gradients[0]), (of_head[:rows], gradients[1])):
        assert error(found, wanted.cpu().double()) < 0.005


@every_support
def test_two_runs_give_the_same_loss_and_gradients_that_differ_by_the_order_of_sums(place, planted, note, support):
    arguments, keywords = arguments_of(planted, place, torch.bfloat16)
    for tail in ("drop", "renormalize"):
        first, second = (
            (loss, torch.autograd.grad(loss, arguments[:2]))
            for loss, _ in (chunked_support_loss(*arguments, support=support, tail=tail, **keywords) for _ in range(2))
        )
        assert first[0].item() == second[0].item()
        apart = [error(x, y.cpu().double()) for x, y in zip(first[1], second[1], strict=True)]
        note(f"{support} {tail}, two runs", torch.bfloat16, hidden=apart[0], head=apart[1])
        assert max(apart) < 1e-3


@pytest.mark.usefixtures("only_on_cuda")
@every_support
def test_the_device_never_waits_for_the_host(place, planted, support):
    arguments, keywords = arguments_of(planted, place, torch.bfloat16)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for tail in ("drop", "bucket", "renormalize"):
            loss, _ = chunked_support_loss(*arguments, support=support, tail=tail, **keywords)
            loss.backward()
        log_probs, _, entropy = chunked_support_log_probs(*arguments[:2], top_k=keywords["top_k"])
        (log_probs.sum() + entropy.sum()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# The default, the dense product that adds up the head, and the whole vocabulary.
LARGE = {
    "student renormalize": {},
    "student bucket": {"tail": "bucket"},
    "full": {"support": "full"},
}


@pytest.mark.parametrize("form", LARGE)
def test_the_vocabulary_of_a_model_gives_the_loss_and_the_gradients_of_float64(place, planted_large, note, form):
    """Over several chunks and blocks; one token in eight has a weight, so that float64 takes seconds."""
    options = {"top_k": place.large.top_k, "every": 8, **LARGE[form]}
    errors = loss_errors(planted_large, place, torch.bfloat16, **options)
    note(f"{form}, V = {place.large.vocab:,}", torch.bfloat16, **errors)
    assert_near(errors, place, torch.bfloat16)


def peak_of(place: Place, call, known: list[torch.Tensor]) -> int:
    """Bytes that a call allocates beyond what lives before it, at most."""
    if not place.on_cuda:
        with PeakBytes(*known) as mode:
            call()
        return mode.peak
    call()  # the first one loads libraries, which keep a workspace
    for x in known:
        x.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("mib", [64, 1024])
@pytest.mark.parametrize("trained", [True, False], ids=["trained head", "frozen head"])
@pytest.mark.parametrize("form", LARGE)
def test_the_peak_of_memory_is_the_budget_and_the_gradients(place, planted_large, note, form, trained, mib):
    """Besides, a 16-bit copy of a chunk's gradient for the dense products, and temporaries of a block of rows."""
    size = place.large
    budget = mib * MIB if place.on_cuda else mib * MIB // 1024
    arguments, keywords = arguments_of(planted_large, place, torch.bfloat16)
    arguments[1].requires_grad_(trained)
    keywords |= {"top_k": size.top_k, "chunk_size": chunk_size_for(size.vocab, place.device, budget=budget)}

    def step():
        loss, _ = chunked_support_loss(*arguments, **keywords, **LARGE[form])
        loss.backward()

    peak = peak_of(place, step, arguments)
    rows = max(part.stop - part.start for part in chunks(size.tokens, keywords["chunk_size"]))
    logits = 2 * rows * size.vocab * 4
    copy = 0 if form == "student renormalize" else rows * size.vocab * 2
    block = min(rows, block_size_for(size.vocab, place.device)) * size.vocab * 4
    temporaries = 15 if form == "full" else 4
    head = size.vocab * size.hidden * (4 + 2) if trained else 0  # summed in float32, handed over in bfloat16
    hidden = 2 * size.tokens * size.hidden * 2 + size.tokens * 64
    bound = logits + copy + temporaries * block + head + hidden
    name = f"{form}, {'trained' if trained else 'frozen'} head, {budget // 1024:,} KiB"
    note(name, torch.bfloat16, **{"peak/MiB": peak / MIB, "bound/MiB": bound / MIB})
    assert logits < peak < bound
