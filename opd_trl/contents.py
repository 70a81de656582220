"""The text of a turn of a conversation. Standard library alone."""

from typing import Any


def text_of(content: Any) -> str:
    """The text of a turn's content: of content in parts, that of its text parts; of nothing, none.

    >>> text_of("Hi"), text_of([{"type": "image"}, {"type": "text", "text": "What is it?"}]), text_of(None)
    ('Hi', 'What is it?', '')
    """
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def texts_of(given: Any) -> list[str]:
    """The texts of a prompt or a context: itself, or those of its messages.

    >>> texts_of([{"role": "system", "content": "Be brief."}]), texts_of("Be brief.")
    (['Be brief.'], ['Be brief.'])
    """
    if isinstance(given, str):
        return [given]
    return [text for message in given or [] if (text := text_of(message.get("content")))]
