"""A toy task with tools: a calculator whose keys have odd names, which only its manual explains.

A problem is a digit and operations in words ("3 twin back"). Each operation takes a call of the tool `press` with the
key that stands for it; what the tool answers is the number of the next call, and the last answer is the solution.
The manual says which key is which. A model that has trained on many manuals follows the one in its prompt; without one
it can only guess. So a manual is a privileged context that can be learned: it is the same for every problem.
"""

import itertools
import json
import random
import re
import string
from typing import Any

from .files import Row
from .splits import split_rows
from .toy_task import END, PAD, TURNS, Task, tokenizer_of_pieces


OPERATIONS = {
    "next": lambda x: (x + 1) % 10,
    "back": lambda x: (x - 1) % 10,
    "twin": lambda x: 2 * x % 10,
    "flip": lambda x: 9 - x,
}
KEYS = "qxzkwvjy"
#: What the calculator says to a key that stands for nothing.
ERROR = "error"
#: The keys that are to be learned; no row of `sft` has all of them.
LEARNED = {"next": "k", "back": "y", "twin": "q", "flip": "w"}
#: Shares of the 840 problems of up to three operations.
PARTS = {"sft": 0.4, "opd": 0.4, "test": 0.2}
#: Rows of `sft`, and how many of them show a manual. Without one the keys of a row are a guess.
SFT_ROWS, MANUAL_SHARE = 10_000, 0.8


class Calculator:
    """The environment of a rollout; its tool is `press`.

    Example:
        >>> calculator = Calculator()
        >>> calculator.reset(keys='{"next": "k", "twin": "q"}')
        >>> calculator.press(key="k", number=3), calculator.press(key="z", number=3)
        ('4', 'error')
    """

    def reset(self, keys: str, **row: Any) -> None:
        """Take the keys of a row: operation -> key, as JSON."""
        self._operations = {key: OPERATIONS[name] for name, key in json.loads(keys).items()}

    def press(self, key: str, number: int) -> str:
        """Press a key of the calculator.

        Args:
            key: The key.
            number: What it is pressed for, a digit.
        """
        operation = self._operations.get(key)
        return ERROR if operation is None else str(operation(number) % 10)


#: `press` as chat templates are told of it.
TOOL = {
    "type": "function",
    "function": {
        "name": "press",
        "description": "Press a key of the calculator.",
        "parameters": {
            "type": "object",
            "properties": {
                "key": {"type": "string", "description": "The key."},
                "number": {"type": "integer", "description": "What it is pressed for, a digit."},
            },
            "required": ["key", "number"],
        },
        "return": {"type": "string"},
    },
}


def manual(keys: dict[str, str]) -> str:
    """What each key stands for.

    >>> manual({"next": "k", "back": "y"})
    'next:k back:y'
    """
    return " ".join(f"{name}:{key}" for name, key in keys.items())


def question(number: int, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The prompt of a problem."""
    return [{"role": "user", "content": " ".join([str(number), *names])}]


def answer_of(number: int, names: tuple[str, ...]) -> str:
    """The solution of a problem.

    >>> answer_of(3, ("twin", "back"))
    '5'
    """
    for name in names:
        number = OPERATIONS[name](number)
    return str(number)


def trace(number: int, names: tuple[str, ...], keys: dict[str, str]) -> list[dict[str, Any]]:
    """How a problem is solved: a call and an answer of the tool for each operation, then the last word.

    >>> [turn["content"] for turn in trace(3, ("twin", "back"), {"twin": "q", "back": "y"})]
    ['twin:q', '6', 'back:y', '5', '5']
    """
    turns = []
    for name in names:
        call = {"name": "press", "arguments": {"key": keys[name], "number": number}}
        number = OPERATIONS[name](number)
        turns += [
            {
                "role": "assistant",
                "content": f"{name}:{keys[name]}",
                "tool_calls": [{"type": "function", "function": call}],
            },
            {"role": "tool", "name": "press", "content": str(number)},
        ]
    return [*turns, {"role": "assistant", "content": str(number)}]


def calculator(seed: int) -> dict[str, list[Row]]:
    """The rows of the three parts, which share no problem.

    - `sft`: `messages` with calls and the tool's answers, most of them behind a manual of their own, and `tools`;
    - `opd`, `test`: `prompt`, `keys` (for `Calculator.reset`), `answer`, and the manual as `privileged_context`.
    """
    draw = random.Random(seed)
    problems = {
        question(number, names)[0]["content"]: (number, names)
        for count in (1, 2, 3)
        for names in itertools.product(OPERATIONS, repeat=count)
        for number in range(10)
    }
    rows = [{"prompt": question(*problem)} for problem in problems.values()]
    draw.shuffle(rows)
    parts = {
        part: [problems[row["prompt"][0]["content"]] for row in found]
        for part, found in split_rows(rows, PARTS).items()
    }
    return {"sft": [sft_row(draw, draw.choice(parts["sft"])) for _ in range(SFT_ROWS)]} | {
        part: [
            {
                "prompt": question(*problem),
                "keys": json.dumps(LEARNED),
                "answer": answer_of(*problem),
                "privileged_context": manual(LEARNED),
            }
            for problem in parts[part]
        ]
        for part in ("opd", "test")
    }


def sft_row(draw: random.Random, problem: tuple[int, tuple[str, ...]]) -> Row:
    """A solved problem under keys of its own, with their manual or without."""
    keys = LEARNED
    while keys == LEARNED:
        keys = dict(zip(OPERATIONS, draw.sample(KEYS, len(OPERATIONS)), strict=True))
    lines = draw.sample(list(keys.items()), len(keys))
    system = [{"role": "system", "content": manual(dict(lines))}] if draw.random() < MANUAL_SHARE else []
    return {"messages": [*system, *question(*problem), *trace(*problem, keys)], "tools": json.dumps([TOOL])}


TOOL_TURN = "<|tool|>"
CALL = '<tool_call>\n{"name": "press", "arguments": {"key": "', '", "number": ', "}}\n</tool_call>"
# A line of a manual is one token, so that following a manual takes one look at it, which a tiny model learns quickly.
PIECES = (*CALL, *(f"{name}:{key}" for name in OPERATIONS for key in KEYS), *OPERATIONS, "press", ERROR)
CHAT_TEMPLATE = (
    "{%- set system = messages[0].content if messages[0].role == 'system' else '' -%}"
    "{%- if tools or system -%}<|system|>{%- for tool in tools or [] -%}{{ tool.function.name + ' ' }}{%- endfor -%}"
    "{{ system }}<|end|>{%- endif -%}"
    "{%- for m in messages if m.role != 'system' -%}<|{{ m.role }}|>"
    "{%- if m.role == 'assistant' -%}{% generation %}{{ m.content }}{%- for call in m.tool_calls or [] -%}"
    '{{ \'<tool_call>\\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{ call.function.arguments | tojson }}"
    "{{ '}\\n</tool_call>' }}{%- endfor -%}{{ '<|end|>' }}{% endgeneration %}"
    "{%- else -%}{{ m.content + '<|end|>' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)
#: How transformers reads calls out of what the assistant wrote.
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|end\|>\s*", "content": "text"},
    },
}


def build_tokenizer() -> Any:
    """One id per piece, printable character and special token; its template knows tools and the tool's turns."""
    turns = (*TURNS, TOOL_TURN)
    pattern = "|".join([*map(re.escape, sorted(PIECES, key=len, reverse=True)), r"[\s\S]"])
    tokenizer = tokenizer_of_pieces(
        [PAD, END, *turns, *PIECES, *string.printable], pattern, turns=turns, template=CHAT_TEMPLATE
    )
    tokenizer.response_template = RESPONSE_TEMPLATE
    return tokenizer


CALCULATOR = Task("calculator", calculator, build_tokenizer, layers=2)
