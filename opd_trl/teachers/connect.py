"""What is asked of a teacher behind HTTP before training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import torch
from accelerate.logging import get_logger
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..losses.chunked import KnownSupport
from ..losses.head import Head
from ..models.forward import completion_hidden_states, read_head
from ..models.lora_folders import tokenizer_of_path
from .base import Teacher
from .served import ServedTeacher
from .served_head import OPTIONS, SavedTeacher, check_tokens
from .server import PROBE_TEXT, SAME_MODEL, TeacherServer, log_probs_of
from .text_ids import text_ids
from .text_teacher import TextTeacher
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
    """The same model on this machine: to compare a server with, or to read the LM head of.

    Attributes:
        path: folder or hub id.
        options: of `from_pretrained`.
        load: the whole model, in evaluation mode.
    """

    path: str
    options: dict[str, Any]
    load: Callable[[str], nn.Module]

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer, as an adapter's folder or the hub has it."""
        options = {name: self.options[name] for name in OPTIONS - {"dtype"} if name in self.options}
        return AutoTokenizer.from_pretrained(tokenizer_of_path(self.path), **options)


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
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
) -> Teacher:
    """Ask a server all that would fail or mislead later.

    Args:
        server: its address and the limits of the connection.
        needs: what the loss asks of it.
        tokenizer: the student's.
        student_rows: rows of the student's head.
        rows_per_request: completions in a request.
        device: of the student, where its LM head will lie.
        local_copy: the same model here, or None. Where hidden states are sent without one, only its head is read.
        compares: does this process compare the server with the local copy? One of a job is enough.
        vocabulary: which one it may have.
        teacher_tokenizer: its own, for `text`; None: that of `local_copy`, of which nothing else is read then.

    Raises:
        TeacherServerError: not reached, or its answers cannot be used.
        ValueError: a loss that this kind of server cannot serve, another vocabulary, another model than `local_copy`.
    """
    probe, head, reads_text = None, None, vocabulary == "text"
    if server.is_ours:
        theirs, most = server.vocabulary(), max(student_rows, len(tokenizer.get_vocab()))
        if reads_text:
            teacher_tokenizer, most = teacher_tokenizer or named_tokenizer(server, local_copy), len(theirs)
            local_copy = None
        load, end = lambda: server.head(num_rows=most).to(device), None
    elif server.pooled_size is not None:
        saved = SavedTeacher(server, *(() if local_copy is None else (local_copy.path, local_copy.options)))
        theirs, load, end = saved.vocab, lambda: saved.head(device), saved.tokenizer.eos_token
        probe, local_copy, teacher_tokenizer = saved.text_ids, None, teacher_tokenizer or saved.tokenizer
    else:
        check_loss_is_served(server, needs, vocabulary)
        check_tokenizer(server, tokenizer, local_copy)
        shared_ids = SharedIds(student_rows)
    if server.sends_hidden_states and reads_text:
        check_named_tokenizer(server, theirs, teacher_tokenizer)
        head = load()
        shared_ids = text_ids(tokenizer, teacher_tokenizer, student_rows, head.weight.size(0))
    elif server.sends_hidden_states:
        head, shared_ids = share_ids(
            tokenizer, theirs, load, student_rows=student_rows, vocabulary=vocabulary, teacher_end=end
        )
    read = SharedIds(head.weight.size(0)) if reads_text else shared_ids
    probe = probe or probe_ids(teacher_tokenizer if reads_text else tokenizer, read.num_rows)
    probe = probe[: (server.max_length or PROBE_LENGTH + 1) - 1]
    top_k = 1 if server.sends_hidden_states else min(needs.top_k, read.num_rows)
    known_rows = read.num_rows if head is None else head.weight.size(0)
    log_probs = server.probe(probe, top_k=top_k, vocab_size=known_rows, head=head)
    if server.is_ours:
        (hidden_states,) = server.hidden_states(
            [probe], [len(probe) - 1], hidden_size=head.weight.size(1), what="the probe at start"
        )
        compare(log_probs, log_probs_of(hidden_states, head, probe), f"{server.url}: its LM head on its hidden states")
    sends = "hidden states" if server.sends_hidden_states else f"{top_k} log-probabilities"
    logger.info(
        f"teacher server {server.url}: {server.model}, {sends} a token, at most {server.max_length} tokens; "
        f"{log_probs.mean():.3f} nats a token on a probe of {len(probe)}."
    )
    if local_copy is not None and compares:
        here = local_log_probs(local_copy.load(local_copy.path).to(device), probe)
        compare(log_probs, here, f"{server.url}: the local copy {local_copy.path}")
    served = ServedTeacher(server, head, read, top_k=needs.top_k, rows_per_request=rows_per_request)
    return TextTeacher(served, shared_ids) if reads_text else served


def share_ids(
    tokenizer,
    theirs: dict[str, int],
    load: Callable[[], Head],
    *,
    student_rows: int,
    vocabulary: TeacherVocabulary,
    teacher_end: str | None = None,
) -> tuple[Head, SharedIds]:
    """Compare the vocabulary of a server with the student's, and only then load its head."""
    vocab = tokenizer.get_vocab()
    if vocab != theirs:
        find_shared(vocab, theirs, vocabulary)
    head = load()
    ends = {"student_end": tokenizer.eos_token, "teacher_end": teacher_end}
    return head, compare_vocabularies(vocab, theirs, student_rows, head.weight.size(0), choice=vocabulary, **ends)


def check_loss_is_served(server: TeacherServer, needs: LossNeeds, vocabulary: TeacherVocabulary) -> None:
    """Refuse what TopK log-probabilities at temperature 1 are not enough for."""
    ours = "Serve the teacher with `opd-trl serve-teacher` instead, or with vLLM's pooling runner, which can."
    if vocabulary in ("shared", "text"):
        raise ValueError(
            f"teacher_vocabulary={vocabulary!r} with the teacher server {server.url}: a completions endpoint "
            f"normalises over its whole vocabulary and does not say how much of that is shared. {ours}"
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
        other = local_copy.tokenizer()
        remedy = "Serve it with `opd-trl serve-teacher`, which can compare those alone"
        check_same_vocabulary(tokenizer.get_vocab(), other.get_vocab(), remedy=remedy)
    found = server.tokenize(PROBE_TEXT)
    if found is None and local_copy is None:
        logger.warning(
            f"teacher server {server.url} has no /tokenize, so its tokenizer could not be compared with the student's."
            " Give a local copy of the teacher (teacher_model_name_or_path) to compare them."
        )
    check_tokens(server, found, tokenizer, "the student's", "Serve a teacher of the student's tokenizer family.")


def named_tokenizer(server: TeacherServer, local_copy: LocalCopy | None) -> PreTrainedTokenizerBase:
    """The tokenizer of a server that does not send it."""
    if local_copy is None:
        raise ValueError(
            f"teacher_vocabulary='text' with the teacher server {server.url}, which sends no tokenizer. Name a folder "
            "or hub id with its tokenizer: teacher_model_name_or_path beside teacher_server_url, its entry in "
            "teacher_server_models beside `teachers`. Or pass teacher_processing_class."
        )
    return local_copy.tokenizer()


def check_named_tokenizer(server: TeacherServer, theirs: dict[str, int], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError where the tokenizer that was given for a server is not the server's."""
    vocab = tokenizer.get_vocab()
    if vocab != theirs:
        token = min(vocab.items() ^ theirs.items(), key=lambda item: item[1])[0]
        raise ValueError(
            f"the tokenizer that is given for the teacher server {server.url} ({server.model}) is not its own: "
            f"{token!r} is {vocab.get(token, 'absent')} here and {theirs.get(token, 'absent')} there. Give the one "
            "of the model that is served."
        )


def probe_ids(tokenizer, num_rows: int) -> list[int]:
    """A test sequence: a text, or ids all over the vocabulary for a tokenizer that hardly knows text."""
    ids = [i for i in tokenizer(PROBE_TEXT, add_special_tokens=False)["input_ids"] if i < num_rows][:PROBE_LENGTH]
    known = sorted({i for i in tokenizer.get_vocab().values() if i < num_rows})
    if len(ids) < PROBE_LENGTH // 4:
        return [known[i * len(known) // PROBE_LENGTH] for i in range(PROBE_LENGTH)]
    return ids


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
