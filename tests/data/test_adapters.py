import pytest
from datasets import Dataset

from opd_trl.data.adapters import ADAPTERS, RejectedRow, mapped
from opd_trl.data.files import read_jsonl
from opd_trl.data.sources import load_named
from opd_trl.evaluation.boxes import single_boxed_answer

from .conftest import user


# A made-up row for each data set, in the columns that its card on the hub states.
ROWS = {
    "gsm8k": {"question": "2 + 2, twice?", "answer": "2 + 2 = <<2+2=4>>4\n4 * 300 = <<4*300=1200>>1,200\n#### 1,200"},
    "math500": {
        "problem": "What is $1+1$?",
        "solution": "It is $\\boxed{2}$.",
        "answer": "2",
        "subject": "Algebra",
        "level": 1,
        "unique_id": "test/algebra/1.json",
    },
    "aime24": {
        "id": 60,
        "problem": "Find x.",
        "solution": "\\boxed{204}",
        "answer": "204",
        "url": "u",
        "year": "2024",
    },
    "aime25": {"problem": "Find x.", "answer": "70", "id": "0"},
    "openthoughts_math": {
        "problem": "Find x.",
        "deepseek_reasoning": "Hm.",
        "deepseek_solution": "4",
        "ground_truth_solution": "So \\boxed{4}.",
        "domain": "math",
        "source": "olympiads",
        "test_cases": None,
        "starter_code": None,
    },
    "dapo_math": {"prompt": "Find x.", "solution": "34", "data_source": "math_dapo", "ability": "MATH"},
    "dapo_math_original": {
        "data_source": "math_dapo",
        "prompt": [
            {
                "role": "user",
                "content": "Solve the following math problem step by step. The last line of your response should be "
                "of the form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
                "Find x.\n\n"
                'Let y = 2.\n\nRemember to put your answer on its own line after "Answer:".',
            }
        ],
        "ability": "MATH",
        "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": "i"},
    },
    "wildguardmix": {
        "prompt": "How do I tie a knot?",
        "adversarial": False,
        "response": None,
        "response_harm_label": None,
        "response_refusal_label": None,
        "prompt_harm_label": "unharmful",
        "subcategory": "benign",
    },
    "svamp": {
        "ID": "chal-1",
        "Body": "Jo had 8 pens and lost 3.",
        "Question": "How many are left?",
        "Equation": "( 8.0 - 3.0 )",
        "Answer": "5.0",
        "Type": "Subtraction",
        "question_concat": "",
    },
}
PROMPTS = {
    "gsm8k": "2 + 2, twice?",
    "math500": "What is $1+1$?",
    "dapo_math_original": "Find x.\n\nLet y = 2.",
    "wildguardmix": "How do I tie a knot?",
    "svamp": "Jo had 8 pens and lost 3. How many are left?",
}
ANSWERS = {
    "gsm8k": "1200",
    "math500": "2",
    "aime24": "204",
    "aime25": "70",
    "openthoughts_math": "4",
    "dapo_math": "34",
    "dapo_math_original": "34",
    "svamp": "5",
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_row_of_every_data_set_becomes_one_of_ours(name):
    adapter = ADAPTERS[name]
    assert set(adapter.columns) <= ROWS[name].keys()
    row = adapter.to_row({column: ROWS[name][column] for column in adapter.columns})
    assert row["prompt"] == user(PROMPTS.get(name, "Find x."))
    assert row.get("answer") == ANSWERS.get(name)


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_data_set_loads_from_a_copy_of_its_layout(name, here):
    path = here / "copy.parquet"
    Dataset.from_list([ROWS[name]]).to_parquet(path)
    assert [ADAPTERS[name].to_row(row)["prompt"] for row in load_named(name, path=str(path))]


def test_the_reference_solution_is_kept_where_there_is_one():
    made = {name: ADAPTERS[name].to_row(ROWS[name]) for name in ADAPTERS}
    assert made["gsm8k"]["solution"] == "2 + 2 = 4\n4 * 300 = 1,200\n\\boxed{1200}"
    assert made["openthoughts_math"]["solution"] == "So \\boxed{4}."
    assert {name for name in made if "solution" not in made[name]} == {
        "aime25",
        "dapo_math",
        "dapo_math_original",
        "wildguardmix",
    }


def test_safety_prompts_keep_their_labels():
    row = ADAPTERS["wildguardmix"].to_row(ROWS["wildguardmix"])
    assert (row["harmful"], row["adversarial"], row["category"]) == (False, False, "benign")


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("gsm8k", {"answer": "It is 4."}, "no answer after ####"),
        ("gsm8k", {"question": "  "}, "empty prompt"),
        ("openthoughts_math", {"domain": "code"}, "not mathematics"),
        ("openthoughts_math", {"ground_truth_solution": "It is 4."}, "solution: no box"),
        ("openthoughts_math", {"ground_truth_solution": None}, "solution: no box"),
        ("openthoughts_math", {"ground_truth_solution": r"\boxed{1} or \boxed{2}"}, "solution: several boxes"),
        ("wildguardmix", {"prompt_harm_label": None}, "no harm label"),
    ],
)
def test_what_is_no_example_is_rejected_with_a_reason(name, change, reason):
    with pytest.raises(RejectedRow, match=f"^{reason}$"):
        ADAPTERS[name].to_row(ROWS[name] | change)


def test_a_column_mapping_takes_text_and_messages():
    to_row = mapped({"prompt": "question", "answer": "label", "level": "hard"})
    made = to_row({"question": "1+1?", "label": 2, "hard": True, "other": 0})
    assert made == {"prompt": user("1+1?"), "answer": "2", "level": True}
    chat = [{"role": "system", "content": "Be brief."}, *user("1+1?")]
    assert mapped({"prompt": "prompt"})({"prompt": chat})["prompt"] == chat
    for wrong in (7, [], ["text"], [{"role": "system", "content": "Be brief."}], user(" ")):
        with pytest.raises(RejectedRow):
            mapped({"prompt": "prompt"})({"prompt": wrong})


@pytest.mark.parametrize(
    ("name", "file", "count"),
    [
        ("gsm8k", "gsm8k/test.jsonl", 1319),
        ("math500", "math500/test.jsonl", 500),
        ("aime24", "aime24/test.jsonl", 30),
        ("aime25", "aime25/test.jsonl", 30),
        ("svamp", "svamp/test.jsonl", 1000),
    ],
)
def test_real_files_are_read_whole(name, file, count, real):
    rows = [ADAPTERS[name].to_row(row) for row in load_named(name, path=str(real(file)))]
    assert len(rows) == count
    assert all(row["prompt"][0]["content"] and row["answer"] for row in rows)
    assert "####" not in str(rows)


def test_the_boxes_of_real_solutions_hold_the_real_answers(real):
    pairs = [(ADAPTERS["math500"].to_row(row), row) for row in read_jsonl(real("math500/test.jsonl"))]
    boxed = [single_boxed_answer(row["solution"]).answer for row, _ in pairs]
    assert sum(answer == row["answer"] for answer, (row, _) in zip(boxed, pairs, strict=True)) > 480
