"""Every family that can be built: loss and gradients against plain autograd over the model's own logits."""

import pytest
import torch
import transformers
from accelerate import PartialState
from packaging.version import Version
from peft import LoraConfig, get_peft_model

from opd_trl.losses.objective import Objective
from opd_trl.models.agreement import check_agreement
from opd_trl.models.forward import has_router_loss, read_head, vocabulary_rows
from opd_trl.teachers import shared_prefix
from opd_trl.teachers.base import teacher_pass
from opd_trl.teachers.scores import HiddenStates
from opd_trl.teachers.shared_prefix import SHARED, SharedPrefix
from opd_trl.trainers.passes import student_pass
from tests.families import zoo


# Two rows, a long and a short one: the short one is padded on the left of its prompt and on the right of its answer.
PROMPTS = [[15, 17, 30, 44, 9], [61, 72]]
ANSWERS = [[8, 90, 33, 12], [54, 21, 7]]
KINDS = ("dense", "experts", "recurrent", "text of models that read images")
WITH_ROUTER, READS_AHEAD = "with their router loss", "a row's logits depend on what stands behind it"
# Their models give no router loss with transformers 5.8 and 5.17, and give one with 5.23.
ROUTER_LOSS_CAME_LATER, PROVEN_WITH = ("granitemoe", "granitemoehybrid", "granitemoeshared"), Version("5.23")
HEAD = list(range(3, 23))
IDS = [5, 17, 30, 44, 9, 61, 72, 8]


def batch(head: list[int] | None = None) -> dict[str, torch.Tensor]:
    """The rows as a micro-batch of a trainer holds them; `head` stands before each prompt."""
    head = head or []
    width, length = max(map(len, PROMPTS)), max(map(len, ANSWERS))
    prompts = [[0] * (width - len(x)) + head + x for x in PROMPTS]
    answers = [x + [0] * (length - len(x)) for x in ANSWERS]
    inputs = {"prompt_ids": torch.tensor(prompts), "completion_ids": torch.tensor(answers)}
    inputs["prompt_mask"] = (inputs["prompt_ids"] != 0).long()
    inputs["completion_mask"] = inputs["loss_mask"] = (inputs["completion_ids"] != 0).long()
    return inputs


def as_trained(student, teacher, num_rows: int, *, router_loss: bool):
    """The full reverse KL, nats a token, and the router loss, as a trainer computes them."""
    inputs = batch()
    with torch.no_grad():
        scores = HiddenStates(None, teacher_pass(teacher, inputs), read_head(teacher))
    result = student_pass(
        student,
        inputs,
        {"": scores},
        objective=Objective(support="full", top_k=5),
        num_rows=num_rows,
        num_loss_tokens=inputs["loss_mask"].sum(),
        router_loss=router_loss,
        policy_temperature=None,
    )
    return result.loss, result.aux_loss


def by_own_logits(student, teacher) -> torch.Tensor:
    """The same from the logits that both models give for each row alone, without padding."""
    total = torch.zeros(())
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        ids = torch.tensor([prompt + answer])
        logits = [
            model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
            .logits[0, len(prompt) - 1 : -1]
            .log_softmax(-1)
            for model in (student, teacher)
        ]
        p, q = logits[0], logits[1].detach()
        total = total + (p.exp() * (p - q)).sum()
    return total / sum(map(len, ANSWERS))


@pytest.mark.parametrize("family", [family for kind in KINDS for family in zoo.named(f"| {kind}")])
def test_loss_and_gradients_are_those_of_the_models_own_logits(family, monkeypatch):
    """All weights trained, then LoRA with adapters that are not zero. The check at start lets the family pass."""
    PartialState()  # a line of the log asks it which process this is
    monkeypatch.setattr(shared_prefix, "FEWEST", 1)
    teacher, student = zoo.build(family, seed=1), zoo.build(family)
    num_rows = vocabulary_rows(teacher.config.get_text_config())
    has_experts = family in zoo.named(WITH_ROUTER)
    if family in ROUTER_LOSS_CAME_LATER and Version(transformers.__version__) < PROVEN_WITH:
        with pytest.raises(ValueError, match=r"has no router loss\. Set router_aux_loss_coef: 0"):
            check_agreement(teacher, IDS, num_rows, pad_id=0, router_loss=True)
        has_experts = False
    check_agreement(teacher, IDS, num_rows, pad_id=0, router_loss=has_experts)
    by_default = has_router_loss(teacher) and hasattr(teacher.config.get_text_config(), "router_aux_loss_coef")
    if family not in ROUTER_LOSS_CAME_LATER:
        assert has_router_loss(teacher) if has_experts else not by_default
    assert_equal_gradients(student, teacher, num_rows, router_loss=has_experts)
    assert_a_shared_text_is_read_once(teacher, from_a_cache=family not in zoo.named("read with each row"))
    student = get_peft_model(student, LoraConfig(r=2, target_modules=linear_layers(student))).eval()
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    assert_equal_gradients(student, teacher, num_rows, router_loss=has_experts)


def assert_a_shared_text_is_read_once(teacher, *, from_a_cache: bool) -> None:
    """The hidden states behind the cache of a text that both rows begin with are those of whole rows, twice."""
    inputs = batch(HEAD) | {SHARED: torch.tensor(len(HEAD))}
    kept, shared = inputs["completion_mask"].bool(), SharedPrefix()
    with torch.no_grad():
        whole = teacher_pass(teacher, inputs)[kept]
        for _ in range(2):  # the first time both are computed and compared
            torch.testing.assert_close(teacher_pass(teacher, inputs, shared=shared)[kept], whole, rtol=1e-4, atol=1e-5)
            assert bool(shared.packs or shared.works) is from_a_cache


def linear_layers(model) -> list[str]:
    """Names of the plain linear layers, without the head and what PEFT refuses in state-space models."""
    head = model.get_output_embeddings()
    kinds = ("Linear", "Conv1D", "FalconLinear")
    named = [name for name, x in model.named_modules() if type(x).__name__ in kinds and x is not head]
    return [name for name in named if "out_proj" not in name]


def assert_equal_gradients(student, teacher, num_rows: int, *, router_loss: bool) -> None:
    """The loss, and its gradient in every parameter that is trained."""
    loss, aux_loss = as_trained(student, teacher, num_rows, router_loss=router_loss)
    wanted = by_own_logits(student, teacher)
    assert wanted.item() > 1e-3
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-5)
    assert (aux_loss is not None and aux_loss.item() > 0) == router_loss
    trained = {name: x for name, x in student.named_parameters() if x.requires_grad}
    ours, own = (torch.autograd.grad(x, list(trained.values()), allow_unused=True) for x in (loss, wanted))
    scale = max(x.abs().max() for x in own if x is not None)
    assert scale > 0
    for name, x, y in zip(trained, ours, own, strict=True):
        x, y = (torch.zeros(()) if z is None else z for z in (x, y))
        assert (x - y).abs().max().item() <= 1e-3 * scale.item(), name


@pytest.mark.parametrize("family", zoo.named(READS_AHEAD))
def test_a_family_that_reads_ahead_is_refused_in_the_words_of_the_table(family):
    model = zoo.build(family)
    with pytest.raises(ValueError, match=READS_AHEAD):
        check_agreement(model, IDS, vocabulary_rows(model.config.get_text_config()), pad_id=0)


def test_the_table_has_many_families_of_each_kind():
    counts = {kind: len(zoo.named(f"| {kind}")) for kind in KINDS}
    assert all(count >= 4 for count in counts.values()), counts
    assert sum(counts.values()) >= 40
    assert len(zoo.named(READS_AHEAD)) == 2
