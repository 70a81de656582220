"""Two tokenizers over one text: what is kept was read alike by both, whatever they do to it."""

from functools import cache
from itertools import accumulate, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from opd_trl.teachers.alignment import text_of
from opd_trl.teachers.text_ids import ALONE, PLACE, TextPair, text_ids
from tests.two_tokenizers import KINDS, SCRIPTS, build


FAITHFUL = ("byte-level", "byte-level 2", "unigram", "llama")
STUDENTS = (*FAITHFUL, "characters")
LETTERS = "aeiot nThA,.019éßÄñ жыёБ 日本語天 नमस्ते ق م ﬁ①ｶ \uff21 😀👍🏽 \u0301\u200d\u00a0\n\t\r  ▁Ġ<>/|s\x00\ufffd"
texts = st.one_of(
    st.text(st.sampled_from(LETTERS), max_size=30),
    st.text(max_size=12),
    st.lists(st.sampled_from(SCRIPTS), max_size=2).map(" ".join),
    st.sampled_from(["</s> and </s>", "<|end|>a", "<0x41>b", " x", "  x", "▁x", ""]),
)


@cache
def pair(student: str, teacher: str) -> TextPair:
    return pair_of(build(student), build(teacher))


def pair_of(own, theirs) -> TextPair:
    return text_ids(own, theirs, len(own), len(theirs)).pairs[0]


def read(tokenizer, ids) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def check(student: str, teacher: str, ids: list[int]) -> list[tuple[int, int]]:
    """Align a completion; both tokenizers themselves must decode all it keeps to the same text."""
    shared, own = pair(student, teacher), build(student)
    theirs, ends = found = shared.aligned(ids)
    if ends and theirs[ends[-1][1] - 1] == build(teacher).eos_token_id:
        assert ends[-1] == (len(ids), len(theirs))
        assert ids[-1] == own.eos_token_id
        ids, theirs, ends = ids[:-1], theirs[:-1], ends[:-1]
    for (start, first), (end, last) in pairwise([(0, 0), *ends]):
        assert end > start
        assert last > first
        mine, other = read(own, ids[:end]), read(build(teacher), theirs[:last])
        if (
            "\ufffd" in mine.removesuffix("\ufffd") or "\ufffd" in other
        ):  # inside of a character, or the character itself
            continue
        # A tokenizer with a marker may write a space that is there as that marker, which decoding takes away.
        assert other == mine or (shared.teacher_marked and " " + other == mine)
    lengths = [
        [0, *accumulate(len(piece) for piece in pieces)]
        for pieces in (
            [piece or b"" for piece in shared.pieces(ids)],
            [piece or b"" for piece in shared.pieces_there(theirs, text_of(shared.pieces(ids)))],
        )
    ]
    for (start, first), (end, last) in pairwise([(0, 0), *ends]):
        inside = set(lengths[0][start + 1 : end]) & set(lengths[1][first + 1 : last])
        assert not inside - {lengths[0][start], lengths[0][end]}, "a shorter span ends here"
    row = shared.columns(ids, theirs, ends)
    for i, place in ((i, place) for i, place in enumerate(row[PLACE]) if row[ALONE][i]):
        assert shared.student_bytes[ids[i]] == shared.teacher_bytes[theirs[place]], (
            "with the marker of a space, if any"
        )
    return found.ends


@settings(max_examples=300, deadline=None)
@given(student=st.sampled_from(STUDENTS), teacher=st.sampled_from(KINDS), text=texts)
def test_every_kept_position_has_the_same_text_before_it(student, teacher, text):
    ids = build(student).encode(text, add_special_tokens=False, split_special_tokens=True)
    ends = check(student, teacher, [*ids, build(student).eos_token_id])
    if student in FAITHFUL and teacher in FAITHFUL and not any(x in text for x in ("</s>", "<0x", "▁")):
        assert ends[-1][0] == len(ids) + 1, "nothing is lost where both give the text back"


@settings(max_examples=300, deadline=None)
@given(student=st.sampled_from(STUDENTS), teacher=st.sampled_from(KINDS), data=st.data())
def test_tokens_in_any_order_are_never_misaligned(student, teacher, data):
    """Half characters, special tokens in the middle, pieces that the tokenizer itself would write otherwise."""
    check(student, teacher, data.draw(st.lists(st.integers(0, len(build(student)) - 1), max_size=12)))


def test_what_is_no_text_is_read_as_decoding_shows_it():
    """It has a loss: a student could escape into what has none."""
    own, theirs = build.__wrapped__("byte-level"), build("unigram")
    own.add_tokens(["<think>"])
    own.add_tokens(["<|turn|>"], special_tokens=True)
    shared = pair_of(own, theirs)
    first, last, half = own.encode("one"), own.encode(" two"), own.encode("é")[:1]
    for odd, shown in ((own.encode("<think>"), "<think>"), (own.encode("<|turn|>"), "<|turn|>"), (half, "\ufffd")):
        ids, ends = shared.aligned([*first, *odd, *last, own.eos_token_id])
        assert read(theirs, ids) == f"one{shown} two</s>"
        assert ends[-1] == (len(first) + len(odd) + len(last) + 1, len(ids))
    assert own.convert_tokens_to_ids("<|turn|>") not in shared.same
    ids, ends = shared.aligned([*first, *half, own.eos_token_id])
    assert read(theirs, ids) == "one\ufffd</s>"
    assert shared.aligned([*first, *half]).ends[-1][0] == len(first)  # cut off inside of a character
