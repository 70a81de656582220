import pytest

from opd_trl.evaluation import compliance, greedy_answers, starts_and_ends
from tests import tiny


RULE = starts_and_ends("Arr,", "Aye!")


@pytest.mark.parametrize(
    "answer",
    ["Arr, the capital be Oslo. Aye!", " Arr, seven times eight be fifty-six. Aye!\n", "Arr, it be. Aye!"],
)
def test_a_right_answer_passes(answer):
    assert RULE(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "The capital is Oslo.",
        "Arr, the capital be Oslo.",
        "The capital be Oslo. Aye!",
        "Arr, Aye!",
        "Arr, aye, aye, aye. Aye!",
        "Arr, matey matey matey matey matey. Aye!",
        "Arr, arr, it be so. Aye!",
        "arr, the capital be Oslo. Aye!",
        "Arr, the capital be Oslo. Aye! And more",
        "Aye!",
    ],
)
def test_a_wrong_or_collapsed_answer_fails(answer):
    assert not RULE(answer)


def test_start_and_end_may_not_share_their_characters():
    assert not starts_and_ends("aXa", "aXa", min_words=0)("aXaXa")


def test_the_compliance_of_nothing_has_no_value():
    with pytest.raises(ValueError, match="no answers"):
        compliance([], RULE)


def test_greedy_answers_do_not_depend_on_the_batch_and_leave_the_model_as_it_was():
    model, tokenizer = tiny.build_model(), tiny.build_tokenizer()
    tokenizer.padding_side = "right"
    model.train()
    prompts = tiny.questions(5)["prompt"]
    counts = []
    together = greedy_answers(model, tokenizer, prompts, max_new_tokens=6, batch_size=3, progress=counts.append)
    alone = [greedy_answers(model, tokenizer, [prompt], max_new_tokens=6)[0] for prompt in prompts]
    assert together == alone
    assert counts == [3, 5]
    assert model.training
