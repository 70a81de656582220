"""The rules of `internalise.py`: what the teacher reads, what counts as following, what counts as leaking."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from opd_trl.data.files import read_jsonl
from opd_trl.evaluation import parse_rule
from opd_trl.evaluation.answer_rules import repetition
from opd_trl.scripts.recipe_files import recipes_dir


FOLDER = recipes_dir() / "system_prompt"
TRAIN = FOLDER / "demo" / "train.jsonl"
QUESTIONS = FOLDER / "demo" / "test.jsonl"
ELSEWHERE = FOLDER / "rules" / "elsewhere.jsonl"
PLAIN_TEXT = FOLDER / "rules" / "plain.jsonl"


@dataclass(frozen=True)
class Rule:
    """A rule to learn.

    Attributes:
        folder: of the file with the system message and the worked examples that only the teacher reads.
        follows: is an answer right in every part of the rule? Strict: collapsed or unfinished text is not.
        leaks: does an answer show any part of the rule? Loose: it is asked where the rule has no business.
    """

    folder: str
    follows: Callable[[str], bool]
    leaks: Callable[[str], bool]

    @property
    def context(self) -> Path:
        """That file."""
        return FOLDER / self.folder / "privileged_context.json"


def answer_object(text: str) -> bool:
    """A JSON object with the one key "answer" and a text that says something, and nothing around it.

    The rule `json:answer` lets a number, a truth value or another object be the answer; a text is asked for.
    """
    return parse_rule("json:answer")(text) and isinstance(json.loads(text)["answer"], str)


def bullet_points(text: str, *, most: int = 4) -> bool:
    """Up to `most` finished bullet points, one per line, and nothing else; no two alike.

    The rule `bullets:N` takes points that are cut, and points that repeat each other in part.
    """
    lines = text.strip().splitlines()
    if not all(re.fullmatch(r"- \w.*[.!?][\"']?", line.rstrip()) for line in lines):
        return False
    repeated = repetition(re.findall(r"\w+", text.lower()))
    return 1 <= len(lines) <= most and len(set(lines)) == len(lines) and repeated <= 1 / 3


def shows(pattern: str) -> Callable[[str], bool]:
    """Does a pattern occur anywhere, in any case of letters?"""
    return parse_rule(f"regex:(?im){pattern}")


RULES = {
    # Persona: the first word and the vocabulary.
    "pirate": Rule("demo", parse_rule("one_sentence:Arr,"), shows(r"\b(arr+|aye|ye|yer|matey|mateys)\b")),
    # Output format: a first symbol, a key, and a close that depends on what was opened.
    "json": Rule("rules/json", answer_object, shows(r'"answer"\s*:')),
    # List: a shape that the student sometimes takes by itself, so its own text reaches some of it.
    "bullets": Rule("rules/bullets", bullet_points, shows(r"^\s*[-*•] ")),
}


def read_prompts(path: Path) -> list[list[dict[str, str]]]:
    """The prompts of a JSONL file, as messages."""
    return [row["prompt"] for row in read_jsonl(path)]


def verdicts(rule: Rule, texts: dict[str, list[str]]) -> dict[str, list[int]]:
    """0 or 1 per answer."""
    checks = {"greedy": rule.follows, "sampled": rule.follows, "elsewhere": rule.leaks}
    return {name: [int(check(text)) for text in texts[name]] for name, check in checks.items()}
