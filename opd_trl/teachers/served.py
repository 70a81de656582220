"""A teacher behind HTTP: what is asked of its server before training, and its scores of a generation batch."""

import os
from typing import Any, get_args

import torch
from accelerate.logging import get_logger
from torch import Tensor
from transformers import AutoTokenizer
from trl.trainer.utils import create_model_from_path

from ..losses.chunked import KnownSupport
from ..models.forward import Head, completion_hidden_states, read_head, token_log_probs
from ..models.loading import plain_models
from ..privileged import join
from ..trainers.opd_config import OPDConfig
from . import PROBE_TEXT, SAME_MODEL, TeacherServer, TeacherServerError, check_same_vocabulary, shared_rows


logger = get_logger(__name__)

KEY_VARIABLE = "OPD_TRL_API_KEY"
#: Tokens of the sequence that asks a server at start what it serves.
PROBE_LENGTH = 64
# Batch entries with the scores of a teacher that scores ahead: its hidden states, or log-probabilities of a server.
HIDDEN = "teacher_hidden_states"
LOG_PROBS = ("teacher_ids", "teacher_log_probs", "teacher_sampled_log_probs")


class ServedTeacher:
    """A teacher whose scores come from a server.

    Args:
        server: checked by `connect`.
        head: its LM head, where it sends hidden states; None where it sends log-probabilities.
        num_rows: rows of both heads that are compared.
        args: `loss_top_k`, and how many completions go into a request.
    """

    model = None
    moves = False

    def __init__(self, server: TeacherServer, head: Head | None, num_rows: int, args: OPDConfig):
        self.server, self.head, self.num_rows = server, head, num_rows
        self.top_k = min(args.loss_top_k, num_rows)
        self.rows_per_request = args.teacher_batch_size or args.per_device_train_batch_size

    @property
    def window(self) -> int | None:
        """Longest prompt and completion together, less the token that a completions endpoint must have room for."""
        return None if self.server.max_length is None else self.server.max_length - 1

    def score(self, batch: dict[str, Tensor], *, step: int) -> dict[str, Tensor]:
        """Scores of each completion, zero where it has ended: entries of the batch for `scoring.read_ahead`.

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
            return self.server.log_probs(*asked, top_k=self.top_k, vocab_size=self.num_rows, what=what)

        answers = [answer for part in self.server.transport.map(send, requests) for answer in part]
        mask = batch["completion_mask"].bool()
        if self.head is not None:
            nothing = self.head.weight.new_zeros(0, self.head.weight.size(1))
            return {HIDDEN: spread(answers, mask, nothing)}
        nothing = torch.zeros(0, self.top_k)
        found = (
            spread([answer.ids for answer in answers], mask, nothing.long()),
            spread([answer.log_probs for answer in answers], mask, nothing),
            spread([answer.sampled_log_probs for answer in answers], mask, nothing[:, 0]),
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


def spread(values: list[Tensor], mask: Tensor, nothing: Tensor) -> Tensor:
    """Lay rows `(n_i, ...)` out as `(B, T, ...)`: row by row at the True positions of `mask`, zero elsewhere.

    `nothing` `(0, ...)` gives shape and dtype where there is no row.
    """
    flat = torch.cat(values or [nothing]).to(mask.device)
    out = flat.new_zeros(*mask.shape, *flat.shape[1:])
    out[mask] = flat
    return out


def connect(url: str, args: OPDConfig, *, tokenizer, student_rows: int, local_copy: str | None) -> ServedTeacher:
    """Ask a server all that would fail or mislead later.

    Args:
        url: its root.
        args: what the loss needs; limits of the connection.
        tokenizer: the student's.
        student_rows: rows of the student's head.
        local_copy: path of the same model here, to compare with.

    Raises:
        TeacherServerError: not reached, or its answers cannot be used.
        ValueError: a loss that this kind of server cannot serve, another vocabulary, another model than `local_copy`.
    """
    server = TeacherServer(
        url,
        api_key=os.environ.get(KEY_VARIABLE),
        timeout=args.teacher_server_timeout,
        retries=args.teacher_server_retries,
        concurrency=args.teacher_server_concurrency,
    )
    if not server.is_ours:
        check_loss_is_served(server, args)
    vocab = tokenizer.get_vocab()
    check_tokenizer(server, tokenizer, local_copy, args)
    head, num_rows = None, student_rows
    if server.is_ours:
        head = served_head(server, args.device)
        num_rows = shared_rows(student_rows, head.weight.size(0), vocab)
    probe = probe_ids(tokenizer, num_rows)[: (server.max_length or PROBE_LENGTH + 1) - 1]
    top_k = 1 if server.is_ours else min(args.loss_top_k, num_rows)
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
    if local_copy is not None and args.distributed_state.is_main_process:
        compare(log_probs, local_log_probs(local_copy, probe, args), f"{server.url}: the local copy {local_copy}")
    return ServedTeacher(server, head, num_rows, args)


def check_loss_is_served(server: TeacherServer, args: OPDConfig) -> None:
    """Refuse what TopK log-probabilities at temperature 1 are not enough for."""
    ours = "Serve the teacher with `opd-trl serve-teacher` instead, which can."
    if args.loss_support not in get_args(KnownSupport):
        raise ValueError(
            f"loss_support={args.loss_support!r} with the teacher server {server.url}: a completions endpoint cannot "
            f"score ids that are chosen per position, only its own TopK and the sampled token. Use loss_support "
            f"{', '.join(get_args(KnownSupport))}. {ours}"
        )
    if args.loss_baseline is not None:
        raise ValueError(
            f"loss_baseline={args.loss_baseline!r} with the teacher server {server.url}: the baseline needs the "
            f"teacher on the student's ids, which a completions endpoint cannot score. Leave it out. {ours}"
        )
    temperature = args.temperature if args.loss_temperature is None else args.loss_temperature
    if temperature != 1.0:
        raise ValueError(
            f"a loss at temperature {temperature} with the teacher server {server.url}: the log-probabilities of "
            f"prompts that it sends are at temperature 1 whatever one asks for. Set loss_temperature: 1.0. {ours}"
        )


def check_tokenizer(server: TeacherServer, tokenizer, local_copy: str | None, args: OPDConfig) -> None:
    """Compare the vocabularies: whole where the server or a local copy gives one, else the tokens of a text."""
    if server.is_ours:
        check_same_vocabulary(tokenizer.get_vocab(), server.vocabulary())
        return
    if local_copy is not None:
        other = AutoTokenizer.from_pretrained(local_copy, trust_remote_code=args.trust_remote_code)
        check_same_vocabulary(tokenizer.get_vocab(), other.get_vocab())
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


def served_head(server: TeacherServer, device: torch.device) -> Head:
    """The LM head of `opd-trl serve-teacher`, on the student's device."""
    tensors, conventions = server.head()
    cap = conventions["final_logit_softcapping"]
    bias = tensors.get("bias")
    return Head(
        weight=tensors["weight"].to(device),
        bias=None if bias is None else bias.to(device),
        logit_scale=float(conventions["logit_scale"]),
        final_logit_softcapping=float(cap) if cap else None,
    )


def probe_ids(tokenizer, num_rows: int) -> list[int]:
    """A test sequence: a text, or ids all over the vocabulary for a tokenizer that hardly knows text."""
    ids = tokenizer(PROBE_TEXT, add_special_tokens=False)["input_ids"][:PROBE_LENGTH]
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
def local_log_probs(path: str, sequence: list[int], args: OPDConfig) -> Tensor:
    """What a model on this machine says of a sequence."""
    with plain_models(args):
        model = create_model_from_path(path, dtype="auto", device_map=None, trust_remote_code=args.trust_remote_code)
    model = model.to(args.device).eval()
    ids = torch.tensor([sequence], device=args.device)
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
