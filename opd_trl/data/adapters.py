r"""Known data sets by name: where each lies, which columns it has, how a row of it becomes one of ours.

One of our rows: `prompt` (messages), `answer` (text), and `solution` (text) where the data set has one. A recipe
that shows it to the teacher alone names the column: `privileged_context_column: solution`. Columns, configurations
and splits are those that the hub's cards state.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..evaluation.boxes import single_boxed_answer
from ..evaluation.notation import plain_answer
from ..foreign import is_missing
from .files import Row
from .prompts import RowError, look_at, plain


#: A row that is not an example; `what` is the reason under which it is counted.
RejectedRow = RowError


@dataclass(frozen=True)
class Adapter:
    """A data set that is known by name.

    Args:
        hub_id, config, split: what `datasets.load_dataset` is asked for.
        columns: what `to_row` reads of a row.
        to_row: from a row of the data set to one of ours; raises RejectedRow.
        about: one line for `opd-trl data list`.
        gated: does the hub ask for a token and an accepted licence?
    """

    hub_id: str
    config: str | None
    split: str
    columns: tuple[str, ...]
    to_row: Callable[[Row], Row]
    about: str
    gated: bool = False


def chat(question: str) -> list[dict[str, str]]:
    """A question as the one user turn of a conversation; raises RejectedRow where it is empty."""
    if not question or not question.strip():
        raise RejectedRow("empty prompt")
    return [{"role": "user", "content": question.strip()}]


def filled(row: Row, column: str) -> Any:
    """The value of a column; raises RejectedRow where it is missing: None, NaN, a blank text or a list of nothing.

    >>> filled({"answer": float("nan")}, "answer")
    Traceback (most recent call last):
    opd_trl.data.prompts.RowError: no answer. Fill it, or leave the column out.
    """
    value = row[column]
    if is_missing(value) or value == [] or (isinstance(value, str) and not value.strip()):
        raise RejectedRow(f"no {column}", "Fill it, or leave the column out.")
    if isinstance(value, bytes):
        raise RejectedRow(f"{column} of type bytes", "Make a text of it.")
    return value


def mapped(columns: dict[str, str]) -> Callable[[Row], Row]:
    """A `to_row` that renames columns, from our names to those of the rows. Lists of text parts become one text.

    A row whose answer is missing is rejected: None, NaN and blank texts.

    Args:
        columns: e.g. `{"prompt": "question", "answer": "label"}`; `prompt` is needed. Others keep their values.

    Example:
        >>> mapped({"prompt": "q", "answer": "a"})({"q": "1 + 1?", "a": 2, "id": 7})
        {'prompt': [{'role': 'user', 'content': '1 + 1?'}], 'answer': '2'}
    """

    def to_row(row: Row) -> Row:
        made = {ours: row[theirs] for ours, theirs in columns.items()}
        prompt = made["prompt"]
        look_at(prompt)
        made["prompt"] = chat(prompt) if isinstance(prompt, str) else plain(prompt)
        if all(turn["role"] != "user" for turn in made["prompt"]):
            raise RejectedRow("the prompt has no user turn")
        if "answer" in made:
            answer = filled(made, "answer")
            made["answer"] = plain_answer(answer) if isinstance(answer, list) else str(answer).strip()
        return made

    return to_row


def gsm8k(row: Row) -> Row:
    """GSM8K: the answer stands after `####`; the solution loses the calculator marks `<<...>>`.

    >>> gsm8k({"question": "2 + 2?", "answer": "2 + 2 = <<2+2=4>>4\\n#### 4"})["solution"]
    '2 + 2 = 4\\n\\\\boxed{4}'
    """
    solution, mark, answer = str(filled(row, "answer")).rpartition("####")
    if not mark:
        raise RejectedRow("no answer after ####")
    solution = re.sub(r"<<[^>]*>>", "", solution).strip()
    answer = answer.strip().replace(",", "")
    return {
        "prompt": chat(row["question"]),
        "solution": f"{solution}\n\\boxed{{{answer}}}",
        "answer": answer,
    }


def problem_with_solution(row: Row) -> Row:
    """MATH-500 and AIME 2024, whose columns are problem, solution and answer."""
    return {
        "prompt": chat(row["problem"]),
        "solution": str(filled(row, "solution")).strip(),
        "answer": str(filled(row, "answer")).strip(),
    }


def openthoughts_math(row: Row) -> Row:
    """OpenThoughts-114k, configuration `metadata`: the mathematics; the answer is the one box of the solution."""
    if row["domain"] != "math":
        raise RejectedRow("not mathematics")
    solution = row["ground_truth_solution"] or ""
    answer, reason = single_boxed_answer(solution)
    if answer is None:
        raise RejectedRow(f"solution: {reason}")
    return {"prompt": chat(row["problem"]), "solution": solution.strip(), "answer": answer}


# What the original DAPO-Math-17k says around each problem: how it starts, and where the problem ends.
_DAPO_HEAD = re.compile(r"^Solve the following math problem.*?\n\n", re.DOTALL)
_DAPO_TAIL = re.compile(r"\n\nRemember to put your answer on its own line.*$", re.DOTALL)


def dapo_math_original(row: Row) -> Row:
    """DAPO-Math-17k as published: a chat prompt with format instructions, which are taken off.

    >>> text = "Solve the following math problem.\\n\\n1 + 1?\\n\\nRemember to put your answer on its own line."
    >>> dapo_math_original({"prompt": [{"content": text, "role": "user"}], "reward_model": {"ground_truth": "2"}})
    {'prompt': [{'role': 'user', 'content': '1 + 1?'}], 'answer': '2'}
    """
    text = _DAPO_TAIL.sub("", _DAPO_HEAD.sub("", row["prompt"][0]["content"], count=1), count=1)
    return {"prompt": chat(text), "answer": str(filled(row["reward_model"], "ground_truth")).strip()}


def wildguardmix(row: Row) -> Row:
    """WildGuardMix: prompts, with what the labels say about them; there is no answer to check."""
    if row["prompt_harm_label"] is None:
        raise RejectedRow("no harm label")
    return {
        "prompt": chat(row["prompt"]),
        "harmful": row["prompt_harm_label"] == "harmful",
        "adversarial": bool(row["adversarial"]),
        "category": row["subcategory"],
    }


def svamp(row: Row) -> Row:
    """SVAMP: a story and a question about it; answers such as 145.0 become 145."""
    answer = float(filled(row, "Answer"))
    return {
        "prompt": chat(f"{filled(row, 'Body').strip().rstrip('.')}. {filled(row, 'Question').strip()}"),
        "solution": str(filled(row, "Equation")).strip(),
        "answer": f"{answer:g}" if answer.is_integer() else str(answer),
    }


ADAPTERS = {
    "gsm8k": Adapter(
        "openai/gsm8k", "main", "train", ("question", "answer"), gsm8k, "grade-school problems, 7,473 and 1,319 (test)"
    ),
    "math500": Adapter(
        "HuggingFaceH4/MATH-500",
        None,
        "test",
        ("problem", "solution", "answer"),
        problem_with_solution,
        "500 competition problems, for evaluation",
    ),
    "aime24": Adapter(
        "HuggingFaceH4/aime_2024",
        None,
        "train",
        ("problem", "solution", "answer"),
        problem_with_solution,
        "30 problems of AIME 2024, for evaluation",
    ),
    "aime25": Adapter(
        "math-ai/aime25",
        None,
        "test",
        ("problem", "answer"),
        mapped({"prompt": "problem", "answer": "answer"}),
        "30 problems of AIME 2025, for evaluation",
    ),
    "openthoughts_math": Adapter(
        "open-thoughts/OpenThoughts-114k",
        "metadata",
        "train",
        ("problem", "ground_truth_solution", "domain"),
        openthoughts_math,
        "the mathematics of OpenThoughts-114k with one boxed answer",
    ),
    "dapo_math": Adapter(
        "open-r1/DAPO-Math-17k-Processed",
        "en",
        "train",
        ("prompt", "solution"),
        mapped({"prompt": "prompt", "answer": "solution"}),  # `solution` is the answer alone
        "14,116 English problems with integer answers",
    ),
    "dapo_math_original": Adapter(
        "BytedTsinghua-SIA/DAPO-Math-17k",
        None,
        "train",
        ("prompt", "reward_model"),
        dapo_math_original,
        "as published: every problem about a hundred times (duplicates are dropped), Chinese ones too",
    ),
    "wildguardmix": Adapter(
        "allenai/wildguardmix",
        "wildguardtrain",
        "train",
        ("prompt", "prompt_harm_label", "adversarial", "subcategory"),
        wildguardmix,
        "86,759 harmful and harmless prompts (test: --config wildguardtest --split test)",
        gated=True,
    ),
    "svamp": Adapter(
        "ChilleD/SVAMP",
        None,
        "train",
        ("Body", "Question", "Equation", "Answer"),
        svamp,
        "short word problems, 700 and 300 (test)",
    ),
}
