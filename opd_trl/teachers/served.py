"""A teacher behind HTTP: what is asked of its server before training, and its scores of a generation batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import torch
from accelerate.logging import get_logger
from torch import Tensor, nn
from transformers import AutoTokenizer

from ..losses.chunked import KnownSupport
from ..losses.head import Head
from ..models.forward import completion_hidden_states, read_head, token_log_probs
from ..models.lora_folders import tokenizer_of_path
from ..models.sequences import join
from .base import Host, Teacher
from .scores import HIDDEN, LOG_PROBS, HiddenStates, LogProbs, Scores, select
from .server import PROBE_TEXT, SAME_MODEL, TeacherServer
from .transport import TeacherServerError
from .vocabulary import SharedIds, TeacherVocabulary, check_same_vocabulary, compare_vocabularies, find_shared


logger = get_logger(__name__)

#: Tokens of the sequence that asks a server at start what it serves.
PROBE_LENGTH = 64


@dataclass(frozen=True)
class LossNeeds:
    """What a loss asks of a teacher that is not in this process: fields of `OPDConfig` without their prefix."""

    support: str
    top_k: int
    baseline: str | None
    temperature: float


@dataclass(frozen=True)
class LocalCopy:
    """The same model on this machine, to compare a server with.

    Attributes:
        path: folder or hub id.
        trust_remote_code: run the code that comes with it.
        load: the whole model, in evaluation mode.
    """

    path: str
    trust_remote_code: bool
    load: Callable[[str], nn.Module]


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

    def __init__(
        self, server: TeacherServer, head: Head | None, shared_ids: SharedIds, *, top_k: int, rows_per_request: int
    ):
        self.server, self.head, self.shared_ids = server, head, shared_ids
        self.gives_hidden_states = head is not None
        self.top_k, self.rows_per_request = min(top_k, shared_ids.num_rows), rows_per_request
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
        return self.ask(select(batch, rows), step=host.state.global_step)

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
                return self.server.hidden_states(*asked, hidden_size=self.head.weight.size(1), what=what)
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


def connect(
    server: TeacherServer,
    *,
    needs: LossNeeds,
    tokenizer,
    student_rows: int,
    rows_per_request: int,
    device: torch.device,
    local_copy: LocalCopy | None,
    compares: bool,
    vocabulary: TeacherVocabulary = "auto",
) -> ServedTeacher:
    """Ask a server all that would fail or mislead later.

    Args:
        server: its address and the limits of the connection.
        needs: what the loss asks of it.
        tokenizer: the student's.
        student_rows: rows of the student's head.
        rows_per_request: completions in a request.
        device: of the student, where its LM head will lie.
        local_copy: the same model here, or None.
        compares: does this process compare the server with the local copy? One of a job is enough.
        vocabulary: which one it may have.

    Raises:
        TeacherServerError: not reached, or its answers cannot be used.
        ValueError: a loss that this kind of server cannot serve, another vocabulary, another model than `local_copy`.
    """
    if not server.is_ours:
        check_loss_is_served(server, needs, vocabulary)
        check_tokenizer(server, tokenizer, local_copy)
    vocab = tokenizer.get_vocab()
    head, shared_ids = None, SharedIds(student_rows)
    if server.is_ours:
        theirs = server.vocabulary()
        if vocab != theirs:
            find_shared(vocab, theirs, vocabulary)  # before a head is loaded
        head = server.head(num_rows=max(student_rows, len(vocab))).to(device)
        rows = student_rows, head.weight.size(0)
        shared_ids = compare_vocabularies(vocab, theirs, *rows, choice=vocabulary, student_end=tokenizer.eos_token)
    num_rows = shared_ids.num_rows
    probe = probe_ids(tokenizer, num_rows)[: (server.max_length or PROBE_LENGTH + 1) - 1]
    top_k = 1 if server.is_ours else min(needs.top_k, num_rows)
    log_probs = server.probe(probe, top_k=top_k, vocab_size=num_rows if head is None else head.weight.size(0))
    if head is not None:
        (hidden_states,) = server.hidden_states(
            [probe], [len(probe) - 1], hidden_size=head.weight.size(1), what="the probe at start"
        )
        compare(log_probs, log_probs_of(hidden_states, head, probe), f"{server.url}: its LM head on its hidden states")
    logger.info(
        f"teacher server {server.url}: {server.model}, "
        f"{'hidden states' if server.is_ours else f'{top_k} log-probabilities a token'}, at most {server.max_length} "
        f"tokens; {log_probs.mean():.3f} nats a token on a probe of {len(probe)}."
    )
    if local_copy is not None and compares:
        here = local_log_probs(local_copy.load(local_copy.path).to(device), probe)
        compare(log_probs, here, f"{server.url}: the local copy {local_copy.path}")
    return ServedTeacher(server, head, shared_ids, top_k=needs.top_k, rows_per_request=rows_per_request)


def check_loss_is_served(server: TeacherServer, needs: LossNeeds, vocabulary: TeacherVocabulary) -> None:
    """Refuse what TopK log-probabilities at temperature 1 are not enough for."""
    ours = "Serve the teacher with `opd-trl serve-teacher` instead, which can."
    if vocabulary == "shared":
        raise ValueError(
            f"teacher_vocabulary='shared' with the teacher server {server.url}: a completions endpoint normalises "
            f"over its whole vocabulary and does not say how much of that is shared. {ours}"
        )
    if needs.support not in get_args(KnownSupport):
        raise ValueError(
            f"loss_support={needs.support!r} with the teacher server {server.url}: a completions endpoint cannot "
            f"score ids that are chosen per position, only its own TopK and the sampled token. Use loss_support "
            f"{', '.join(get_args(KnownSupport))}. {ours}"
        )
    if needs.baseline is not None:
        raise ValueError(
            f"loss_baseline={needs.baseline!r} with the teacher server {server.url}: the baseline needs the "
            f"teacher on the student's ids, which a completions endpoint cannot score. Leave it out. {ours}"
        )
    if needs.temperature != 1.0:
        raise ValueError(
            f"a loss at temperature {needs.temperature} with the teacher server {server.url}: the log-probabilities "
            f"of prompts that it sends are at temperature 1 whatever one asks for. Set loss_temperature: 1.0. {ours}"
        )


def check_tokenizer(server: TeacherServer, tokenizer, local_copy: LocalCopy | None) -> None:
    """Compare the vocabularies of a completions endpoint: whole where a local copy gives it, else a text's tokens."""
    if local_copy is not None:
        path = tokenizer_of_path(local_copy.path)
        other = AutoTokenizer.from_pretrained(path, trust_remote_code=local_copy.trust_remote_code)
        remedy = "Serve it with `opd-trl serve-teacher`, which can compare those alone"
        check_same_vocabulary(tokenizer.get_vocab(), other.get_vocab(), remedy=remedy)
    found = server.tokenize(PROBE_TEXT)
    expected = tokenizer(PROBE_TEXT, add_special_tokens=False)["input_ids"]
    if found is None and local_copy is None:
        logger.warning(
            f"teacher server {server.url} has no /tokenize, so its tokenizer could not be compared with the student's."
            " Give a local copy of the teacher (teacher_model_name_or_path) to compare them."
        )
    elif found is not None and found != expected:
        at = next((i for i, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), None)
        place = "in length" if at is None else f"from token {at} on ({found[at]} there, {expected[at]} here)"
        raise ValueError(
            f"the tokenizer of the teacher server {server.url} ({server.model}) is not the student's: a test text of "
            f"{len(expected)} tokens differs {place}. Serve a teacher of the student's tokenizer family."
        )


def probe_ids(tokenizer, num_rows: int) -> list[int]:
    """A test sequence: a text, or ids all over the vocabulary for a tokenizer that hardly knows text."""
    ids = [i for i in tokenizer(PROBE_TEXT, add_special_tokens=False)["input_ids"] if i < num_rows][:PROBE_LENGTH]
    known = sorted({i for i in tokenizer.get_vocab().values() if i < num_rows})
    if len(ids) < PROBE_LENGTH // 4:
        return [known[i * len(known) // PROBE_LENGTH] for i in range(PROBE_LENGTH)]
    return ids


def log_probs_of(hidden_states: Tensor, head: Head, sequence: list[int]) -> Tensor:
    """Log-probabilities `(n - 1,)` of a sequence's tokens from hidden states `(n - 1, H)`."""
    device = head.weight.device
    log_probs, _ = token_log_probs(hidden_states.to(device), head, torch.tensor(sequence[1:], device=device))
    return log_probs.cpu()


@torch.no_grad()
def local_log_probs(model: nn.Module, sequence: list[int]) -> Tensor:
    """What a model on this machine says of a sequence."""
    ids = torch.tensor([sequence], device=model.device)
    hidden_states, _ = completion_hidden_states(model, ids, torch.ones_like(ids), len(sequence) - 1, multimodal={})
    return log_probs_of(hidden_states[0], read_head(model), sequence)


def compare(served: Tensor, here: Tensor, what: str) -> None:
    """Log how far two models are apart in nats a token; raise TeacherServerError where they cannot be one model."""
    difference = (served - here).abs()
    figures = f"mean {difference.mean():.2g}, largest {difference.max():.2g} nats over {len(served)} tokens"
    if not difference.mean() <= SAME_MODEL:
        raise TeacherServerError(
            f"parity with the teacher server {what}: {figures}. That is another model (16-bit noise stays below "
            f"{SAME_MODEL}). Serve the model that is meant, or correct teacher_model_name_or_path."
        )
    logger.info(f"parity with the teacher server {what}: {figures}.")
