"""Floor 1: answers and rules. Is it right, does it comply?"""

from .answer_rules import Rule, compliance, one_sentence
from .boxes import BoxedAnswer, boxed_answers, single_boxed_answer
from .graded import graded_text
from .math import Judge, Verdict, math_accuracy
from .named_rules import parse_rule
from .statistics import Interval, bootstrap_interval, majority, paired_difference, pass_at_k


__all__ = [
    "BoxedAnswer",
    "Interval",
    "Judge",
    "Rule",
    "Verdict",
    "bootstrap_interval",
    "boxed_answers",
    "compliance",
    "graded_text",
    "majority",
    "math_accuracy",
    "one_sentence",
    "paired_difference",
    "parse_rule",
    "pass_at_k",
    "single_boxed_answer",
]
