"""The rules of `internalise.py`: what the teacher reads, what counts as following, what counts as leaking."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from measure import read_lines

from opd_trl.evaluation import parse_rule
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
        context: file with the system message and the worked examples that only the teacher reads.
        follows: is an answer right in every part of the rule? Strict: collapsed or unfinished text is not.
        leaks: does an answer show any part of the rule? Loose: it is asked where the rule has no business.
    """

    context: Path
    follows: Callable[[str], bool]
    leaks: Callable[[str], bool]


def repeats_itself(text: str, *, limit: float = 1 / 3) -> bool:
    """Have more than `limit` of the word pairs occurred before?"""
    words = re.findall(r"\w+", text.lower())
    pairs = list(pairwise(words))
    return len(pairs) - len(set(pairs)) > limit * len(pairs)


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
    return 1 <= len(lines) <= most and len(set(lines)) == len(lines) and not repeats_itself(text)


def shows(pattern: str) -> Callable[[str], bool]:
    """Does a pattern occur anywhere, in any case of letters?"""
    return parse_rule(f"regex:(?im){pattern}")


RULES = {
    # Persona: the first word and the vocabulary.
    "pirate": Rule(
        FOLDER / "demo" / "privileged_context.json",
        parse_rule("one_sentence:Arr,"),
        shows(r"\b(arr+|aye|ye|yer|matey|mateys)\b"),
    ),
    # Output format: a first symbol, a key, and a close that depends on what was opened.
    "json": Rule(
        FOLDER / "rules" / "json" / "privileged_context.json",
        answer_object,
        shows(r'"answer"\s*:'),
    ),
    # List: a shape that the student sometimes takes by itself, so its own text reaches some of it.
    "bullets": Rule(
        FOLDER / "rules" / "bullets" / "privileged_context.json",
        bullet_points,
        shows(r"^\s*[-*•] "),
    ),
}


def read_prompts(path: Path) -> list[list[dict[str, str]]]:
    """The prompts of a JSONL file, as messages."""
    return [line["prompt"] for line in read_lines(path)]


def verdicts(rule: Rule, texts: dict[str, list[str]]) -> dict[str, list[int]]:
    """0 or 1 per answer."""
    checks = {"greedy": rule.follows, "sampled": rule.follows, "elsewhere": rule.leaks}
    return {name: [int(check(text)) for text in texts[name]] for name, check in checks.items()}
