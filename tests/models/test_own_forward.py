"""What is read of a model's own forward: what goes into its head, and what happens to the logits behind it."""

import pytest
import torch
from transformers import Qwen3ForCausalLM

from opd_trl.models.forward import completion_hidden_states, read_head
from opd_trl.models.own_forward import run_to_head
from tests import tiny


IDS = torch.tensor([[5, 9, 17, 4, 30, 22]])


class Around(Qwen3ForCausalLM):
    """A family that nobody knows: it divides the hidden states, and does something to the logits."""

    def forward(self, *args, **kwargs):
        head = self.lm_head
        states = self.model(*args, **kwargs).last_hidden_state / 3.0
        outputs = type("Outputs", (), {})()
        outputs.logits = self.change(head(states))
        return outputs

    def change(self, logits):
        return 5.0 * torch.tanh(0.25 * logits / 5.0)


def build(**methods) -> Around:
    model = tiny.build_model(tie_word_embeddings=False).eval()
    model.__class__ = type("Around", (Around,), methods)
    return model


def test_scale_and_cap_are_read_from_what_the_model_does():
    head = read_head(build())
    assert (head.logit_scale, head.final_logit_softcapping) == (0.25, 5.0)
    plain = read_head(tiny.build_model())
    assert (plain.logit_scale, plain.final_logit_softcapping) == (1.0, None)


def test_the_states_are_those_that_go_into_the_head_and_the_head_is_put_back():
    model = build()
    head = model.lm_head
    states, _ = run_to_head(model, input_ids=IDS)
    assert model.lm_head is head
    torch.testing.assert_close(states, model.model(input_ids=IDS).last_hidden_state / 3.0)
    assert states.requires_grad


@pytest.mark.parametrize(
    "change",
    [
        lambda self, logits: logits * logits.abs(),
        lambda self, logits: logits + 1.0,
        lambda self, logits: logits + torch.linspace(0, 1, logits.size(-1)),  # a bias of its own per token
        lambda self, logits: logits.clamp(max=3.0),
    ],
)
def test_anything_else_that_happens_to_logits_is_refused(change):
    with pytest.raises(ValueError, match=r"qwen3 \(Around\) does more to its logits than to scale and to cap them"):
        read_head(build(change=change))


def test_a_scale_that_is_trained_is_refused_where_it_would_need_a_gradient():
    model = build(change=lambda self, logits: logits * self.model.norm.weight[0])
    with pytest.raises(ValueError, match="scales its logits by a weight that is trained"):
        run_to_head(model, input_ids=IDS)
    run_to_head(model.requires_grad_(False), input_ids=IDS)


def test_a_head_that_is_not_called_or_called_twice_is_refused():
    def twice(self, *args, **kwargs):
        return self.lm_head(self.lm_head(self.model(*args, **kwargs).last_hidden_state))

    def never(self, *args, **kwargs):
        return self.model(*args, **kwargs)

    for forward, match in ((never, "does not call its LM head"), (twice, "is not called once for all positions")):
        model = build(forward=forward)
        with pytest.raises(ValueError, match=match):
            run_to_head(model, input_ids=IDS)
        assert isinstance(model.lm_head, torch.nn.Linear)


def test_a_padded_row_has_the_states_that_it_has_alone():
    model = tiny.build_model().eval()
    long, short = IDS, IDS[:, :4]
    padded = torch.cat([torch.zeros(1, 2, dtype=torch.int64), short], dim=1)
    mask = torch.ones(2, 6, dtype=torch.int64)
    mask[1, :2] = 0
    with torch.no_grad():
        both, _ = completion_hidden_states(model, torch.cat([long, padded]), mask, 2, multimodal={})
        alone, _ = completion_hidden_states(model, short, torch.ones_like(short), 2, multimodal={})
    torch.testing.assert_close(both[1:], alone)
