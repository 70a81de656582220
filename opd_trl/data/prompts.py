"""Prompts as rows hold them: what is wrong with one, the shape that a chat template sees, the size in bytes."""

from typing import Any

from ..contents import text_of


#: What a chat template tells prompts apart by: who speaks in which kind of content; `TEXT` for a plain text.
Shape = tuple[Any, ...]
TEXT: Shape = ("text",)

FILL = "Fill it, or filter the row out."
EXPECTED = "Expected a text, or messages such as [{'role': 'user', 'content': 'Hi'}]."
PARTS = "Expected a text, or parts such as [{'type': 'text', 'text': 'Hi'}]."
SURROGATE = "Repair the text, e.g. with text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')."
LAST_TURN = (
    "The chat template would close that answer and begin another one. Leave the turn out: of a column `messages` all "
    "turns but the last, assistant one are the prompt."
)


class RowError(ValueError):
    """A row, or a set of rows, that cannot be trained on.

    Args:
        what: is wrong with it.
        remedy: what to do about it.
        where: the row, as the user counts it.
    """

    def __init__(self, what: str, remedy: str = "", *, where: str = ""):
        super().__init__(": ".join(filter(None, [where, what])) + (f". {remedy}" if remedy else ""))
        self.what, self.remedy = what, remedy


def look_at(prompt: Any, *, may_be_blank: bool = False) -> tuple[Shape, int]:
    """The shape of a prompt and how many bytes of text it has.

    Args:
        prompt: as a row holds it.
        may_be_blank: is something added to the text later, such as an image?

    Raises:
        RowError: it is missing, of a wrong type, ends with an assistant turn, or holds half a surrogate pair.

    Example:
        >>> look_at("2 + 2?"), look_at([{"role": "user", "content": "2 + 2?"}])
        ((('text',), 6), ((('user', 'text', ()),), 6))
    """
    if isinstance(prompt, str) and (may_be_blank or prompt.strip()):
        return TEXT, num_bytes(prompt)
    if prompt is None or isinstance(prompt, str) or prompt == []:
        raise RowError("empty prompt", FILL)
    if not isinstance(prompt, list):
        raise RowError(f"the prompt is of type {type(prompt).__name__}", EXPECTED)
    shape = tuple(_shape_of_turn(turn, i, may_be_blank) for i, turn in enumerate(prompt))
    if prompt[-1]["role"] == "assistant":
        raise RowError("the prompt ends with an assistant turn", LAST_TURN)
    return shape, sum(num_bytes(turn[key]) for turn in prompt for key in turn if key != "role")


def _shape_of_turn(turn: Any, number: int, may_be_blank: bool) -> Shape:
    """Role, kind of content and further keys of a message; RowError for what is not a message."""
    if not isinstance(turn, dict):
        raise RowError(f"turn {number} of the prompt is of type {type(turn).__name__}", EXPECTED)
    role, content = turn.get("role"), turn.get("content")
    if not isinstance(role, str) or not role:
        keys = ", ".join(map(repr, turn)) or "none"
        raise RowError(f"turn {number} of the prompt has no role (its keys: {keys})", EXPECTED)
    place = f"turn {number} ({role}) of the prompt"
    further = tuple(sorted(k for k, v in turn.items() if v and k != "role" and k != "content"))
    if content is None:
        if role == "assistant" and "tool_calls" in further and "content" in turn:  # TRL reads the key
            return role, None, further
        raise RowError(f"{place} has no content", FILL)
    if isinstance(content, str):
        kind: Any = "text"
        blank = not content.strip()
    elif isinstance(content, list):
        kind = tuple(_type_of_part(part, place) for part in content)
        blank = not any(part["type"] != "text" or part["text"].strip() for part in content)
    else:
        raise RowError(f"the content of {place} is of type {type(content).__name__}", PARTS)
    if blank and role == "user" and not may_be_blank:
        raise RowError(f"{place} is empty", FILL)
    return role, kind, further


def check_tool_turns(prompt: Any, *, has_tools: bool) -> None:
    """RowError for an answer of a tool that nothing tells of, and for a text where a rollout is made of messages.

    >>> check_tool_turns([{"role": "system", "content": "add"}, {"role": "tool", "content": "4"}], has_tools=False)
    """
    if has_tools and isinstance(prompt, str):
        raise RowError("the prompt is a text, and a rollout with tools is made of messages", EXPECTED)
    roles = [] if isinstance(prompt, str) else [turn["role"] for turn in prompt]
    if "tool" in roles and not has_tools and not {"system", "developer"} & set(roles):
        raise RowError(
            f"turn {roles.index('tool')} of the prompt is an answer of a tool, and nothing tells of tools",
            "Give them as the trainer's `tools`, write their schemas into a system turn, or filter the row out.",
        )


def _type_of_part(part: Any, place: str) -> str:
    """The type of one part of a message's content; RowError for what is not a part."""
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or (kind == "text" and not isinstance(part.get("text"), str)):
        raise RowError(f"the content of {place} is a list with something else than parts", PARTS)
    return kind


def num_bytes(value: Any) -> int:
    """Bytes of all texts in a value; a tokenizer makes hardly more tokens. RowError for half a surrogate pair.

    >>> num_bytes([{"text": "né", "n": None}])
    3
    """
    if isinstance(value, str):
        if value.isascii():
            return len(value)
        try:
            return len(value.encode())
        except UnicodeEncodeError as error:
            half = value[error.start].encode("unicode_escape").decode()
            raise RowError(f"a text holds half a surrogate pair, {half} at {error.start}", SURROGATE) from None
    if isinstance(value, dict):
        return sum(map(num_bytes, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(num_bytes, value))
    return 0 if value is None else len(str(value))


def plain(prompt: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose contents are texts where they were lists of text parts, which many templates cannot read.

    >>> plain([{"role": "user", "content": [{"type": "text", "text": "2 + "}, {"type": "text", "text": "2?"}]}])
    [{'role': 'user', 'content': '2 + 2?'}]
    """
    return [{**turn, "content": _joined(turn["content"])} if "content" in turn else turn for turn in prompt]


def _joined(content: Any) -> Any:
    """The text of a list of text parts; any other content as it is."""
    if not isinstance(content, list) or any(part["type"] != "text" for part in content):
        return content
    return text_of(content)


def marked(prompt: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The same messages with a mark in place of every text, and the turn of each mark.

    Turns of the assistant have none: templates may leave its thoughts out.
    """
    marks: dict[str, int] = {}

    def mark(number: int, role: str) -> str:
        text = f"mark{len(marks)}in{number}end"
        if role != "assistant":
            marks[text] = number
        return text

    turns = []
    for number, turn in enumerate(prompt):
        content, role = turn.get("content"), turn["role"]
        if isinstance(content, str):
            content = mark(number, role)
        elif isinstance(content, list):
            content = [{**x, "text": mark(number, role)} if x["type"] == "text" else x for x in content]
        turns.append({**turn, "content": content})
    return turns, marks
