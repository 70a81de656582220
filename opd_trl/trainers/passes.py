"""The two forwards of a step: the teacher's over its own prompt, the student's with the loss in the same pass."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..diagnostics import TextKind
from ..losses import chunk_size_for
from ..losses.fused import distillation_loss
from ..losses.head import Head
from ..losses.mixture import LIVE_LOGITS, LossTeacher
from ..losses.next_token import NextToken
from ..losses.objective import Objective, Tokens
from ..losses.spans import merged, span_loss
from ..losses.token_weights import TOKEN_WEIGHTS, TokenWeight, weighted
from ..models.forward import (
    causal_lm,
    completion_hidden_states,
    read_head,
    scatter,
    token_log_probs,
    vocabulary_rows,
)
from ..models.multimodal import multimodal_inputs
from ..models.sequences import join
from ..models.sharding import whole_heads
from ..teachers.base import teacher_pass
from ..teachers.scores import Scores
from ..teachers.text_ids import ALONE, LEAST_ALIGNED, SPAN, whole_spans
from ..teachers.vocabulary import SharedIds
from .config.config_checks import say_once
from .config.opd_config import OPDConfig
from .generation.plans import kind_of


# Batch entries `(B, T)` with a value of each token, in the order of `Tokens`; where they are there.
TOKEN_ENTRIES = ("completion_ids", "sampling_logps", "reference_logps")
#: Student, teacher, tokens and objective -> loss and figures per token. `OPDTrainer.distillation_loss` is one; where
#: another loss is wanted, a subclass sets it.
DistillationLoss = Callable[[NextToken, LossTeacher, Tokens, Objective], tuple[Tensor, dict[str, Tensor]]]


class StudentPass(NamedTuple):
    """What one student forward gives: the distillation loss and what GRPO's own loss needs."""

    loss: Tensor
    stats: dict[str, dict[str, Tensor]]  # of each teacher
    aux_loss: Tensor | None
    per_token_logps: Tensor | None
    entropies: Tensor | None


def build_objective(args: OPDConfig, sampling_temperature: float, vocab_size: int, device: torch.device) -> Objective:
    """The options of the loss, which stay the same for a whole run."""
    budget = None if args.loss_memory_mib is None else args.loss_memory_mib * 2**20
    return Objective(
        top_k=args.loss_top_k,
        support=args.loss_support,
        divergence=args.divergence,
        beta=args.divergence_beta,
        tail=args.loss_tail,
        stop_gradient=args.stop_gradient,
        pointwise_clip=args.loss_pointwise_clip,
        baseline=args.loss_baseline,
        extrapolation=args.loss_extrapolation,
        importance_cap=args.loss_importance_cap,
        temperature=sampling_temperature if args.loss_temperature is None else args.loss_temperature,
        chunk_size=chunk_size_for(
            vocab_size, device, budget=budget, tensors=2 if args.teacher_mix is None else LIVE_LOGITS
        ),
    )


def build_token_weight(args: OPDConfig) -> TokenWeight | None:
    """The weight that `loss_position_weight` names, with its options; None where there is none."""
    options = {
        "iw_opd": {"gamma": args.loss_position_gamma},
        "trust_region": {"ratio": args.loss_trust_ratio, "outside": args.loss_trust_outside},
    }
    name = args.loss_position_weight
    return None if name is None else partial(TOKEN_WEIGHTS[name], **options[name])


def student_pass(
    student: nn.Module,
    inputs: dict[str, Any],
    scores: dict[str, Scores],
    *,
    objective: Objective,
    num_rows: int,
    excluded: Tensor | None = None,
    num_loss_tokens: Tensor,
    router_loss: bool,
    policy_temperature: float | None,
    distillation_loss: DistillationLoss = distillation_loss,
    token_weight: TokenWeight | None = None,
) -> StudentPass:
    """The student's one forward: distillation loss, statistics, and GRPO's log-probs.

    Runs inside the engine's forward of `student`, so that DDP, DeepSpeed and FSDP see every use of its parameters,
    the head's included. Only kept positions reach the head.

    Args:
        student: unwrapped.
        inputs: the micro-batch.
        scores: what each teacher says of it.
        objective: see `build_objective`.
        num_rows, excluded: rows of both heads that are compared, see `Head.rows`; GRPO's log-probs are over all.
        num_loss_tokens: what the sum over tokens is divided by.
        router_loss: also return the load-balancing loss of experts.
        policy_temperature: temperature of GRPO's log-probs; None where its loss is not active.
        distillation_loss: another loss in place of the one that `objective` names.
        token_weight: see `build_token_weight`.
    """
    completion_ids = inputs["completion_ids"]
    input_ids, attention_mask = join(
        inputs["prompt_ids"], inputs["prompt_mask"], completion_ids, inputs["completion_mask"]
    )
    hidden_states, aux_loss = completion_hidden_states(
        student,
        input_ids,
        attention_mask,
        completion_ids.size(1),
        router_loss=router_loss,
        multimodal=multimodal_inputs(inputs),
    )
    head, kept = read_head(student), inputs["loss_mask"].bool()
    # ZeRO-3 gathers all heads once for the whole pass; a self-teacher's is the student's own.
    teacher_tensors = (x for teacher in scores.values() for x in teacher.head_tensors)
    with whole_heads(head.weight, head.bias, *teacher_tensors):
        whole, losses, stats = head.rows(vocabulary_rows(causal_lm(student).config.get_text_config())), [], {}
        head = whole.rows(num_rows, excluded)
        for name, teacher in scores.items():
            at = teacher.select(kept)
            alone, states = teacher.compared(at, objective.support), teacher.select(hidden_states)
            both = NextToken(states[alone], head), teacher.at(alone, num_rows, excluded)
            tokens, factors = kept_tokens(inputs, teacher, alone, num_loss_tokens), {}
            if token_weight is not None:
                tokens, factors["token_weight"] = weighted(tokens, token_weight, *both, alone, objective)
            loss, stats[name] = distillation_loss(*both, tokens, objective)
            stats[name] |= factors
            losses.append(loss)
            if alone is not at:  # a teacher of another tokenizer
                spans = teacher.spans(at & ~alone)
                tokens = kept_tokens(inputs, teacher, at & ~alone, num_loss_tokens)
                loss, of_spans = span_loss(NextToken(states[at & ~alone], whole), tokens, *spans, objective)
                stats[name] = merged(stats[name], of_spans, alone[at])
                losses.append(loss)
        per_token_logps = entropies = None
        if policy_temperature is not None:
            per_token_logps, entropies = sampled_logps(
                hidden_states, whole, inputs, policy_temperature, objective.chunk_size
            )
    return StudentPass(torch.stack(losses).sum(), stats, aux_loss, per_token_logps, entropies)


def kept_tokens(inputs: dict[str, Any], teacher: Scores, at: Tensor, num_loss_tokens: Tensor | float) -> Tokens:
    """The N tokens of a batch that a teacher answers for and the loss is taken on.

    Args:
        inputs: the micro-batch.
        teacher: its scores, which know its rows.
        at: `(b, T)` bool: the kept positions of these rows.
        num_loss_tokens: what the sum over tokens is divided by.
    """
    values = [teacher.select(inputs[name])[at] if name in inputs else None for name in TOKEN_ENTRIES]
    is_given = kind_of(inputs) is TextKind.GIVEN
    student_wrote = torch.zeros_like(values[0], dtype=torch.bool) if is_given else None
    return Tokens(torch.ones_like(values[0], dtype=torch.float32) / num_loss_tokens, *values, student_wrote)


def logps_pass(
    model: nn.Module, inputs: dict[str, Any], shared_ids: SharedIds, objective: Objective, **reading: Any
) -> Tensor:
    """Log-probabilities `(b, T)` of the completions at the objective's temperature, inside the engine's forward.

    `reading` are options of `teacher_pass`.
    """
    hidden_states, head = teacher_pass(model, inputs, **reading), read_head(model)
    with whole_heads(head.weight, head.bias):
        logps, _ = sampled_logps(
            hidden_states, head.rows(*shared_ids.rows), inputs, objective.temperature, objective.chunk_size
        )
    return logps


def all_logps_pass(
    model: nn.Module, inputs: dict[str, Any], num_rows: int, temperature: float, chunk_size: int | None
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of every next token and entropies, both `(b, L - 1)`, zero where it is not `scored`."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    hidden_states, _ = completion_hidden_states(
        model, ids, mask, ids.size(1) - 1, multimodal=multimodal_inputs(inputs)
    )
    head, answer = read_head(model), {"completion_ids": ids[:, 1:], "completion_mask": inputs["scored"]}
    with whole_heads(head.weight, head.bias):
        return sampled_logps(hidden_states, head.rows(num_rows), answer, temperature, chunk_size)


def sampled_logps(
    hidden_states: Tensor, head: Head, inputs: dict[str, Any], temperature: float, chunk_size: int | None
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the completion tokens and entropies, both `(b, T)`, zero behind their end."""
    scored = inputs["completion_mask"].bool()
    log_probs, entropy = token_log_probs(
        hidden_states[scored],
        head,
        inputs["completion_ids"][scored],
        temperature=temperature,
        chunk_size=chunk_size,
    )
    return scatter(log_probs, scored), scatter(entropy, scored)


def loss_mask(args: OPDConfig, batch: dict[str, Any], tokenizer) -> Tensor:
    """`(B, T)`, 1 where a token counts: written by the student, neither among the first ones nor skipped by name.

    Args:
        args: `num_loss_tokens_to_skip`, `loss_skip_first`.
        batch: `completion_ids`, `completion_mask`, and `tool_mask` where tools wrote a part.
        tokenizer: of the student.
    """
    mask = batch["completion_mask"] * batch.get("tool_mask", 1)
    mask[:, : args.num_loss_tokens_to_skip] = 0
    for text in args.loss_skip_first or []:
        for token in tokenizer.encode(text, add_special_tokens=False):
            mask = mask * ~first_place(batch["completion_ids"] == token)
    return mask


def understood(trainer, batch: dict[str, Any], mask: Tensor) -> Tensor | int:
    """`(B, T)` bool: tokens that the teacher knows, behind a text of which it knows every token; 1 for all.

    What stands behind a token that it does not know, the teacher would read as the end of another text. Of another
    tokenizer: tokens of spans that count whole. The log has the share of tokens that are left out.

    Args:
        trainer: whose teacher it is.
        batch: the generation batch.
        mask: `(B, T)`, 1 where a token counts otherwise.

    Raises:
        ValueError: it understands no prompt of the whole batch.
    """
    shared = trainer.shared_ids
    if SPAN in batch:
        return in_spans(trainer, batch, mask)
    if shared.is_whole:
        return 1
    name, mask = "teacher_prompt" if "teacher_prompt_ids" in batch else "prompt", batch["completion_mask"].bool()
    unknown = ~shared.knows(batch[f"{name}_ids"]) & batch[f"{name}_mask"].bool()
    knows_prompt = ~unknown.any(-1, keepdim=True)
    known = (shared.knows(batch["completion_ids"]) | ~mask).cumprod(-1).bool() & knows_prompt
    counts = torch.stack([(~known & mask).sum(), mask.sum(), knows_prompt.sum()])
    left_out, tokens, prompts = trainer.accelerator.reduce(counts, reduction="sum").tolist()
    if not prompts:
        token = trainer.tokenizer.convert_ids_to_tokens(batch[f"{name}_ids"][unknown].tolist()[0])
        raise ValueError(
            f"the teacher knows no prompt of this batch whole: it does not know {token!r}, for one. Give the student "
            "a chat template of tokens that the teacher knows, or choose a teacher that knows the template's."
        )
    trainer.running_metrics["distillation/unknown_to_teacher"].append(left_out / max(1, tokens))
    return known


def in_spans(trainer, batch: dict[str, Any], mask: Tensor) -> Tensor:
    """`understood` for a teacher of another tokenizer; the log also has the share of tokens in longer spans."""
    written, found = batch["completion_mask"].bool(), whole_spans(batch[SPAN], mask)
    unread = written & (batch[SPAN] < 0)
    counts = torch.stack([unread.sum(), (found & ~batch[ALONE]).sum(), written.sum()])
    left_out, longer, tokens = trainer.accelerator.reduce(counts, reduction="sum").tolist()
    if left_out > (1 - LEAST_ALIGNED) * tokens:
        say_once(
            "More than half of what the student writes has no loss: the teacher's tokenizer changes it, or does not "
            "know it (distillation/unknown_to_teacher). A student can escape into such text. Choose another teacher."
        )
    trainer.running_metrics["distillation/unknown_to_teacher"].append(left_out / max(1, tokens))
    trainer.running_metrics["distillation/in_longer_spans"].append(longer / max(1, tokens))
    return found


def first_place(found: Tensor) -> Tensor:
    """Keep the first True of each row of a `(B, T)` mask.

    >>> import torch
    >>> first_place(torch.tensor([[False, True, True], [False, False, False]])).tolist()
    [[False, True, False], [False, False, False]]
    """
    return found & (found.cumsum(-1) == 1)
