"""Two tokenizers over one text: the bytes of each token, and the shortest spans of tokens with the same bytes.

No torch here, and nothing of a model: token ids and bytes in, places out.
"""

import codecs
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase


#: In place of the bytes of the token that ends an answer, the same for all tokenizers. No text has these bytes.
END = b"\xff\xff"
#: Decoders that put tokens side by side, each with bytes of its own.
SIDE_BY_SIDE = {"Replace", "Metaspace", "ByteFallback", "Fuse", "Strip"}
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


def byte_characters() -> dict[str, int]:
    """The printable characters by which byte-level tokenizers write bytes (GPT-2's table).

    >>> byte_characters()["Ġ"], byte_characters()["a"]
    (32, 97)
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def token_bytes(tokenizer: PreTrainedTokenizerBase, *, special_too: bool = False) -> dict[int, bytes]:
    """Token id -> its bytes in a text. The end token has `END`; other special tokens have none and are left out.

    Args:
        tokenizer: byte-level (GPT-2, Llama 3, Qwen), or of pieces with a marker for the space (SentencePiece BPE and
            Unigram, with or without byte fallback), or of plain pieces.
        special_too: give special tokens those of their names, as decoding shows them.

    Raises:
        ValueError: a tokenizer that joins its tokens in another way, so that they have no bytes of their own.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = None if backend is None else list(leaves(json.loads(backend.to_str())["decoder"]))
    kinds = {part["type"] for part in parts or []}
    if parts is None or not kinds <= SIDE_BY_SIDE | {"ByteLevel"}:
        raise ValueError(
            f"teacher_vocabulary='text' needs the bytes of each token, and a {type(tokenizer).__name__} with the "
            f"decoder {', '.join(sorted(kinds)) or 'of its own'} does not tell them. It reads byte-level tokenizers "
            "and SentencePiece ones (with a tokenizer.json). Choose models that have one."
        )
    added = tokenizer.added_tokens_decoder
    special = set(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}
    plain = plain_bytes(parts)
    found = {
        i: added[i].content.encode() if i in added else plain(piece)
        for piece, i in tokenizer.get_vocab().items()
        if special_too or i not in special
    }
    return found if tokenizer.eos_token_id is None else found | {tokenizer.eos_token_id: END}


def leaves(decoder: Mapping[str, Any] | None) -> Iterable[Mapping[str, Any]]:
    """The parts of a decoder that may be a sequence of others."""
    if decoder is None:
        return
    if decoder["type"] != "Sequence":
        yield decoder
        return
    for part in decoder["decoders"]:
        yield from leaves(part)


def plain_bytes(decoders: Sequence[Mapping[str, Any]]):
    """From a piece of the vocabulary to its bytes, as these decoders write it inside of a text."""
    kinds = {part["type"] for part in decoders}
    if "ByteLevel" in kinds:
        table = byte_characters()
        return lambda piece: bytes(table[x] for x in piece) if all(x in table for x in piece) else piece.encode()
    swaps = [(part["replacement"], " ") for part in decoders if part["type"] == "Metaspace"]
    swaps += [(part["pattern"]["String"], part["content"]) for part in decoders if part["type"] == "Replace"]

    def read(piece: str) -> bytes:
        if "ByteFallback" in kinds and (found := BYTE_PIECE.fullmatch(piece)):
            return bytes([int(found[1], 16)])
        for old, new in swaps:
            piece = piece.replace(old, new)
        return piece.encode()

    return read


def same_bytes(
    student: Mapping[int, bytes], teacher: Mapping[int, bytes], student_rows: int, teacher_rows: int
) -> dict[int, int]:
    """Student's id -> teacher's id of the same bytes, one to one, for ids that are rows of both LM heads.

    Of several ids with the same bytes the last one counts: in SentencePiece the single bytes stand first, and a
    tokenizer writes a character by its own piece where there is one.

    >>> same_bytes({0: b"a", 1: b"b", 2: b"a"}, {5: b"a", 6: b"c"}, 3, 7)
    {2: 5}
    """
    ids = {piece: i for i, piece in sorted(teacher.items()) if i < teacher_rows and piece}
    own = {piece: i for i, piece in sorted(student.items()) if i < student_rows and piece in ids}
    return {i: ids[piece] for piece, i in own.items()}


def text_of(pieces: Sequence[bytes | None]) -> str:
    """The text of an answer up to its end, to the first token without bytes, or to the first byte that is not text.

    >>> text_of([b"a", b"\\xe2\\x82", b"\\xac", END]), text_of([b"a", b"\\xe2"]), text_of([b"a", None, b"b"])
    ('a€', 'a', 'a')
    """
    ends = (i for i, piece in enumerate(pieces) if piece is None or piece == END)
    raw = b"".join(pieces[: next(ends, len(pieces))])
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        return raw[: error.start].decode()


def marked_ids(tokenizer: PreTrainedTokenizerBase, pieces: Mapping[int, bytes]) -> frozenset[int]:
    """Tokens that begin with the marker of a space, where the tokenizer puts one in front of every text.

    SentencePiece's do: they write `▁a` for `a`, and decoding takes the space away again.

    Args:
        tokenizer: writes.
        pieces: its `token_bytes`.
    """
    written = tokenizer.encode("a", add_special_tokens=False)
    if not written or not pieces.get(written[0], b"").startswith(b" "):
        return frozenset()
    marker = tokenizer.convert_ids_to_tokens(written[0])[0]
    return frozenset(i for piece, i in tokenizer.get_vocab().items() if piece.startswith(marker) and i in pieces)


def as_decoded(pieces: Sequence[bytes | None]) -> list[bytes | None]:
    """The pieces of an answer in which bytes that are no text are U+FFFD, as decoding shows them.

    What ends inside of a character belongs to the token that completes it, or to none at the end of the answer.

    >>> as_decoded([b"a", b"\\xe2", b"b"]), as_decoded([b"\\xe2", END]) == ["\\ufffd".encode(), END]
    ([b'a', b'', b'\\xef\\xbf\\xbdb'], True)
    """
    decoder, found, text = codecs.getincrementaldecoder("utf-8")("replace"), [], ""
    for piece in pieces:
        if piece is None or piece == END:
            if found and found[-1] is not None:
                found[-1] += (text + decoder.decode(b"", final=True)).encode()
            found.append(piece)
            text = ""
            decoder.reset()
            continue
        text += decoder.decode(piece)
        inside = bool(decoder.getstate()[0])
        found.append(b"" if inside else text.encode())
        text = text if inside else ""
    return found


def is_text(pieces: Sequence[bytes | None]) -> bool:
    """Are the bytes of an answer UTF-8, to its end?"""
    try:
        b"".join(piece or b"" for piece in pieces if piece != END).decode()
    except UnicodeDecodeError:
        return False
    return True


def without_marker(pieces: Sequence[bytes | None], text: str) -> list[bytes | None]:
    """The pieces of a text without the space that a tokenizer puts in front of it: some do not before another space.

    >>> without_marker([b" a", b" b"], "a b"), without_marker([b" a"], " a"), without_marker([b"  a"], " a")
    ([b'a', b' b'], [b' a'], [b' a'])
    """
    joined = b"".join(piece or b"" for piece in pieces).decode(errors="replace")
    if leading_spaces(joined) <= leading_spaces(text):
        return list(pieces)
    return [pieces[0][1:], *pieces[1:]]


def leading_spaces(text: str) -> int:
    """How many spaces it begins with.

    >>> leading_spaces("  a ")
    2
    """
    return len(text) - len(text.lstrip(" "))


def align(student: Sequence[bytes | None], teacher: Sequence[bytes | None]) -> list[tuple[int, int]]:
    """Cut both token sequences into the shortest spans that begin and end at the same byte.

    Where the bytes differ, where one side has a token without bytes, or where it ends inside of a span, the spans end:
    what both have read is the same text at the end of each of them.

    Args:
        student, teacher: bytes of each token; None: it has none.

    Returns:
        the ends of the spans, as (tokens of the student, tokens of the teacher) from the beginning.

    Example:
        >>> align([b"he", b"llo", b" you"], [b"hello", b" you"])
        [(2, 1), (3, 2)]
        >>> align([b"a", b"b", b"c"], [b"a", b"B", b"c"])
        [(1, 1)]
    """
    ends: list[tuple[int, int]] = []
    places, pieces = [0, 0], (student, teacher)
    pending = [b"", b""]
    while True:
        side = 0 if len(pending[0]) <= len(pending[1]) else 1
        if places[side] == len(pieces[side]) or (piece := pieces[side][places[side]]) is None:
            return ends
        pending[side] += piece
        places[side] += 1
        if len(pending[0]) == len(pending[1]) > 0:
            if pending[0] != pending[1]:
                return ends
            ends.append((places[0], places[1]))
            pending = [b"", b""]
