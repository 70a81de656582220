"""Do student and teacher mean the same token by the same id? Compared id by id, never by width."""

from collections.abc import Mapping


def check_same_vocabulary(student_vocab: Mapping[str, int], teacher_vocab: Mapping[str, int]) -> None:
    """Raise ValueError unless both tokenizers map the same tokens to the same ids.

    Args:
        student_vocab, teacher_vocab: `tokenizer.get_vocab()`, added tokens included.

    Example:
        >>> check_same_vocabulary({"a": 0, "b": 1}, {"b": 1, "a": 0})
    """
    if student_vocab == teacher_vocab:
        return
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
    raise ValueError(
        f"student and teacher have different vocabularies: {len(differing)} tokens differ, e.g. {examples} (student / "
        "teacher id), so their probabilities cannot be compared id by id. Choose a teacher of the student's tokenizer "
        "family; where the teacher's tokenizer only adds tokens that the student's head has rows for, pass it as the "
        "student's processing_class; for two unrelated tokenizers see TRL's GOLDTrainer."
    )


def shared_rows(student_rows: int, teacher_rows: int, vocab: Mapping[str, int]) -> int:
    """Return how many rows of both LM heads take part in the loss.

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
