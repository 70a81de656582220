"""Any answer but the right one is refused, or has nothing to do with what is read: never another number."""

import copy
import json
import random
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from opd_trl.teachers.connections import BadAnswerError
from opd_trl.teachers.server_answers import (
    json_of,
    read_completions,
    read_head,
    read_models,
    read_tensors,
    read_tokens,
    read_vocabulary,
)
from opd_trl.teachers.transport import checked
from opd_trl.teachers.wire.pooling import read_states


SEQUENCES, NUM_SCORED = [[3, 5, 7, 9], [4, 6, 8]], [2, 1]
VOCAB, TOP_K = 10, 3
#: What may stand anywhere in JSON, and is nowhere right here.
JUNK = [
    None, True, False, "x", "", " 5", "05", "\u0665", 10**400, 10**18, -3, 2.5, float("nan"), float("inf"), [], {},
    [1], {"a": 1}, [[]], [None], {"5": None}, {" 3": {"rank": 1, "logprob": -0.1}},
]  # fmt: skip


def position(token: int) -> dict[str, dict[str, float]]:
    """TopK of 3, the sampled token beyond it."""
    ids = [i for i in range(VOCAB) if i != token][:TOP_K]
    log_probs = torch.log_softmax(torch.tensor([3.0, 2.0, 1.0, 0.0]), 0).tolist()
    return {
        str(i): {"rank": rank, "logprob": log_probs[min(rank, 4) - 1], "decoded_token": "x"}
        for i, rank in zip([*ids, token], (1, 2, 3, 7), strict=True)
    }


def completions() -> dict:
    choices = [
        {"index": i, "prompt_token_ids": ids, "prompt_logprobs": [None, *map(position, ids[1:])]}
        for i, ids in enumerate(SEQUENCES)
    ]
    return {"model": "t", "choices": choices}


def read(content: bytes):
    found = read_completions(json_of(content), SEQUENCES, NUM_SCORED, model="t", top_k=TOP_K, vocab_size=VOCAB)
    return [(x.ids.tolist(), x.log_probs.tolist(), x.sampled_log_probs.tolist()) for x in found]


def places(value, path=()):
    """The path of every value in JSON."""
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield from places(inner, (*path, key))


def mutated(body, random: random.Random) -> bytes:
    """The JSON with one place changed: another value, none, its neighbour's, or its key twice."""
    body = copy.deepcopy(body)
    path = random.choice([path for path in places(body) if path])
    holder = body
    for key in path[:-1]:
        holder = holder[key]
    key, kind = path[-1], random.choice(["junk", "junk", "delete", "twice", "key", "double"])
    if kind == "junk" or (kind in ("twice", "key") and isinstance(holder, list)):
        holder[key] = random.choice(JUNK)
    elif kind == "delete":
        del holder[key]
    elif kind == "double" and isinstance(holder, list):
        holder.insert(key, holder[key])
    elif kind == "key":
        holder[random.choice([" 3", "+3", "03", "x", "99", "\x1b[2J"])] = holder.pop(key)
    else:
        text = json.dumps(body)
        again = f"{json.dumps(key)}: {json.dumps(holder[key])}"
        return text.replace(again, f"{again}, {again}", 1).encode()
    return json.dumps(body).encode()


STATES = torch.arange(7 * 4, dtype=torch.float32).view(7, 4)
POOLED = {
    "model": "t",
    "data": [
        {"index": 0, "embed_dtype": "float32", "endianness": "little", "start": 0, "end": 64, "shape": [4, 4]},
        {"index": 1, "embed_dtype": "float32", "endianness": "little", "start": 64, "end": 112, "shape": [3, 4]},
    ],
}


def read_pooled(metadata: bytes) -> list:
    content, lengths = STATES.numpy().tobytes(), list(map(len, SEQUENCES))
    found = read_states(content, metadata.decode(), lengths, NUM_SCORED, model="t", dtype=torch.float32, hidden_size=4)
    return [states.tolist() for states in found]


READERS = {
    "pooled": (POOLED, read_pooled),
    "completions": (completions(), read),
    "models": ({"data": [{"id": "t", "owned_by": "opd_trl", "max_model_len": 1024}]}, read_models),
    "vocabulary": ({"vocab": {"a": 0, "b": 1}}, read_vocabulary),
    "tokens": ({"tokens": [4, 5]}, read_tokens),
}


@pytest.mark.attack(
    "client",
    "one place of a right JSON answer is another value, missing, or there twice",
    "refused as a bad answer, or the same numbers as before",
)
@pytest.mark.parametrize("name", READERS)
@settings(max_examples=200, deadline=None)
@given(random=st.randoms(use_true_random=False))
def test_a_mutated_answer_is_refused_or_changes_nothing(name, random):
    body, reader = READERS[name]
    right = reader(json.dumps(body).encode())
    try:
        found = checked(reader, mutated(body, random))
    except BadAnswerError:
        return
    if name in ("completions", "pooled"):
        assert found == right
    elif name == "models":  # its name, window and owner may be others: these kinds of values they can have
        assert [type(x) for x in found[:2]] in ([str, int], [str, type(None)])
    else:
        assert all(type(x) is int for x in (found.values() if isinstance(found, dict) else found))


def wrong_position(**change) -> bytes:
    """The right answer, the last position changed: token -> entry, None to leave it out."""
    body = completions()
    row = body["choices"][1]["prompt_logprobs"][-1]
    for token, entry in change.items():
        row.pop(token, None) if entry is None else row.update({token: row.get(token, {}) | entry})
    return json.dumps(body).encode()


def swapped(first: int = 0) -> bytes:
    body = completions()
    for index, choice in enumerate(reversed(body["choices"])):
        choice["index"] = index * (1 - first)
    return json.dumps(body).encode()


@pytest.mark.attack("client", "ranks, ids and orders of TopK that only look right", "refused as bad answers")
@pytest.mark.parametrize(
    "content",
    [
        wrong_position(**{" 0": {"rank": 1, "logprob": -0.1}, "0": None}),
        wrong_position(**{"00": {"rank": 4, "logprob": -4.0}}),
        wrong_position(**{"8": {"rank": 3}}),
        wrong_position(**{"8": {"rank": True}}),
        wrong_position(**{"0": {"rank": 1.0}}),
        wrong_position(**{"0": {"logprob": "-0.1"}}),
        wrong_position(**{"0": {"logprob": True}}),
        wrong_position(**{"0": {"rank": float("inf")}}),
        wrong_position(**{"0": {"logprob": 10**400}}),
        wrong_position(**{"8": None}),
        swapped(),
        swapped(1),
    ],
)
def test_an_answer_that_only_looks_right_is_refused(content):
    with pytest.raises(BadAnswerError):
        checked(read, content)


@pytest.mark.parametrize("error", [KeyError("x"), RecursionError(), OverflowError(), MemoryError(), TypeError("\x1b")])
def test_whatever_a_reader_raises_is_a_bad_answer(error):
    def reader(content: bytes):
        raise error

    with pytest.raises(BadAnswerError, match=f"the answer cannot be read .{type(error).__name__}"):
        checked(reader, b"")


# Safetensors

HIDDEN = {"hidden_states": (3, 4)}
CONVENTIONS = {"logit_scale": "1.0", "final_logit_softcapping": "", "model": "t"}


def safetensors(header: dict | bytes, data: bytes = bytes(48), length: int | None = None) -> bytes:
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def tensor(dtype: str = "F32", shape=(3, 4), offsets=(0, 48)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.attack(
    "client",
    "safetensors whose header lies: length, offsets, overlaps, dtypes, shapes, depth",
    "refused as bad answers",
)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 100,
        safetensors(b"{}", length=2**62),
        safetensors(b"{}", length=2**64 - 1),
        safetensors(b"[" * 100_000),
        safetensors({}),
        safetensors({"hidden_states": tensor()}, bytes(47)),
        safetensors({"hidden_states": tensor()}, bytes(49)),
        safetensors({"hidden_states": tensor(offsets=(0, 2**63))}),
        safetensors({"hidden_states": tensor(offsets=(48, 0))}),
        safetensors({"hidden_states": tensor(offsets=(0, 24))}),
        safetensors({"hidden_states": tensor(), "other": tensor()}),
        safetensors({"hidden_states": tensor(), "other": tensor(offsets=(48, 96))}, bytes(96)),
        safetensors({"hidden_states": tensor(shape=(4, 3))}),
        safetensors({"hidden_states": tensor(shape=(12,))}),
        safetensors({"hidden_states": tensor(shape=(2**40, 2**40))}),
        safetensors({"hidden_states": tensor("I32")}),
        safetensors({"hidden_states": tensor("F64", offsets=(0, 96))}, bytes(96)),
        safetensors({"hidden_states": tensor("F8_E4M3", offsets=(0, 12))}, bytes(12)),
        safetensors({"hidden_states": tensor("Q4")}),
        safetensors({"hidden_states": tensor()}, b"\xff" * 48),
        safetensors({"weight": tensor()}),
    ],
)
def test_safetensors_that_lie_are_refused(content):
    with pytest.raises(BadAnswerError):
        checked(partial(read_tensors, shapes=HIDDEN), content)


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 200), value=st.integers(0, 255), cut=st.integers(0, 60))
def test_spoilt_safetensors_are_refused_or_have_the_right_shape(place, value, cut):
    content = bytearray(save({"hidden_states": torch.ones(3, 4)}, metadata={"model": "t"}))
    content[place % len(content)] = value
    try:
        found = checked(partial(read_tensors, shapes=HIDDEN), bytes(content[: len(content) - cut]))
    except BadAnswerError:
        return
    assert cut == 0
    assert found["hidden_states"].shape == (3, 4)
    assert found["hidden_states"].isfinite().all()


def head(metadata: dict | None = None, **tensors) -> bytes:
    return save({"weight": torch.ones(5, 4)} | tensors, metadata=metadata)


@pytest.mark.parametrize(
    "content",
    [
        head(),
        head({}),
        *(head(CONVENTIONS | {"logit_scale": x}) for x in ("abc", "nan", "inf", "0", "-1", "", "1e999")),
        *(head(CONVENTIONS | {"final_logit_softcapping": x}) for x in ("abc", "nan", "inf", "0", "-1")),
        head({"logit_scale": "1.0"}),
        head(CONVENTIONS, bias=torch.ones(4)),
        head(CONVENTIONS, bias=torch.ones(5, 1)),
        head(CONVENTIONS, bias=torch.full((5,), torch.nan)),
        head(CONVENTIONS, bias=torch.ones(5, dtype=torch.int64)),
        head(CONVENTIONS, other=torch.ones(5)),
        head(CONVENTIONS, weight=torch.ones(5, 4, dtype=torch.int64)),
        head(CONVENTIONS, weight=torch.ones(5)),
        head(CONVENTIONS, weight=torch.ones(0, 4)),
    ],
)
def test_a_head_that_cannot_be_used_is_refused(content):
    with pytest.raises(BadAnswerError):
        checked(read_head, content)


def test_a_right_head_is_read():
    found = read_head(head(CONVENTIONS | {"final_logit_softcapping": "30.0"}, bias=torch.zeros(5)))
    assert found.weight.shape == (5, 4)
    assert found.bias.tolist() == [0.0] * 5
    assert (found.logit_scale, found.final_logit_softcapping) == (1.0, 30.0)
