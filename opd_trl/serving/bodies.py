"""The JSON that clients send, its checks, and what is answered in place of numbers: OpenAI's error shape."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError
from starlette.responses import JSONResponse


TYPES = {401: "authentication_error", 500: "server_error", 503: "overloaded_error"}


class Refusal(Exception):
    """An answer that is an error: its message says what was given, what was expected, and what to do."""

    def __init__(self, status: int, message: str, **headers: str):
        super().__init__(message)
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
        given = "" if first["type"] in ("missing", "json_invalid") else f", got {first['input']!r:.60}"
        raise Refusal(400, f"{place or 'the body'}: {first['msg']}{given}.") from None


def check_model(given: str | None, name: str) -> None:
    """Refuse another model's name: this server never loads one."""
    if given is not None and given != name:
        raise Refusal(404, f"this server serves {name!r}, not {given[:200]!r}. Leave `model` out, or give that name.")


def check_sequences(
    field: str, sequences: Sequence[Sequence[int]], *, num_ids: int, max_length: int, max_sequences: int
) -> None:
    """Refuse what the model cannot read, with the place in `field`."""
    if not sequences:
        raise Refusal(400, f"{field} is empty. Give at least one sequence of token ids.")
    if len(sequences) > max_sequences:
        raise Refusal(
            413,
            f"{field} holds {len(sequences)} sequences, at most {max_sequences} are taken at a time. Send several "
            "requests, or start the server with a larger --max-sequences.",
        )
    for i, ids in enumerate(sequences):
        if not ids:
            raise Refusal(400, f"{field}[{i}] is empty. A sequence has at least one token id.")
        if len(ids) > max_length:
            raise Refusal(
                400,
                f"{field}[{i}] has {len(ids)} tokens, at most {max_length} fit (max_model_len). Send a shorter one, "
                "or start the server with a larger --max-length where the model's context window allows it.",
            )
        check_ids(f"{field}[{i}]", ids, num_ids)


def check_ids(place: str, ids: Sequence[int], num_ids: int) -> None:
    """Refuse ids that the head has no row for."""
    for bad in (x for x in (min(ids), max(ids)) if not 0 <= x < num_ids):
        raise Refusal(
            400,
            f"{place} holds the id {bad}, and the model's ids go from 0 to {num_ids - 1}. Student and teacher must "
            "share one tokenizer.",
        )


def check_num_scored(num_scored: Sequence[int], sequences: Sequence[Sequence[int]]) -> None:
    """Refuse counts of scored tokens that a sequence cannot have."""
    if len(num_scored) != len(sequences):
        raise Refusal(400, f"num_scored has {len(num_scored)} entries for {len(sequences)} sequences. Give one each.")
    for i, (n, ids) in enumerate(zip(num_scored, sequences, strict=True)):
        if not 1 <= n < len(ids):
            raise Refusal(
                400,
                f"num_scored[{i}] is {n}, expected 1 to {len(ids) - 1}: sequences[{i}] has {len(ids)} tokens, and the "
                "first one is predicted by none.",
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
        400, f"prompt must be a text, a list of token ids, or a list of those, none empty; got {prompt!r:.60}."
    )


def check_completions(body: CompletionsBody, max_log_probs: int) -> int:
    """Refuse what would need generation, and more ids than --max-logprobs; return how many most probable ids."""
    if body.max_tokens not in (0, 1):
        raise Refusal(
            400, f"max_tokens is {body.max_tokens}, expected 0 or 1: this server scores prompts, it does not generate."
        )
    if body.stream:
        raise Refusal(400, "stream is true, and a scored prompt has nothing to stream. Leave it out.")
    if not (math.isfinite(body.temperature) and body.temperature > 0):
        raise Refusal(400, f"temperature must be > 0, got {body.temperature}. 1.0 leaves the distribution as it is.")
    if body.prompt_logprobs is None and body.prompt_logprob_ids is None:
        raise Refusal(
            400, "prompt_logprobs is missing: how many of the most probable ids to score (0: the prompt's own alone)."
        )
    top_k = body.prompt_logprobs or 0
    if not 0 <= top_k <= max_log_probs:
        raise Refusal(
            400,
            f"prompt_logprobs is {top_k}, expected 0 to {max_log_probs}. Ask for fewer, or start the server with a "
            "larger --max-logprobs.",
        )
    return top_k


def check_requested(
    requested: list[list[list[int] | None]] | None, prompts: list[list[int]], *, num_ids: int, max_log_probs: int
) -> None:
    """Refuse requested ids that do not fit the prompts, and more of them than --max-logprobs."""
    if requested is None:
        return
    if len(requested) != len(prompts):
        raise Refusal(
            400, f"prompt_logprob_ids has {len(requested)} entries, expected {len(prompts)}: one per prompt."
        )
    for i, (per_position, ids) in enumerate(zip(requested, prompts, strict=True)):
        place = f"prompt_logprob_ids[{i}]"
        if len(per_position) != len(ids):
            raise Refusal(
                400,
                f"{place} has {len(per_position)} entries for {len(ids)} tokens. Give one list of ids per token, and "
                "null for the first.",
            )
        most = max(per_position[1:], key=lambda row: len(row or ()), default=None) or []
        if len(most) > max_log_probs:
            raise Refusal(
                400,
                f"{place} asks for {len(most)} ids at a position, at most {max_log_probs} are scored. Ask for fewer, "
                "or start the server with a larger --max-logprobs.",
            )
        flat = [x for row in per_position[1:] for x in row or ()]
        if flat:
            check_ids(place, flat, num_ids)
