import math

import pytest
import torch

from opd_trl.suites.retention_suite import gives_answer, make_scorer, pooled, score_texts
from tests import tiny


TEXTS = ["A plain text.", "Another one, which is longer than the first.", "ab"]


def test_scores_are_the_losses_of_the_model_itself():
    model, tokenizer = tiny.build_model().eval(), tiny.build_tokenizer()
    scores = score_texts(TEXTS, tokenizer, make_scorer(model), batch_size=2)
    for text, score in zip(TEXTS, scores, strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            loss = model(input_ids=ids, labels=ids).loss.item()
        assert score.num_tokens == len(text) - 1 == score.num_bytes
        assert score.nats == pytest.approx(loss * score.num_tokens, rel=1e-4)


def test_every_token_weighs_the_same_whatever_its_text():
    model, tokenizer = tiny.build_model().eval(), tiny.build_tokenizer()
    scores = score_texts(TEXTS, tokenizer, make_scorer(model))
    total, tokens = sum(score.nats for score in scores), sum(score.num_tokens for score in scores)
    found = pooled(scores)
    assert found["nats per token, pooled"] == pytest.approx(total / tokens)
    assert found["perplexity"] == pytest.approx(math.exp(total / tokens))
    assert found["nats per byte, pooled"] == pytest.approx(total / tokens)


def test_a_text_that_is_too_short_to_score_is_named():
    with pytest.raises(ValueError, match="'a'"):
        score_texts(["a"], tiny.build_tokenizer(), make_scorer(tiny.build_model()))


@pytest.mark.parametrize(
    ("text", "answers", "right"),
    [
        ("Paris", ["Paris"], True),
        ("The capital of France is Paris.", ["Paris"], True),
        ("PARIS!", ["Paris"], True),
        ("It is twenty-four.", ["24", "twenty-four"], True),
        ("1,024", ["1024"], True),
        ("Sao Paulo", ["São Paulo"], True),
        ("It is Lyon. Not Paris.", ["Paris"], False),
        ("Parisian", ["Paris"], False),
        ("124", ["24"], False),
        ("2.5", ["5"], False),
        ("", ["Paris"], False),
        ("so " * 50 + "Paris", ["Paris"], False),
    ],
)
def test_a_short_answer_is_looked_for_as_words_of_the_first_sentence(text, answers, right):
    assert gives_answer(text, answers) is right
