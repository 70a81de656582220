"""Floor 1: answers and rules. Does it comply?"""

from .generation import greedy_answers
from .rules import Rule, compliance, starts_and_ends


__all__ = ["Rule", "compliance", "greedy_answers", "starts_and_ends"]
