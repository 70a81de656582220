"""Log-probabilities and entropies on the device, against float64 on the CPU."""

import pytest
import torch

from opd_trl.losses import chunked_support_log_probs
from tests.gpu.near import assert_near, error, on_device, wide
from tests.gpu.test_loss import every_dtype
from tests.losses.test_chunked_log_probs import dense


TRANSFORMS = {
    "plain": {},
    "all conventions": {"temperature": 1.7, "logit_scale": 0.8, "final_logit_softcapping": 10.0},
}


@every_dtype
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("chosen", ["ids", "top_k"])
def test_log_probs_entropies_and_gradients_are_those_of_float64(place, planted, note, chosen, transform, dtype):
    size, options = place.small, TRANSFORMS[transform]
    leaves = [on_device(x, place, dtype).requires_grad_() for x in (*planted.student, planted.bias)]
    inputs = [wide(x).requires_grad_() for x in leaves]
    which = (
        {"ids": planted.completion_ids.unsqueeze(-1).to(place.device)} if chosen == "ids" else {"top_k": size.top_k}
    )
    log_probs, ids, entropy = chunked_support_log_probs(
        leaves[0], leaves[1], bias=leaves[2], chunk_size=size.tokens // 3, **which, **options
    )
    if chosen == "top_k":  # in any order: rounding decides it
        log_p, _ = dense(*inputs, torch.arange(size.vocab).expand(size.tokens, -1), **options)
        assert torch.equal(ids.cpu().sort(-1).values, log_p.topk(size.top_k).indices.sort(-1).values)
    expected, expected_entropy = dense(*inputs, ids.cpu(), **options)
    errors = {"loss": error(log_probs, expected), "per_token": error(entropy, expected_entropy)}
    (log_probs.sum() + 0.1 * entropy.sum()).backward()
    (expected.sum() + 0.1 * expected_entropy.sum()).backward()
    names = ("hidden", "head", "bias")
    errors |= {name: error(x.grad, y.grad) for name, x, y in zip(names, leaves, inputs, strict=True)}
    note(f"log-probs of {chosen}, {transform}", dtype, **errors)
    assert_near(errors, place, dtype)
