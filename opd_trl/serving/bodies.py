"""The JSON that clients send, its checks, and what is answered in place of numbers: OpenAI's error shape."""

import reprlib
from array import array
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BaseModel, Field, ValidationError
from starlette.responses import JSONResponse


# Logits of some ten thousands, divided by it, are far from the end of float32.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.001, 1000.0
TYPES = {401: "authentication_error", 500: "server_error", 503: "overloaded_error"}


class Refusal(Exception):
    """An answer that is an error: its message says what was given, what was expected, and what to do."""

    def __init__(self, status: int, message: str, **headers: str):
        super().__init__(status, message)  # both, so that it can be sent from one process to another
        self.status, self.message = status, message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def response(self) -> JSONResponse:
        """The JSON of OpenAI's errors: `{"error": {"message", "type", "code"}}`."""
        error = {
            "message": self.message,
            "type": TYPES.get(self.status, "invalid_request_error"),
            "code": self.status,
        }
        return JSONResponse({"error": error}, self.status, self.headers)


# fail_fast: one error is enough of a list of a million entries.
Ids = Annotated[list[int], Field(fail_fast=True)]
Sequences = Annotated[list[Ids], Field(fail_fast=True)]
# Prompt, position, ids.
Requested = Annotated[list[Annotated[list[Ids | None], Field(fail_fast=True)]], Field(fail_fast=True)]


class HiddenStatesBody(BaseModel):
    """`sequences`: token ids; `num_scored`: of each, how many of its last tokens are scored."""

    model: str | None = None
    sequences: Sequences
    num_scored: Ids


class CompletionsBody(BaseModel):
    """vLLM's body, as far as scoring goes; `prompt_logprob_ids` is ours. Other fields are ignored."""

    model: str | None = None
    prompt: Any
    max_tokens: int = 0
    prompt_logprobs: int | None = None
    temperature: float = 1.0
    prompt_logprob_ids: Requested | None = None
    stream: bool = False
    n: int = Field(1, ge=1, le=1)


Body = TypeVar("Body", bound=BaseModel)


def parse(kind: type[Body], content: bytes) -> Body:
    """Read a JSON body; raises Refusal 400 with the first thing that is wrong."""
    try:
        return kind.model_validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
        given = "" if first["type"] in ("missing", "json_invalid") else f", got {shown(first['input'])}"
        raise Refusal(400, f"{place or 'the body'}: {first['msg']}{given}.") from None


def shown(value: Any) -> str:
    """The start of a value, however large it is."""
    return reprlib.repr(value)[:60]


def check_model(given: str | None, name: str) -> None:
    """Refuse another model's name: this server never loads one."""
    if given is not None and given != name:
        raise Refusal(404, f"this server serves {name!r}, not {given[:200]!r}. Leave `model` out, or give that name.")


def check_count(field: str, sequences: Sequence[Any], max_sequences: int) -> None:
    """Refuse none and too many, before anything is done with them."""
    if not sequences:
        raise Refusal(400, f"{field} is empty. Give at least one sequence of token ids.")
    if len(sequences) > max_sequences:
        raise Refusal(
            413,
            f"{field} holds {len(sequences)} sequences, at most {max_sequences} are taken at a time. Send several "
            "requests, or start the server with a larger --max-sequences.",
        )


def check_sequence(place: str, ids: Sequence[int], *, num_ids: int, max_length: int) -> None:
    """Refuse what the model cannot read."""
    if not ids:
        raise Refusal(400, f"{place} is empty. A sequence has at least one token id.")
    if len(ids) > max_length:
        raise too_long(place, f"{len(ids)} tokens", max_length)
    check_ids(place, ids, num_ids)


def too_long(place: str, found: str, max_length: int) -> Refusal:
    """What is said of a sequence that does not fit."""
    return Refusal(
        400,
        f"{place} has {found}, at most {max_length} fit (max_model_len). Send a shorter one, or start the server with "
        "a larger --max-length where the model's context window allows it.",
    )


def check_ids(place: str, ids: Sequence[int], num_ids: int) -> None:
    """Refuse ids that the head has no row for."""
    for bad in (x for x in (min(ids), max(ids)) if not 0 <= x < num_ids):
        raise Refusal(
            400,
            f"{place} holds the id {shown(bad)}, and the model's ids go from 0 to {num_ids - 1}. Student and teacher "
            "must share one tokenizer.",
        )


def check_num_scored(num_scored: Sequence[int], sequences: Sequence[Sequence[int]]) -> None:
    """Refuse counts of scored tokens that a sequence cannot have."""
    if len(num_scored) != len(sequences):
        raise Refusal(400, f"num_scored has {len(num_scored)} entries for {len(sequences)} sequences. Give one each.")
    for i, (n, ids) in enumerate(zip(num_scored, sequences, strict=True)):
        if not 1 <= n < len(ids):
            raise Refusal(
                400,
                f"num_scored[{i}] is {shown(n)}, expected 1 to {len(ids) - 1}: sequences[{i}] has {len(ids)} tokens, "
                "and the first one is predicted by none.",
            )


def as_prompts(prompt: Any) -> list[str | list[int]]:
    """One prompt or several, each a text or token ids, as a list of prompts."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if all(type(x) is int for x in prompt):
            return [prompt]
        if all(isinstance(x, str) or (isinstance(x, list) and all(type(i) is int for i in x)) for x in prompt):
            return prompt
    raise Refusal(
        400, f"prompt must be a text, a list of token ids, or a list of those, none empty; got {shown(prompt)}."
    )


def check_completions(body: CompletionsBody, max_log_probs: int) -> int:
    """Refuse what would need generation, and more ids than --max-logprobs; return how many most probable ids."""
    if body.max_tokens not in (0, 1):
        raise Refusal(
            400,
            f"max_tokens is {shown(body.max_tokens)}, expected 0 or 1: this server scores prompts, it does not "
            "generate.",
        )
    if body.stream:
        raise Refusal(400, "stream is true, and a scored prompt has nothing to stream. Leave it out.")
    if not MIN_TEMPERATURE <= body.temperature <= MAX_TEMPERATURE:  # false for NaN too
        raise Refusal(
            400,
            f"temperature must be from {MIN_TEMPERATURE} to {MAX_TEMPERATURE}, got {body.temperature}. 1.0 leaves the "
            "distribution as it is.",
        )
    if body.prompt_logprobs is None and body.prompt_logprob_ids is None:
        raise Refusal(
            400, "prompt_logprobs is missing: how many of the most probable ids to score (0: the prompt's own alone)."
        )
    top_k = body.prompt_logprobs or 0
    if not 0 <= top_k <= max_log_probs:
        raise Refusal(
            400,
            f"prompt_logprobs is {shown(top_k)}, expected 0 to {max_log_probs}. Ask for fewer, or start the server "
            "with a larger --max-logprobs.",
        )
    return top_k


class Requested(NamedTuple):
    """The ids that one prompt asks for: how many at each position, and all of them in order."""

    counts: array
    ids: array


def read_requested(
    requested: list[list[list[int] | None]] | None, num_prompts: int, *, num_ids: int, max_log_probs: int
) -> list[Requested] | None:
    """Refuse ids that the model does not have, and more than --max-logprobs; those of position 0 are dropped."""
    if requested is None:
        return None
    if len(requested) != num_prompts:
        raise Refusal(400, f"prompt_logprob_ids has {len(requested)} entries, expected {num_prompts}: one per prompt.")
    read = []
    for i, per_position in enumerate(requested):
        place, rows = f"prompt_logprob_ids[{i}]", [(), *(row or () for row in per_position[1:])]
        most = max(map(len, rows))
        if most > max_log_probs:
            raise Refusal(
                400,
                f"{place} asks for {most} ids at a position, at most {max_log_probs} are scored. Ask for fewer, "
                "or start the server with a larger --max-logprobs.",
            )
        flat = [x for row in rows for x in row]
        if flat:
            check_ids(place, flat, num_ids)
        read.append(Requested(array("i", map(len, rows[: len(per_position)])), array("i", flat)))
    return read


def check_requested(requested: list[Requested] | None, prompts: Sequence[Sequence[int]]) -> None:
    """Refuse requested ids that do not fit the prompts."""
    for i, (ids, prompt) in enumerate(zip(requested or (), prompts, strict=False)):
        if len(ids.counts) != len(prompt):
            raise Refusal(
                400,
                f"prompt_logprob_ids[{i}] has {len(ids.counts)} entries for {len(prompt)} tokens. Give one list of "
                "ids per token, and null for the first.",
            )
