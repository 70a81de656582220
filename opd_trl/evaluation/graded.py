"""Which text of a completion is graded: decided here for rewards, evaluation, gates, siblings and traces alike."""

from typing import Any

from ..contents import text_of


def graded_text(completion: Any) -> str:
    """The text of a completion that is right or wrong: of a conversation, what the assistant said last.

    Args:
        completion: text, or messages. With tools there are several: calls, the tools' answers, and the last word.

    Returns:
        the text; of content in parts, the text parts. Empty where the assistant said nothing: a message without
        content, or None, is a wrong answer and not an error.

    Example:
        >>> call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]}
        >>> graded_text([call, {"role": "tool", "content": "7"}, {"role": "assistant", "content": "It is 7."}])
        'It is 7.'
        >>> graded_text([call]), graded_text("It is 7.")
        ('', 'It is 7.')
    """
    if not isinstance(completion, list):
        return completion if isinstance(completion, str) else ""
    said = [turn.get("content") for turn in completion if turn.get("role") == "assistant"]
    return text_of(said[-1]) if said else ""
