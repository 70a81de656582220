"""Does the loss read what the model says? Our logits against those of the model's own forward, once, at start."""

import torch
from torch import Tensor, nn

from ..losses.head import Head
from ..losses.next_token import NextToken
from .forward import causal_lm, completion_hidden_states, read_head
from .own_forward import REMEDY, logit_transform, name_of
from .sharding import whole_heads


#: Tokens of the longer one of the two rows that are compared.
PROBE_TOKENS = 8


@torch.no_grad()
def check_agreement(
    model: nn.Module, ids: list[int], num_rows: int, *, pad_id: int, router_loss: bool = False
) -> None:
    """Compare logits with the model's own, of one row, and of that row beside its padded beginning.

    Args:
        model: unwrapped, in evaluation mode; a sharded one inside the engine's forward.
        ids: a few tokens.
        num_rows: rows of the head that the loss compares.
        pad_id: what the shorter row is padded with; some families look for it.
        router_loss: will the loss ask for that of a mixture of experts?

    Raises:
        ValueError: the loss would read other numbers than the model computes.
    """
    plain = causal_lm(model)
    logit_transform(plain)
    row = torch.tensor([ids], device=plain.get_input_embeddings().weight.device)
    short = len(ids) // 2 + 1
    padding = torch.full_like(row[:, short:], pad_id)
    pair = torch.cat([row, torch.cat([padding, row[:, :short]], dim=1)])
    mask = torch.ones_like(pair)
    mask[1, : len(ids) - short] = 0
    states, _ = completion_hidden_states(model, pair, mask, short - 1, router_loss=router_loss, multimodal={})
    own, before_head = own_logits(plain, row)
    if own.size(-1) < num_rows:
        raise ValueError(
            f"{name_of(plain)} gives logits of {own.size(-1)} tokens and the loss would compare {num_rows} rows of "
            "its head: padded rows would count as tokens. Set vocab_size of its configuration to the smaller number."
        )
    head = read_head(model)
    with whole_heads(head.weight, head.bias):
        head = head.rows(own.size(-1))
        alone, beside, padded = (logits_of(x, head) for x in (before_head, *states))
    own, rounding = own.to(alone.device), tolerance(before_head, plain)
    compare(
        alone, own, rounding, f"{name_of(plain)}: the loss would read other logits than the model computes", REMEDY
    )
    compare(
        torch.cat([beside, padded]),
        torch.cat([own[-short:-1], own[: short - 1]]),
        rounding,
        f"{name_of(plain)}: a row's logits depend on what stands behind it, or on the rows beside it",
        "Only a causal model can learn from its own text or teach: BERT kinds need is_decoder in their configuration.",
    )


def own_logits(model: nn.Module, row: Tensor) -> tuple[Tensor, Tensor]:
    """Logits `(L, V)` of the model's own forward over one row, and what went into its head, `(L, H)`."""
    seen: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        outputs = model.forward(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False)
    finally:
        hook.remove()
    return outputs.logits[0].float(), seen[-1][0]


def logits_of(hidden_states: Tensor, head: Head) -> Tensor:
    """Logits `(n, V)` as the loss computes them."""
    return NextToken(hidden_states.to(head.weight.device), head).logits(slice(None))


def compare(ours: Tensor, own: Tensor, rounding: float, what: str, remedy: str) -> None:
    """Raise ValueError where logits differ by more than this share of the largest."""
    same = (ours == own) | (ours.isnan() & own.isnan())
    difference = (ours - own).abs().masked_fill(same, 0.0).max().item()
    largest = own.nan_to_num().abs().max().item()
    if not difference <= rounding * max(1.0, largest):
        raise ValueError(f"{what}, by up to {difference:.2g} where the largest is {largest:.2g}. {remedy}")


def tolerance(hidden_states: Tensor, model: nn.Module) -> float:
    """Differences up to this share of the largest logit are rounding: the root of the precision of the products.

    A GPU may round products in float32 to 10 bits (TF32); quantized products round rows together.
    """
    kind = hidden_states.device.type
    dtypes = {torch.float32, hidden_states.dtype, model.dtype}
    if torch.is_autocast_enabled(kind):
        dtypes.add(torch.get_autocast_dtype(kind))
    precisions = [torch.finfo(x).eps for x in dtypes]
    precisions += [2.0**-10] * (kind == "cuda") + [2.0**-6] * bool(getattr(model, "is_quantized", False))
    return max(precisions) ** 0.5


def check_head(model: nn.Module) -> None:
    """Refuse a head with parameters besides its weight and its bias, which the loss would ignore.

    An adapter that has not been trained yet changes no logit, so comparing them does not find it.

    Raises:
        ValueError: such a head.
    """
    ignored = ignored_parameters(model)
    if ignored:
        raise ValueError(
            f"an adapter on the LM head would be ignored ({ignored[0]}): the loss reads the head's weight directly. "
            "Take the head out of its targets (trainable_token_indices reach a head tied to the embeddings) or "
            "train it whole with modules_to_save=['lm_head']."
        )


def ignored_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters of the LM head that are neither its active weight nor its bias."""
    head = causal_lm(model).get_output_embeddings()
    read = {id(x) for x in (head.weight, getattr(head, "bias", None))}
    whole_heads = ("original_module.", "modules_to_save.")  # of PEFT's modules_to_save, one of which is active
    return [name for name, x in head.named_parameters() if id(x) not in read and not name.startswith(whole_heads)]


@torch.no_grad()
def fold_head(model: nn.Module) -> None:
    """Put a plain head in the place of a frozen one with an adapter: the same outputs from one weight and one bias."""
    if not ignored_parameters(model):
        return
    model = causal_lm(model)
    head = model.get_output_embeddings()
    weight = head.weight
    inputs = torch.eye(weight.size(1), dtype=model.dtype, device=weight.device)
    bias = head(torch.zeros_like(inputs[:1]))
    plain = nn.Linear(weight.size(1), weight.size(0), device=weight.device, dtype=model.dtype)
    plain.weight.copy_((head(inputs) - bias).T)
    plain.bias.copy_(bias[0])
    model.set_output_embeddings(plain.requires_grad_(False).eval())
