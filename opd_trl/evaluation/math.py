"""Is a mathematical answer right? By math-verify, through TRL's reward of the same kind."""

from typing import Any


def math_accuracy(completions: list, answer: list[str], **kwargs: Any) -> list[float | None]:
    r"""1.0 where the completion's LaTeX answer (its last `\boxed{...}`) equals the row's, 0.0 where it does not.

    A reward function for `reward_funcs`; also a measure by itself. It needs `math-verify`.

    Args:
        completions: one text, or list of one message, per row.
        answer: the right answers: a number, LaTeX, or a solution that ends in `#### answer` as in GSM8K.
        kwargs: other columns of the batch, not used.

    Returns:
        per row 1.0 or 0.0, or None where `answer` cannot be parsed (TRL leaves such a row out).

    Source: `trl.rewards.accuracy_reward` (parsing, time limits).

    Example:
        >>> math_accuracy([r"So it is \boxed{1/2}.", r"\boxed{7}"], ["0.5", "so 3 + 5 = 8\n#### 8"])
        [1.0, 0.0]
    """
    from trl.rewards import accuracy_reward

    texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
    messages = [[{"content": from_last_box(text)}] for text in texts]
    return accuracy_reward(messages, [from_last_box(as_solution(gold)) for gold in answer])


def from_last_box(text: str) -> str:
    """A text from its last box on, which is the answer where several are given; without a box the whole text."""
    return text[max(text.rfind(r"\boxed"), 0) :]


def as_solution(answer: str) -> str:
    """An answer as math-verify finds it: in a box, unless it marks its own place."""
    answer = str(answer).rsplit("####", 1)[-1].strip()
    return answer if "boxed" in answer or "$" in answer else rf"\boxed{{{answer}}}"
