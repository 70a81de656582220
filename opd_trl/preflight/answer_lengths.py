"""Are the student's answers long enough to learn from?"""

from .findings import OURS, Finding
from .state import Preflight


SHORT = 4  # tokens


def run(preflight: Preflight) -> list[Finding]:
    """One figure: the mean length of the student's answers."""
    lengths = [n for rollout in preflight.rollouts for n in rollout.batch["completion_mask"].sum(-1).tolist()]
    mean = sum(lengths) / len(lengths)
    figure, threshold = f"{mean:.0f} tokens", f"at least {SHORT} ({OURS})"
    if mean >= SHORT:
        return [Finding("mean length", "ok", figure, "The answers are long enough.", threshold, value=mean)]
    sentence, change = "The answers are so short that little is learned from them.", "a prompt that asks for more"
    return [Finding("mean length", "fix", figure, sentence, threshold, change, mean)]
