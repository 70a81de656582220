"""The scores of a generation batch from a teacher behind HTTP."""

from typing import Any

import torch
from torch import Tensor

from ..losses.head import Head
from ..models.sequences import join
from .base import Host, Teacher
from .scores import HIDDEN, LOG_PROBS, HiddenStates, LogProbs, Scores, check_no_images, select
from .server import TeacherServer
from .vocabulary import SharedIds


class ServedTeacher(Teacher):
    """A teacher whose scores come from a server, always ahead of the micro-batches.

    Args:
        server: checked by `connect`.
        head: its LM head, where it sends hidden states; None where it sends log-probabilities.
        shared_ids: which ids of the student it knows.
        top_k: log-probabilities asked for at each token.
        rows_per_request: completions in a request.
    """

    can_write = False
    is_elsewhere = True

    def __init__(
        self, server: TeacherServer, head: Head | None, shared_ids: SharedIds, *, top_k: int, rows_per_request: int
    ):
        self.server, self.head, self.shared_ids = server, head, shared_ids
        self.gives_hidden_states = head is not None
        self.top_k, self.rows_per_request = min(top_k, shared_ids.num_rows), rows_per_request
        if server.most_sequences is not None:
            self.rows_per_request = min(rows_per_request, server.most_sequences)
        # Less the token that a completions endpoint must have room for.
        self.window = None if server.max_length is None else server.max_length - 1

    def check_placement(self, host: Host) -> None:
        """Nothing of it is placed here."""

    def prepare(self, host: Host) -> None:
        """Nothing is left to do: `connect` has asked for rows and window."""

    def source(self, host: Host) -> str:
        return self.server.url

    def scores_ahead(self, host: Host) -> bool:
        return True

    def read_ahead(self, host: Host, batch: dict[str, Any], rows: Tensor | None) -> Scores:
        take = Scores(rows).select
        if self.head is None:
            return LogProbs(rows, *(take(batch[name]) for name in LOG_PROBS))
        return HiddenStates(rows, take(batch[HIDDEN]), self.head)

    def score_ahead(self, host: Host, batch: dict[str, Any], rows: Tensor | None) -> dict[str, Tensor]:
        part = select(batch, rows)
        check_no_images(part, "a served teacher")
        return self.ask(part, step=host.state.global_step)

    def ask(self, batch: dict[str, Tensor], *, step: int) -> dict[str, Tensor]:
        """Scores of each completion, zero where it has ended: entries of the batch for `read_ahead`.

        Args:
            batch: `prompt_ids`, `completion_ids` and their masks, and `teacher_prompt_*` where the teacher reads
                another prompt.
            step: named in errors.
        """
        sequences, num_scored = token_lists(batch)
        scored = [row for row, count in enumerate(num_scored) if count]
        requests = [scored[i : i + self.rows_per_request] for i in range(0, len(scored), self.rows_per_request)]

        def send(rows: list[int]) -> list[Any]:
            what = f"step {step}, rows {rows[0]} to {rows[-1]} of the batch"
            asked = [sequences[row] for row in rows], [num_scored[row] for row in rows]
            if self.head is not None:
                dtype, width = self.head.weight.dtype, self.head.weight.size(1)
                return self.server.hidden_states(*asked, hidden_size=width, dtype=dtype, what=what)
            return self.server.log_probs(*asked, top_k=self.top_k, vocab_size=self.shared_ids.num_rows, what=what)

        answers = [answer for part in self.server.transport.map(send, requests) for answer in part]
        mask = batch["completion_mask"].bool()
        if self.head is not None:
            nothing = self.head.weight.new_zeros(0, self.head.weight.size(1))
            return {HIDDEN: lay_out(answers, mask, nothing)}
        nothing = torch.zeros(0, self.top_k)
        found = (
            lay_out([answer.ids for answer in answers], mask, nothing.long()),
            lay_out([answer.log_probs for answer in answers], mask, nothing),
            lay_out([answer.sampled_log_probs for answer in answers], mask, nothing[:, 0]),
        )
        return dict(zip(LOG_PROBS, found, strict=True))


def token_lists(batch: dict[str, Tensor]) -> tuple[list[list[int]], list[int]]:
    """Each row's tokens without padding, and how many of them are its completion."""
    prefix = "teacher_" if "teacher_prompt_ids" in batch else ""
    ids, mask = join(
        batch[f"{prefix}prompt_ids"],
        batch[f"{prefix}prompt_mask"],
        batch["completion_ids"],
        batch["completion_mask"],
    )
    sequences = [row[kept].tolist() for row, kept in zip(ids, mask.bool(), strict=True)]
    return sequences, batch["completion_mask"].sum(-1).tolist()


def lay_out(values: list[Tensor], mask: Tensor, nothing: Tensor) -> Tensor:
    """Lay rows `(n_i, ...)` out as `(B, T, ...)`: row by row at the True positions of `mask`, zero elsewhere.

    `nothing` `(0, ...)` gives shape and dtype where there is no row.
    """
    flat = torch.cat(values or [nothing]).to(mask.device)
    out = flat.new_zeros(*mask.shape, *flat.shape[1:])
    out[mask] = flat
    return out
