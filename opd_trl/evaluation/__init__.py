"""Floor 1: answers and rules. Does it comply?"""

from .generation import greedy_answers
from .rules import Rule, compliance, one_sentence


__all__ = ["Rule", "compliance", "greedy_answers", "one_sentence"]
