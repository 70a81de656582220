"""Do student and teacher mean the same token by the same id? Compared id by id, never by width."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor


#: Which vocabularies a teacher may have: that of the student, one that shares most of its ids, or another (`text`).
TeacherVocabulary = Literal["auto", "same", "shared", "text"]
TEACHER_VOCABULARIES = get_args(TeacherVocabulary)
#: Share of the student's ids that must mean the same token to the teacher.
LEAST_SHARE = {"auto": 0.99, "shared": 0.5}
#: What to do about a vocabulary that shares more than it is asked for.
SHARE_IT = "Set teacher_vocabulary: shared to compare those alone"
#: Entries of a batch with tokens that a teacher reads.
READ_BY_TEACHER = ("prompt_ids", "teacher_prompt_ids", "completion_ids")


@dataclass(frozen=True)
class SharedIds:
    """Ids that mean the same token to student and teacher: those below `num_rows` that are not `excluded`.

    Attributes:
        num_rows: rows of both LM heads that are read.
        excluded: `(E,)` int64, sorted ids below `num_rows`; None where there are none.
        is_whole: are these all ids of the student's head?
        left_out: tokens of the student's tokenizer that are not among them.
        notes: what a user should know of it, a line each.
        reads_text: does the teacher read the student's completion as text, in its own tokens?
    """

    num_rows: int
    excluded: Tensor | None = None
    is_whole: bool = True
    left_out: int = 0
    notes: tuple[str, ...] = ()
    reads_text: ClassVar[bool] = False

    @classmethod
    def of(cls, ids: Iterable[int], student_rows: int, **others: Any) -> "SharedIds":
        """From the ids themselves, one at least.

        >>> SharedIds.of([0, 1, 3], student_rows=5).rows
        (4, tensor([2]))
        """
        shared = torch.tensor(sorted(ids))
        num_rows = int(shared[-1]) + 1
        excluded = torch.ones(num_rows, dtype=torch.bool).index_fill_(0, shared, False).nonzero().flatten()
        return cls(num_rows, excluded if len(excluded) else None, len(shared) == student_rows, **others)

    @staticmethod
    def of_all(parts: Iterable["SharedIds"]) -> "SharedIds":
        """Those that the student shares with each of several teachers."""
        return reduce(lambda one, other: one.both(other), parts)

    @property
    def num_ids(self) -> int:
        """How many ids are shared."""
        return self.num_rows - (0 if self.excluded is None else len(self.excluded))

    @property
    def rows(self) -> tuple[int, Tensor | None]:
        """The arguments of `Head.rows`: how many rows, and which ids of them are left out."""
        return self.num_rows, self.excluded

    def knows(self, ids: Tensor) -> Tensor:
        """Bool, of the shape of `ids`: does the teacher know them?"""
        known = ids < self.num_rows
        return known if self.excluded is None else known & ~torch.isin(ids, self.excluded.to(ids.device))

    def both(self, other: "SharedIds") -> "SharedIds":
        """Those that are shared here and there."""
        num_rows = min(self.num_rows, other.num_rows)
        excluded = [x[x < num_rows] for x in (self.excluded, other.excluded) if x is not None]
        joined = torch.cat(excluded).unique() if excluded else None
        is_whole, left_out = self.is_whole and other.is_whole, max(self.left_out, other.left_out)
        return SharedIds(num_rows, joined, is_whole, left_out, self.notes + other.notes)

    def readable(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch in which tokens that the teacher does not know are another one: nothing behind them has a loss."""
        if self.is_whole:
            return batch
        known_id = int(self.knows(torch.arange(self.num_rows)).nonzero()[-1])
        found = {name: batch[name] for name in READ_BY_TEACHER if name in batch}
        return batch | {name: ids.masked_fill(~self.knows(ids), known_id) for name, ids in found.items()}


def compare_vocabularies(
    student_vocab: Mapping[str, int],
    teacher_vocab: Mapping[str, int],
    student_rows: int,
    teacher_rows: int,
    *,
    choice: TeacherVocabulary = "auto",
    student_end: str | None = None,
    teacher_end: str | None = None,
) -> SharedIds:
    """The ids on which student and teacher are compared.

    Args:
        student_vocab, teacher_vocab: `tokenizer.get_vocab()`, added tokens included.
        student_rows, teacher_rows: of their LM heads.
        choice: see `find_shared`.
        student_end, teacher_end: the token that ends an answer; None where it is not known.

    Raises:
        ValueError: vocabularies that differ by more, heads that are too small for the tokenizer.

    Example:
        >>> vocab = {str(i): i for i in range(200)}
        >>> shared = compare_vocabularies(vocab | {"<new>": 200}, vocab, 256, 256)
        >>> shared.num_rows, shared.left_out
        (200, 1)
    """
    if student_vocab == teacher_vocab:
        num_rows = shared_rows(student_rows, teacher_rows, student_vocab)
        return SharedIds(num_rows, is_whole=num_rows >= student_rows)
    shared = find_shared(student_vocab, teacher_vocab, choice, min(student_rows, teacher_rows))
    mine, theirs = ({x: i for x, i in vocab.items() if i not in shared} for vocab in (student_vocab, teacher_vocab))
    notes = [
        f"teacher_vocabulary: shared. {len(shared):,} of the student's {len(student_vocab):,} tokens "
        f"({len(shared) / len(student_vocab):.2%}) are the teacher's too and are compared. Left out: of the student's "
        f"{shown(mine)}; of the teacher's {shown(theirs)}."
    ]
    if student_end in mine or (None not in (student_end, teacher_end) and student_end != teacher_end):
        why = "the teacher does not know" if student_end in mine else f"is not the teacher's {teacher_end!r}"
        notes.append(
            f"The student's answers end with {student_end!r}, which {why}: the student does not learn from this "
            "teacher when to stop. Choose a teacher with the student's end token, or give the student the teacher's."
        )
    return SharedIds.of(shared, student_rows, left_out=len(mine), notes=tuple(notes))


def find_shared(
    student_vocab: Mapping[str, int],
    teacher_vocab: Mapping[str, int],
    choice: TeacherVocabulary,
    num_rows: int | None = None,
    *,
    remedy: str = SHARE_IT,
) -> set[int]:
    """Ids, below `num_rows`, that mean the same token in both vocabularies.

    Args:
        student_vocab, teacher_vocab, choice: as `compare_vocabularies` takes them.
        num_rows: of the smaller head.
        remedy: what an error advises where half of them are shared.

    Raises:
        ValueError: `same` refuses all vocabularies that differ, `auto` those with less than 99 % of the student's ids
            in common, `shared` those with less than half.
    """
    shared = {i for token, i in student_vocab.items() if teacher_vocab.get(token) == i}
    shared = {i for i in shared if num_rows is None or i < num_rows}
    share = len(shared) / max(1, len(student_vocab))
    if choice == "same" or share < LEAST_SHARE[choice]:
        refuse(student_vocab, teacher_vocab, share, choice, remedy)
    return shared


def check_same_vocabulary(
    student_vocab: Mapping[str, int], teacher_vocab: Mapping[str, int], *, remedy: str = SHARE_IT
) -> None:
    """Raise ValueError unless both tokenizers map the same tokens to the same ids.

    Args:
        student_vocab, teacher_vocab: `tokenizer.get_vocab()`, added tokens included.
        remedy: see `find_shared`.

    Example:
        >>> check_same_vocabulary({"a": 0, "b": 1}, {"b": 1, "a": 0})
    """
    if student_vocab != teacher_vocab:
        find_shared(student_vocab, teacher_vocab, "same", remedy=remedy)


def refuse(
    student_vocab: Mapping[str, int],
    teacher_vocab: Mapping[str, int],
    share: float,
    choice: TeacherVocabulary,
    remedy: str,
) -> None:
    """Raise ValueError for two vocabularies that differ by more than the choice allows."""
    differing = sorted(
        (
            token
            for token in student_vocab.keys() | teacher_vocab.keys()
            if student_vocab.get(token) != teacher_vocab.get(token)
        ),
        key=lambda token: (student_vocab.get(token, -1), token),
    )
    examples = ", ".join(
        f"{token!r} ({student_vocab.get(token, 'absent')} / {teacher_vocab.get(token, 'absent')})"
        for token in differing[:3]
    )
    if choice != "shared" and share >= LEAST_SHARE["shared"]:
        remedy = f"{remedy}, or choose a teacher of the student's family."
    else:
        remedy = (
            "Set teacher_vocabulary: text for a teacher of another tokenizer, or choose one of the student's family."
        )
    raise ValueError(
        f"student and teacher have different vocabularies: {len(differing)} tokens differ, e.g. {examples} (student / "
        f"teacher id), and {share:.1%} of the student's ids mean the same token to the teacher (teacher_vocabulary: "
        f"{choice} needs {LEAST_SHARE.get(choice, 1.0):.0%}). {remedy}"
    )


def shown(tokens: Mapping[str, int], most: int = 5) -> str:
    """The first few tokens by id, and how many follow."""
    if not tokens:
        return "none"
    names = [repr(token) for token in sorted(tokens, key=tokens.get)]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def shared_rows(student_rows: int, teacher_rows: int, vocab: Mapping[str, int]) -> int:
    """Return how many rows of both LM heads take part in the loss, for equal vocabularies.

    Heads of equal width are used whole. Heads padded to different widths are cut to the rows that the tokenizer
    really uses, in both models, so that both distributions are normalised over the same ids.

    Raises:
        ValueError: a head has fewer rows than the tokenizer has ids.

    Example:
        >>> shared_rows(151936, 152064, {"<a>": 0, "<z>": 151668})
        151669
    """
    if student_rows == teacher_rows:
        return student_rows
    real_rows = max(vocab.values()) + 1
    if min(student_rows, teacher_rows) < real_rows:
        raise ValueError(
            f"the tokenizer uses {real_rows} ids, but the heads have {student_rows} (student) and {teacher_rows} "
            "(teacher) rows. Resize the smaller model's embeddings, or choose a teacher with the whole vocabulary."
        )
    return real_rows
