"""Every form of the loss on the device, against float64 on the CPU."""

import pytest
import torch

from opd_trl.losses import chunked_loss_from_log_probs
from tests.gpu.near import assert_near, error, loss_errors, on_device, wide
from tests.losses.forms import FORMS
from tests.losses.test_chunked import dense


every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


@every_dtype
@pytest.mark.parametrize(("support", "divergence", "tail"), FORMS)
def test_every_form_gives_the_loss_and_the_gradients_of_float64(
    place, planted, note, support, divergence, tail, dtype
):
    options = {"support": support, "divergence": divergence, "tail": tail, "beta": 0.3}
    size = place.small
    errors = loss_errors(planted, place, dtype, top_k=size.top_k, chunk_size=size.tokens // 3, **options)
    note(f"{support} {divergence} {tail}", dtype, **errors)
    assert_near(errors, place, dtype)


OF_MODELS = {
    "student_logit_scale": 0.5,
    "teacher_logit_scale": 1.5,
    "student_final_logit_softcapping": 10.0,
    "teacher_final_logit_softcapping": 15.0,
}
CONVENTIONS = {
    "temperature": {"temperature": 0.7},
    "scales and soft caps": OF_MODELS,
    "biases": {"bias": True},
    "all of them": {**OF_MODELS, "bias": True, "temperature": 1.3},
}


@every_dtype
@pytest.mark.parametrize("support", ["student", "full"])
@pytest.mark.parametrize("conventions", CONVENTIONS)
def test_the_logit_conventions_of_models_are_those_of_float64(place, planted, note, conventions, support, dtype):
    options = {"support": support, "top_k": place.small.top_k, **CONVENTIONS[conventions]}
    errors = loss_errors(planted, place, dtype, **options)
    note(f"{support}, {conventions}", dtype, **errors)
    assert_near(errors, place, dtype)


@pytest.mark.parametrize("tail", ["drop", "renormalize"])
def test_under_autocast_float32_models_have_the_errors_of_bfloat16_products(place, planted, note, tail):
    """As trainers take the loss. Hidden states and heads are rounded: 8 bits, for which float64 stays unrounded."""
    errors = loss_errors(planted, place, torch.float32, top_k=place.small.top_k, tail=tail, autocast=True)
    note(f"student reverse_kl {tail}, autocast", torch.float32, **errors)
    assert errors["loss"] < 0.05
    assert max(errors["hidden"], errors["head"]) < 0.05


@every_dtype
@pytest.mark.parametrize("support", ["teacher", "intersection", "sampled"])
def test_the_loss_from_a_servers_log_probs_is_that_of_float64(place, planted, note, support, dtype):
    top_k, tail = place.small.top_k, "bucket"
    hidden, head = (on_device(x, place, dtype).requires_grad_() for x in planted.student)
    inputs = [wide(x).requires_grad_() for x in (hidden, head)]
    teacher, teacher_head = (x.double() for x in planted.teacher)
    log_q = (teacher @ teacher_head.mT).log_softmax(-1)
    log_probs, ids = log_q.topk(top_k, dim=-1)
    tokens = planted.completion_ids
    of_tokens = log_q.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    loss, _ = chunked_loss_from_log_probs(
        hidden,
        head,
        ids.to(place.device),
        on_device(log_probs, place, torch.float32),
        on_device(planted.weights, place, torch.float32),
        completion_ids=tokens.to(place.device),
        completion_log_probs=on_device(of_tokens, place, torch.float32),
        support=support,
        tail=tail,
        chunk_size=place.small.tokens // 3,
    )
    loss.backward()
    options = {"completion_ids": tokens, "support": support, "tail": tail, "top_k": top_k}
    expected, _ = dense(*inputs, teacher, teacher_head, planted.weights.double(), **options)
    expected.backward()
    errors = {"loss": error(loss, expected)}
    errors |= {"hidden": error(hidden.grad, inputs[0].grad), "head": error(head.grad, inputs[1].grad)}
    note(f"{support}, a server's log-probs", dtype, **errors)
    assert_near(errors, place, dtype)
