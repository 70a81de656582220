"""From token sequences to the numbers of one causal language model; no HTTP."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from ..losses.head import Head
from ..losses.next_token import NextToken
from ..models.agreement import fold_head
from ..models.forward import read_head, vocabulary_rows, window_of
from ..models.lora_folders import base_of, load_causal_lm, tokenizer_of_path
from .answers import PromptScores, safetensors
from .rows import RowReader


class NonFiniteScores(ValueError):
    """A sequence whose scores are not all finite; `index` is its place among the sequences that were given."""

    def __init__(self, index: int):
        super().__init__(f"the scores of sequence {index} hold NaN or infinity")
        self.index = index


@dataclass(frozen=True)
class Scorer:
    """A frozen model in evaluation mode and its tokenizer; `max_length` is the longest sequence in tokens."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    max_length: int

    @property
    def head(self) -> Head:
        """The LM head of the model: weight `(V, H)`, bias and conventions, without rows that are no token's."""
        head = read_head(self.model)
        return head.rows(min(head.weight.size(0), vocabulary_rows(self.model.config.get_text_config())))

    @property
    def num_ids(self) -> int:
        """Rows of the head: the ids that a sequence may hold."""
        return self.head.weight.size(0)

    @cached_property
    def rows(self) -> RowReader:
        """What reads sequences, and remembers what they begin with: by one thread at a time."""
        return RowReader(self.model)

    def hidden_states(self, sequences: Sequence[Sequence[int]], num_scored: Sequence[int]) -> list[Tensor]:
        """Hidden states `(n, H)` as `RowReader.hidden_states` explains, where the head lies."""
        device = self.head.weight.device
        return [x.to(device) for x in self.rows.hidden_states(sequences, num_scored)]

    @torch.no_grad()
    def prompt_scores(
        self,
        hidden_states: Sequence[Tensor],
        sequences: Sequence[Sequence[int]],
        *,
        top_k: int,
        requested: Sequence[tuple[Sequence[int], array]] | None = None,
        temperature: float = 1.0,
    ) -> list[PromptScores]:
        """Log-probabilities of each token of each sequence given those before it, and of others in its place.

        Args:
            hidden_states: `(W - 1, H)` for each sequence of W tokens, those that predict all but its first.
            sequences: token ids.
            top_k: K, the most probable ids to add; 0 for none.
            requested: ids to add: per sequence how many at each position, none at the first, and all of them in order.
            temperature: divides the logits.

        Returns:
            per sequence of W tokens the scores of its positions 1 to W - 1: log-probs in nats over the whole
            vocabulary; ranks from 1, the most probable, to K, and K + 1 for all beyond.

        Raises:
            NonFiniteScores: some are NaN or infinite.
        """
        lengths = [len(ids) - 1 for ids in sequences]
        states = torch.cat(list(hidden_states))
        actual = torch.cat([torch.tensor(ids[1:], dtype=torch.int64) for ids in sequences])
        wanted = actual.unsqueeze(-1) if requested is None else beside(actual, requested)
        scores = self.rows_scores(states, wanted.to(states.device), top_k, temperature)
        per_sequence = [PromptScores(*parts) for parts in zip(*(x.cpu().split(lengths) for x in scores), strict=True)]
        check_finite([scores.log_probs for scores in per_sequence])
        return per_sequence

    def rows_scores(self, hidden_states: Tensor, wanted: Tensor, top_k: int, temperature: float) -> PromptScores:
        """Score `wanted` `(N, M)` and, where `top_k` is not 0, the K most probable ids after them."""
        model = NextToken(hidden_states, self.head)
        if top_k == 0:
            log_probs, _, _ = model.log_probs(ids=wanted, temperature=temperature)
            return PromptScores(wanted, log_probs, torch.ones_like(wanted))
        top_log_probs, top_ids, _ = model.log_probs(top_k=top_k, temperature=temperature)
        at, among = find(wanted, top_ids)
        log_probs = top_log_probs.gather(-1, at)
        # Only rows with an id beyond the K most probable go through the head once more.
        rows = ~among.all(-1)
        if rows.any():
            log_probs[rows], _, _ = model.select(rows).log_probs(ids=wanted[rows], temperature=temperature)
        ranks = torch.where(among, at + 1, top_k + 1)
        top_ranks = torch.arange(1, top_k + 1, device=ranks.device).expand_as(top_ids)
        pairs = ((wanted, top_ids), (log_probs, top_log_probs), (ranks, top_ranks))
        return PromptScores(*(torch.cat(pair, dim=-1) for pair in pairs))

    def head_file(self, metadata: dict[str, str]) -> tuple[int, Iterator[memoryview]]:
        """The head as safetensors in pieces: `weight` `(V, H)`, `bias` `(V,)` if there is one, and its conventions."""
        head = self.head
        cap = head.final_logit_softcapping
        conventions = {
            "logit_scale": str(float(head.logit_scale)),
            "final_logit_softcapping": "" if cap is None else str(float(cap)),
        }
        tensors = {"weight": head.weight, "bias": head.bias}
        return safetensors({name: [x] for name, x in tensors.items() if x is not None}, metadata | conventions)


def find(ids: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Where each of `ids` `(N, M)` is in the same row of `among` `(N, K)`, and whether it is there.

    Example:
        >>> at, found = find(torch.tensor([[7, 5]]), torch.tensor([[9, 7]]))
        >>> at[0, 0].item(), found.tolist()
        (1, [[True, False]])
    """
    ordered, order = among.sort(-1)
    place = torch.searchsorted(ordered, ids).clamp(max=among.size(-1) - 1)
    return order.gather(-1, place), ordered.gather(-1, place) == ids


def beside(actual: Tensor, requested: Sequence[tuple[Sequence[int], array]]) -> Tensor:
    """Each actual token `(N,)`, then the ids requested at its position, filled up with the token, `(N, 1 + M)`.

    Example:
        >>> beside(torch.tensor([7, 8]), [([0, 2, 1], array("i", [1, 2, 3]))]).tolist()
        [[7, 1, 2], [8, 3, 8]]
    """
    counts = torch.cat([torch.tensor(counts[1:], dtype=torch.int64) for counts, _ in requested])
    ids = torch.cat([torch.tensor(ids, dtype=torch.int64) for _, ids in requested])
    width = int(counts.max()) if len(counts) else 0
    wanted = actual.unsqueeze(-1).repeat(1, 1 + width)
    wanted[:, 1:][torch.arange(width) < counts.unsqueeze(-1)] = ids
    return wanted


def check_finite(parts: Sequence[Tensor]) -> None:
    """Raise NonFiniteScores for the first part that holds NaN or infinity."""
    for index, part in enumerate(parts):
        if not part.isfinite().all():
            raise NonFiniteScores(index)


def load_scorer(
    name: str,
    *,
    device: str,
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    max_length: int | None = None,
    model_init_kwargs: dict[str, Any] | None = None,
) -> Scorer:
    """Load a model, a path (of an adapter too) or hub id, and its tokenizer as an in-process teacher is loaded.

    `device` is that of the whole model, `auto` spreads it over all GPUs; `dtype` `auto` is that of the checkpoint;
    `max_length`, the longest sequence, is the context window by default; `model_init_kwargs` of `from_pretrained` win
    over all. Raises ValueError where `max_length` does not fit the context window, or the GPUs have no room for the
    head.
    """
    where = {"trust_remote_code": trust_remote_code} | ({"revision": revision} if revision else {})
    options = {"dtype": dtype, "device_map": device} | (model_init_kwargs or {})
    config = AutoConfig.from_pretrained(base_of(name), **where | (model_init_kwargs or {}))
    window = window_of(config)
    if max_length is None and window is None:
        raise ValueError(f"{name} does not say how long its context window is. Give --max-length.")
    if max_length is not None and window is not None and max_length > window:
        raise ValueError(
            f"--max-length {max_length} exceeds the context window of {window} tokens. Give at most {window}."
        )
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of_path(name), **where)
    model = load_causal_lm(name, **where | options).requires_grad_(False).eval()
    fold_head(model)
    scorer = Scorer(model, tokenizer, max_length or window)
    if scorer.head.weight.is_meta:
        raise ValueError("the GPUs are too small for the model: its head was offloaded. Quantize it, or add GPUs.")
    return scorer
