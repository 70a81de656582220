"""Floor 1: answers and rules. Is it right, does it comply?"""

from .generation import greedy_answers
from .math import math_accuracy
from .rules import Rule, compliance, one_sentence


__all__ = ["Rule", "compliance", "greedy_answers", "math_accuracy", "one_sentence"]
