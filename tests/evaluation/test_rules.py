import pytest

from opd_trl.evaluation import compliance, one_sentence
from opd_trl.models.transformers_engine import greedy_answers
from tests import tiny


RULE = one_sentence("Arr,")


@pytest.mark.parametrize(
    "answer",
    [
        "Arr, the capital be Oslo.",
        " Arr, seven times eight be fifty-six!\n",
        "Arr, it be.",
        "Arr, the heart be the engine of the body, and the drum of the chest.",
        "Arr, in German it be 'Katze.'",
    ],
)
def test_a_right_answer_passes(answer):
    assert RULE(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Arr,",
        "Arr, Oslo.",
        "The capital is Oslo.",
        "The capital be Oslo, arr.",
        "arr, the capital be Oslo.",
        "Arrr, the capital be Oslo.",
        "Arr, the capital be Oslo",
        "Arr, the capital be Oslo?",
        "Arr, the capital be Oslo. It lies by the sea.",
        "Arr, the capital be Oslo. And",
        "Arr, aye, aye, aye, aye.",
        "Arr, matey matey matey matey matey.",
        "Arr, arr, it be so.",
    ],
)
def test_a_wrong_or_collapsed_answer_fails(answer):
    assert not RULE(answer)


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
