import pytest
import torch
from tokenizers import ByteLevelBPETokenizer, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from opd_trl.trainers.figures import is_recorded, token_texts
from tests import tiny


TEXTS = ["plain words here", "größer als 3 €", "日本語 and 🙂🙃 emoji", " leading space", "tab\tand\n\nlines", ""]


@pytest.fixture(scope="module")
def byte_tokenizer():
    """One token per byte: every character beyond ASCII is spread over several."""
    inner = ByteLevelBPETokenizer()
    inner.train_from_iterator(["x"], vocab_size=256, show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=inner._tokenizer)


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_of_a_text_read_as_the_text(byte_tokenizer, text):
    for tokenizer in (byte_tokenizer, tiny.build_tokenizer()):
        if tokenizer is not byte_tokenizer and not text.isascii():
            continue
        ids = tokenizer.encode(text, add_special_tokens=False)
        texts = token_texts(tokenizer, ids)
        assert len(texts) == len(ids)
        assert "".join(texts) == text


def test_a_character_of_several_tokens_stands_with_the_last_of_them(byte_tokenizer):
    ids = byte_tokenizer.encode("a€b", add_special_tokens=False)
    assert token_texts(byte_tokenizer, ids) == ["a", "", "", "€", "b"]


def test_bytes_that_are_no_text_do_not_hold_up_what_follows(byte_tokenizer):
    euro = byte_tokenizer.encode("€", add_special_tokens=False)
    a = byte_tokenizer.encode("a", add_special_tokens=False)
    texts = token_texts(byte_tokenizer, [*euro[:2], *a, *a, *euro[:1]])  # cut off in the middle, twice
    assert len(texts) == 5
    assert "".join(texts).replace("\ufffd", "") == "aa"


def test_the_space_that_a_tokenizer_drops_from_a_first_word_is_there():
    inner = Tokenizer(models.WordLevel({"\u2581a": 0, "\u2581b": 1, "?": 2}, unk_token="?"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    assert tokenizer.decode([1]) == "b"
    assert token_texts(tokenizer, [0, 1, 1, 0]) == ["a", " b", " b", " a"]


def test_special_tokens_are_shown():
    tokenizer = tiny.build_tokenizer()
    assert token_texts(tokenizer, [*tokenizer.encode("ab", add_special_tokens=False), 2]) == ["a", "b", "<|im_end|>"]


@pytest.mark.parametrize(("max_steps", "expected"), [(5, 1), (100, 11), (1000, 101), (1001, 51), (50_000, 101)])
def test_long_runs_space_their_samples_out(max_steps, expected):
    recorded = [step for step in range(1, max_steps + 1) if is_recorded(step, max_steps)]
    assert recorded[0] == 1
    assert len(recorded) == expected
    assert all(step % 10 == 0 for step in recorded[1:])


def test_pieces_do_not_depend_on_the_random_state(byte_tokenizer):
    torch.manual_seed(0)
    ids = torch.randint(256, (200,)).tolist()
    assert len(token_texts(byte_tokenizer, ids)) == 200
