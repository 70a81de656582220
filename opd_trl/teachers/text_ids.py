"""A teacher of another tokenizer: which ids mean the same bytes, and which of its tokens stand for the student's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..models.sequences import unpadded
from .alignment import END, align, as_decoded, is_text, marked_ids, same_bytes, text_of, token_bytes, without_marker
from .scores import INDEX
from .vocabulary import SharedIds


#: Entries of a batch: the completion in the teacher's tokens `(B, S)`, and the span of each of them (-1: no loss).
TEXT_IDS, TEXT_MASK, TEXT_SPAN = "text_ids", "text_mask", "text_span"
#: The span of each token of the student `(B, T)`, -1 where both did not read the same text; the place of the token of
#: the teacher that begins it; and whether both have one token there, of the same bytes.
SPAN, PLACE, ALONE = "student_span", "text_place", "is_alone"
#: Share of the tokens that must stand in spans.
LEAST_ALIGNED = 0.5


class Aligned(NamedTuple):
    """One completion in the tokens of both.

    Attributes:
        ids: the teacher's.
        ends: of the spans, see `align`.
    """

    ids: list[int]
    ends: list[tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class TextPair:
    """Two tokenizers: which tokens of both have the same bytes, and a completion of the student in the tokens of both.

    Attributes:
        tokenizer: the teacher's.
        teacher_rows: of the teacher's head.
        student_bytes, teacher_bytes: from `token_bytes`.
        same: id of the student -> the teacher's id of the same bytes.
        student_marked, teacher_marked: from `marked_ids`.
        window: of the teacher; what does not fit is not aligned. None: no limit.
    """

    tokenizer: PreTrainedTokenizerBase
    teacher_rows: int
    student_bytes: dict[int, bytes]
    teacher_bytes: dict[int, bytes]
    same: dict[int, int]
    student_marked: frozenset[int]
    teacher_marked: frozenset[int]
    window: int | None = None

    def pieces(self, ids: Sequence[int]) -> list[bytes | None]:
        """The bytes of each token of a completion of the student, as decoding shows them."""
        pieces = [self.student_bytes.get(i) for i in ids]
        pieces = [pieces[0][1:], *pieces[1:]] if ids and ids[0] in self.student_marked else pieces
        return pieces if is_text(pieces) else as_decoded(pieces)

    def pieces_there(self, ids: Sequence[int], text: str) -> list[bytes | None]:
        """The bytes of each token of the teacher, by which it has written a text."""
        pieces = [self.teacher_bytes.get(i) for i in ids]
        return without_marker(pieces, text) if ids and ids[0] in self.teacher_marked else pieces

    def encode(self, text: str) -> list[int]:
        """The teacher's tokens of a text in which nothing is a special token."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def aligned(self, ids: Sequence[int], room: int | None = None) -> Aligned:
        """A completion of the student in the teacher's tokens, of which at most `room` are read."""
        pieces = self.pieces(ids)
        text = text_of(pieces)
        theirs = self.encode(text)
        read = self.pieces_there(theirs, text)
        if pieces and pieces[-1] == END and None not in pieces and b"".join(pieces[:-1]) == text.encode():
            theirs, read = [*theirs, self.tokenizer.eos_token_id], [*read, END]
        return Aligned(theirs[:room], align(pieces, read[:room]))

    def room(self, prompt_length: int) -> int | None:
        """How many tokens of a completion the teacher can read behind a prompt of so many; None: no limit."""
        return None if self.window is None else max(0, self.window - prompt_length)

    def columns(self, ids: Sequence[int], theirs: list[int], ends: list[tuple[int, int]]) -> dict[str, list[int]]:
        """One row of `TextIds.entries`, from a completion in the tokens of both and the ends of its spans."""
        span, place, alone, text_span = [], [], [], []
        for number, ((start, first), (end, last)) in enumerate(pairwise([(0, 0), *ends])):
            size, size_there = end - start, last - first
            is_alone = size == size_there == 1 and self.same.get(ids[start]) == theirs[first]
            span += [number] * size
            place += [first] * size
            alone += [is_alone] * size
            text_span += [number] * size_there
        mask = [1] * len(theirs)
        row = (span, place, alone, theirs, mask, text_span)
        return dict(zip((SPAN, PLACE, ALONE, TEXT_IDS, TEXT_MASK, TEXT_SPAN), row, strict=True))


@dataclass(frozen=True, kw_only=True)
class TextIds(SharedIds):
    """`SharedIds` of a student and teachers of other tokenizers: ids whose bytes are one token of each of them too.

    The end tokens of all mean the same. Built by `text_ids`.

    Attributes:
        pairs: the student's tokenizer with that of each teacher, in their order.
    """

    pairs: tuple[TextPair, ...]
    reads_text: ClassVar[bool] = True

    def both(self, other: SharedIds) -> SharedIds:
        common = super().both(other)
        ids = set(common.knows(torch.arange(common.num_rows)).nonzero().flatten().tolist())
        pairs = tuple(
            replace(pair, same={i: j for i, j in pair.same.items() if i in ids}) for pair in self.pairs + other.pairs
        )
        return TextIds(**vars(common), pairs=pairs)

    def readable(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch with the completions in the tokens of each row's teacher."""
        return batch if TEXT_IDS in batch else batch | self.entries(batch)

    def pair_of(self, batch: dict[str, Any], row: int) -> TextPair:
        """The tokenizers of the student and of the teacher of a row."""
        return self.pairs[int(batch[INDEX][row]) if INDEX in batch else 0]

    def entries(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The entries of a batch that `TextTeacher` reads, from its completions and the teacher's prompts."""
        prompts, completions = batch["teacher_prompt_mask"].sum(-1).tolist(), unpadded(batch, "completion")
        rows = []
        for row, (ids, length) in enumerate(zip(completions, prompts, strict=True)):
            pair = self.pair_of(batch, row)
            rows.append(pair.columns(ids, *pair.aligned(ids, pair.room(length))))
        width = batch["completion_ids"].size(1)
        widths = dict.fromkeys((SPAN, PLACE, ALONE), width) | dict.fromkeys(
            (TEXT_IDS, TEXT_MASK, TEXT_SPAN), max(1, *(len(row[TEXT_IDS]) for row in rows))
        )
        fill = dict.fromkeys(widths, 0) | {SPAN: -1, TEXT_SPAN: -1}
        columns = {
            name: torch.tensor([row[name] + [fill[name]] * (widths[name] - len(row[name])) for row in rows])
            for name in widths
        }
        columns[ALONE] = columns[ALONE].bool()
        return {name: x.to(batch["completion_ids"].device) for name, x in columns.items()}


def span_sizes(span: Tensor) -> Tensor:
    """Tokens of each span `(B, L)`, by its number, from the span of each token `(B, L)`; -1 is none.

    >>> span_sizes(torch.tensor([[0, 1, 1, -1]])).tolist()
    [[1, 2, 0, 0]]
    """
    return torch.zeros_like(span).scatter_add_(1, span.clamp(min=0), (span >= 0).long())


def whole_spans(span: Tensor, kept: Tensor) -> Tensor:
    """`(B, T)` bool: the kept tokens of spans of which every token is kept.

    >>> whole_spans(torch.tensor([[0, 1, 1, 2, -1]]), torch.tensor([[1, 1, 0, 1, 1]]))
    tensor([[ True, False, False,  True, False]])
    """
    lost = span_sizes(span.masked_fill(kept.bool(), -1)).gather(1, span.clamp(min=0))
    return kept.bool() & (span >= 0) & (lost == 0)


def text_ids(
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    student_rows: int,
    teacher_rows: int,
) -> TextIds:
    """Compare the bytes of two vocabularies.

    Args:
        student, teacher: their tokenizers.
        student_rows, teacher_rows: of their LM heads.

    Raises:
        ValueError: a tokenizer without bytes of its tokens or without an end token, no token in common.
    """
    own, theirs = token_bytes(student), token_bytes(teacher)
    if END not in theirs.values():
        raise ValueError(
            "the teacher's tokenizer has no EOS token, so the student would not learn to stop. Set the one that ends "
            "a turn of the teacher, e.g. eos_token = '<|im_end|>'."
        )
    ids = same_bytes(own, theirs, student_rows, teacher_rows)
    own = token_bytes(student, special_too=True)  # what it writes must have a loss, or it would escape into it
    if not ids:
        raise ValueError(
            "no token of the student has the bytes of a token of the teacher. Choose a teacher with a vocabulary "
            "nearer to the student's."
        )
    size = len(student.get_vocab())
    note = (
        f"teacher_vocabulary: text. {len(ids):,} of the student's {size:,} tokens ({len(ids) / size:.2%}) "
        "have the same bytes as a token of the teacher and are compared where both write one token. Elsewhere the "
        f"log-probabilities of the text are. The student's {student.eos_token!r} is the teacher's "
        f"{teacher.eos_token!r}."
    )
    pair = TextPair(
        tokenizer=teacher,
        teacher_rows=teacher_rows,
        student_bytes=own,
        teacher_bytes=theirs,
        same=ids,
        student_marked=marked_ids(student, own),
        teacher_marked=marked_ids(teacher, theirs),
    )
    return TextIds.of(ids, student_rows, left_out=size - len(ids), notes=(note,), pairs=(pair,))


def check_aligned(pair: TextPair, student: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    """Raise ValueError where less than half of the student's tokens of texts can be aligned."""
    rows = [student.encode(text, add_special_tokens=False) for text in texts]
    share = aligned_share(pair, rows)
    if share < LEAST_ALIGNED:
        worst = min((row for row in rows if row), key=lambda row: aligned_share(pair, [row]))
        end = next(reversed(pair.aligned(worst).ends), (0, 0))[0]
        raise ValueError(
            f"{share:.0%} of the student's tokens of the first prompts can be aligned with the teacher's, and "
            f"{LEAST_ALIGNED:.0%} must be. The teacher's tokenizer reads another text from "
            f"{student.decode(worst[end : end + 8])!r} on: it changes it (lower case, normal forms, spaces), or "
            "does not know a character. Choose a teacher whose tokenizer gives every text back as it was."
        )


def aligned_share(pair: TextPair, rows: Sequence[Sequence[int]]) -> float:
    """Share of the student's tokens of rows that stand in spans."""
    found = [pair.aligned(ids).ends for ids in rows]
    return sum(ends[-1][0] for ends in found if ends) / max(1, sum(map(len, rows)))
