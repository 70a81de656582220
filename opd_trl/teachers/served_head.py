"""What a server of hidden states does not send: the LM head and the tokenizer, and whether they belong to it."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.logging import get_logger
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..losses.head import Head
from ..losses.next_token import NextToken
from ..models.lora_folders import tokenizer_of_path
from ..models.saved_head import read_saved_head
from .server import PROBE_TEXT, TeacherServer
from .transport import TeacherServerError
from .wire.pooling import WIRE


logger = get_logger(__name__)

#: Tokens of the text that is read at start.
TEXT_LENGTH = 128
#: How far a state may be from what the final norm can put out, relative. Rounding to bfloat16 was measured at 0.002 at
#: most, a missing norm, missing weights of it, or vectors of length 1 at 0.28 at least (SmolLM2-135M).
NORM_TOLERANCE = 0.02
#: Random orders of the states that are compared with the real one, and how many of them may do as well.
SHUFFLES = 9999
MOST_AS_GOOD = 9
#: Of `from_pretrained`, what reading a head and a tokenizer takes.
OPTIONS = {"dtype", "revision", "trust_remote_code"}
REMEDY = "Or serve it with `opd-trl serve-teacher`, which sends its head itself."


class SavedTeacher:
    """The head, final norm and tokenizer of a teacher, read from its folder or the hub; never its body.

    Args:
        server: vLLM's pooling runner, or SGLang.
        path: folder or hub id of the model that it serves; None where none is named.
        options: of `from_pretrained`; the head is in their `dtype`, and so are states on the wire.

    Raises:
        ValueError: no path, options without effect, no tokenizer, or another one than the server's.
    """

    def __init__(self, server: TeacherServer, path: str | None = None, options: Mapping[str, Any] | None = None):
        if path is None:
            raise ValueError(
                f"the teacher server {server.url} sends hidden states and no LM head. "
                "Name the model that it serves in teacher_model_name_or_path beside teacher_server_url, or in "
                f"teacher_server_models beside `teachers`: its head and its tokenizer are read from there. {REMEDY}"
            )
        options = dict(options or {})
        if unused := sorted(options.keys() - OPTIONS):
            raise ValueError(
                f"teacher_model_init_kwargs has {', '.join(unused)}, which has no effect: of a teacher that is "
                "served so only the LM head is read here. Give dtype alone."
            )
        self.server, self.path, self.options = server, path, options
        self.tokenizer = self._tokenizer()
        self.vocab = self.tokenizer.get_vocab()
        found = server.tokenize(PROBE_TEXT)
        check_tokens(server, found, self.tokenizer, f"that of {path}", "Name the model that is served.")

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        options = {name: value for name, value in self.options.items() if name != "dtype"}
        try:
            tokenizer = AutoTokenizer.from_pretrained(tokenizer_of_path(self.path), **options)
            if tokenizer(PROBE_TEXT, add_special_tokens=False)["input_ids"]:
                return tokenizer
            reason = "what is there makes no token of a text"  # transformers makes an empty one where there is none
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:300].rstrip(".")
        raise ValueError(
            f"the tokenizer of {self.path!r} cannot be read: {reason}. Save it beside the model, so that its "
            f"vocabulary can be compared with the student's. {REMEDY}"
        )

    @property
    def text_ids(self) -> list[int]:
        """A known text as the teacher reads it, with what its tokenizer puts before a text."""
        return self.tokenizer(PROBE_TEXT)["input_ids"][: min(TEXT_LENGTH, (self.server.max_length or TEXT_LENGTH) - 1)]

    def head(self, device: torch.device) -> Head:
        """Its LM head on a device, once the states of the server are known to belong to it; see `check`.

        Raises:
            ValueError: it cannot be read, or does not fit the server's states.
        """
        found = read_saved_head(self.path, **self.options)
        width = found.head.weight.size(1)
        if found.head.weight.dtype not in WIRE:
            raise ValueError(
                f"the LM head of {self.path!r} as {found.head.weight.dtype}: vLLM sends no such states. Set dtype in "
                f"teacher_model_init_kwargs to one of {', '.join(WIRE.values())}."
            )
        if width != self.server.pooled_size:
            raise ValueError(
                f"the LM head of {self.path!r} reads hidden states of {width}, and {self.server.url} "
                f"({self.server.model}) sends states of {self.server.pooled_size}. Name the model that is served in "
                "teacher_model_name_or_path."
            )
        if found.norm is None:
            raise ValueError(
                f"{self.path!r} has no final norm that could be found, so the states of {self.server.url} cannot be "
                f"checked. {REMEDY}"
            )
        head = found.head.to(device)
        self.check(head, found.norm)
        return head

    def check(self, head: Head, norm: nn.Module) -> None:
        """Check the states of a known text against norm and head; log what was seen, and how sure that is.

        Raises:
            TeacherServerError: states that are normalised, or are not those before this head.
        """
        ids = self.text_ids
        (states,) = self.server.hidden_states(
            [ids],
            [len(ids) - 1],
            hidden_size=head.weight.size(1),
            dtype=head.weight.dtype,
            what="the hidden states of a known text",
        )
        who = f"the hidden states of the teacher server {self.server.url} ({self.server.model})"
        if (states.float().norm(dim=-1) - 1).abs().max() < NORM_TOLERANCE:
            raise TeacherServerError(
                f"{who} are all of length 1, so they are normalised, although use_activation is false in the request. "
                f"Serve the model with vLLM 0.32, and with nothing before it that drops this field. {REMEDY}"
            )
        distance = distance_from_norm(states.float(), norm).max().item()
        if not distance <= NORM_TOLERANCE:
            raise TeacherServerError(
                f"{who} cannot be those behind the final norm of {self.path!r}: they are off by {distance:.2g} of "
                f"their length, and rounding stays below {NORM_TOLERANCE}. Either another model is served, or the "
                "server's forward of this family ends before the norm. Name the model that is served in "
                f"teacher_model_name_or_path. {REMEDY}"
            )
        real, shuffled = real_and_shuffled(states, head, ids)
        as_good = int((shuffled >= real).sum())
        seen = (
            f"the head of {self.path!r} on them gives a known text {-real:.2f} nats a token; on the same states in "
            f"{SHUFFLES:,} random orders {-shuffled.mean():.2f} in the mean, {-shuffled.max():.2f} at best"
        )
        if as_good > MOST_AS_GOOD:
            raise TeacherServerError(
                f"{who} say nothing of a text to the LM head that should read them: {seen}. Another model is served, "
                "or one that has not learned to read plain text, which cannot be told apart here. Name the model that "
                f"is served in teacher_model_name_or_path. {REMEDY}"
            )
        logger.info(
            f"{who} are those behind the final norm of {self.path!r} (off by {distance:.1g} of their length), and "
            f"{seen}. By luck, with a head that has nothing to do with them, that happens at most {as_good + 1} in "
            f"{SHUFFLES + 1:,} times. What this cannot tell apart: models of which one was trained from the other, "
            "such as a base model and its instruct version."
        )


def check_tokens(
    server: TeacherServer, found: list[int] | None, tokenizer: PreTrainedTokenizerBase, whose: str, remedy: str
) -> None:
    """Raise ValueError where a server's tokens of a test text are not a tokenizer's; `found` None: it gives none."""
    expected = tokenizer(PROBE_TEXT, add_special_tokens=False)["input_ids"]
    if found is None or found == expected:
        return
    at = next((i for i, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), None)
    place = "in length" if at is None else f"from token {at} on ({found[at]} there, {expected[at]} here)"
    raise ValueError(
        f"the tokenizer of the teacher server {server.url} ({server.model}) is not {whose}: a test text of "
        f"{len(expected)} tokens differs {place}. {remedy}"
    )


def distance_from_norm(states: Tensor, norm: nn.Module) -> Tensor:
    """How far states h `(n, H)` are from what a norm N can put out: |N(N^-1 h) - h| / |h|, `(n,)`.

    N is an affine map a u + b behind a scaling of its input to mean square 1 (for LayerNorm to mean 0 too). Both are
    read off it: N(0) = b, and N(e) = a e + b for signs e that sum to 0. Then u = (h - b) / a is what N leaves as it is
    if, and only if, h is one of its outputs.

    Example:
        >>> norm = nn.RMSNorm(64)
        >>> states = norm(torch.randn(3, 64)).detach()
        >>> [bool(distance_from_norm(scale * states, norm).max() < 1e-4) for scale in (1, 2)]
        [True, False]
    """
    signs = torch.ones(states.size(-1))
    signs[1::2] = -1
    with torch.no_grad():
        shift = norm(torch.zeros_like(signs))
        scale = (norm(signs) - shift) * signs
        inside = torch.where(scale == 0, 0.0, (states.cpu() - shift) / scale)
        return (norm(inside) - states.cpu()).norm(dim=-1) / states.cpu().norm(dim=-1)


def real_and_shuffled(states: Tensor, head: Head, ids: list[int]) -> tuple[Tensor, Tensor]:
    """Mean log-probability of a text's tokens from its states, and from the same states in `SHUFFLES` random orders.

    Each token counts once, where it first stands. Were the rows of the head of any other origin than the states, no
    order would be better than another: the real one among the best k of n orders has then a probability of k / n,
    whatever the distributions.

    Args:
        states: `(n - 1, H)`, that predict all tokens but the first.
        head: reads them.
        ids: n tokens.
    """
    following = ids[1:]
    first = torch.tensor([i for i, token in enumerate(following) if token not in following[:i]])
    targets = torch.tensor(following)[first].to(head.weight.device).expand(len(first), -1)
    log_probs, _, _ = NextToken(states[first].to(head.weight.device), head).log_probs(ids=targets.contiguous())
    log_probs = log_probs.cpu()
    orders = torch.rand(SHUFFLES, len(first), generator=torch.Generator().manual_seed(0)).argsort(-1)
    return log_probs.diag().mean(), log_probs[orders, torch.arange(len(first))].mean(-1)
