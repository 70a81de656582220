"""From (prompt, privileged context) to the teacher's prompt: text stays text, messages stay messages."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from .sandbox import Template


Message = dict[str, Any]
Prompt = str | list[Message]
Context = str | list[Message]
# Of a turn: text, or parts such as {"type": "text", "text": ...} and {"type": "image", ...}.
Content = str | list[dict[str, Any]]
Builder = Callable[[Prompt, Context], Prompt]

# What the teacher reads. `prompt` is the text of the last user turn (or the whole text prompt); its images stay.
TEMPLATES = {
    "system_prompt": "{{ context }}",
    "answer": (
        "{{ prompt }}\n\nFor you alone: the correct final answer is {{ context }}. Reason through the task step by "
        "step in your own words, as if you had not been told, and finish with that answer."
    ),
    "solution": (
        "{{ prompt }}\n\nFor you alone, a reference solution:\n{{ context }}\n\nUnderstand why it works, then solve "
        "the task in your own words without mentioning the reference."
    ),
    "hint": "{{ prompt }}\n\nA hint, for you alone: {{ context }}",
    "feedback": (
        "{{ prompt }}\n\nAn earlier attempt at this task got the following feedback:\n{{ context }}\n\nAnswer the "
        "task afresh and take the feedback into account."
    ),
    "few_shot": "{{ context }}\n\n{{ prompt }}",
    "document": (
        "Read this document first:\n{{ context }}\n\nAnswer from it, as something that you know:\n{{ prompt }}"
    ),
}


def get_builder(name: str, *, template: str | None = None) -> Builder:
    """Return the builder of teacher prompts called `name`.

    Every builder maps a text prompt to text and a conversational prompt to messages:

    - `system_prompt`: the context is the system message (before the one that the prompt has, if any);
    - `answer`, `solution`, `hint`, `feedback`, `document`: a template around the last user turn;
    - `few_shot`: messages (e.g. a system message and worked examples) go before the prompt's turns; text goes before
      the last user turn.

    Args:
        name: one of `TEMPLATES`, or the import path of your own function, `package.module:function`, called as
            `function(prompt, privileged_context)`.
        template: Jinja template in place of the builder's wording; variables `prompt` and `context`. For
            `system_prompt` it words the system message. It is rendered in a sandbox.

    Returns:
        `builder(prompt, privileged_context) -> teacher prompt`. It never changes its arguments.

    Raises:
        ValueError: an unknown name, an import path that does not resolve, a template together with an import path,
            or a template that does not parse.

    Example:
        >>> build = get_builder("system_prompt")
        >>> build([{"role": "user", "content": "Hi"}], "Be brief.")
        [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Hi'}]
        >>> get_builder("hint")("2 + 2?", "count fingers")
        '2 + 2?\\n\\nA hint, for you alone: count fingers'
    """
    if name not in TEMPLATES:
        if template is not None:
            raise ValueError(f"privileged_template has no effect on your own builder {name!r}. Remove one of them.")
        return import_builder(name)
    compiled = Template(TEMPLATES[name] if template is None else template, key="privileged_template")
    if name == "system_prompt":
        return partial(_as_system_message, compiled)
    return partial(_as_demonstrations if name == "few_shot" else _around_last_user_turn, compiled)


def import_builder(path: str) -> Builder:
    """The user's own builder at the import path `package.module:function` (or `package.module.function`)."""
    module_name, _, attribute = path.replace(":", ".").rpartition(".")
    try:
        builder = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"privileged_builder={path!r} is neither one of {', '.join(TEMPLATES)} nor an importable "
            f"'package.module:function': {error}."
        ) from error
    if not callable(builder):
        raise ValueError(f"privileged_builder={path!r} is a {type(builder).__name__}, expected a function.")
    return builder


def _as_system_message(template, prompt: Prompt, context: Context) -> Prompt:
    text = template.render(context=_text_only(context, "system_prompt"), prompt=_last_user_text(prompt))
    if isinstance(prompt, str):
        return f"{text}\n\n{prompt}"
    return _prepend([{"role": "system", "content": text}], prompt)


def _around_last_user_turn(template, prompt: Prompt, context: Context) -> Prompt:
    text = template.render(context=_text_only(context, "this builder"), prompt=_last_user_text(prompt))
    if isinstance(prompt, str):
        return text
    return [*prompt[:-1], {**prompt[-1], "content": with_text(prompt[-1]["content"], text)}]


def _as_demonstrations(template, prompt: Prompt, context: Context) -> Prompt:
    if isinstance(context, str):
        return _around_last_user_turn(template, prompt, context)
    if not isinstance(prompt, str):
        return _prepend(context, prompt)
    if any(other_parts(turn["content"]) for turn in context):
        raise ValueError(
            "the privileged context has parts that are not text, and the prompt is a text, which has no place for "
            "them. Give the prompt as messages: [{'role': 'user', 'content': 'What is it?'}]."
        )
    return template.render(context="\n".join(content_text(turn["content"]) for turn in context), prompt=prompt)


def _prepend(context: list[Message], prompt: list[Message]) -> list[Message]:
    """Messages before a prompt; two system messages become one, since most templates take only one."""
    if context[0]["role"] == prompt[0]["role"] == "system":
        if other_parts(context[0]["content"]):
            raise ValueError(
                "the system turn of the privileged context has parts that are not text, and it would become one with "
                "that of the prompt. Put them into a user turn of the context."
            )
        merged = f"{content_text(context[0]['content'])}\n\n{content_text(prompt[0]['content'])}"
        system = {"role": "system", "content": with_text(prompt[0]["content"], merged)}
        return [system, *context[1:], *prompt[1:]]
    if prompt[0]["role"] == "system":
        return [prompt[0], *context, *prompt[1:]]
    return [*context, *prompt]


def _last_user_text(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    if prompt[-1]["role"] != "user" or not isinstance(prompt[-1]["content"], str | list):
        raise ValueError(
            f"a privileged context needs a prompt that ends with a text user turn, got a last turn of role "
            f"{prompt[-1]['role']!r} with {type(prompt[-1]['content']).__name__} content. Use an own builder "
            "(privileged_builder='package.module:function') for other shapes."
        )
    return content_text(prompt[-1]["content"])


def content_text(content: Content) -> str:
    """The text of a turn; of several parts the last ones that are text.

    >>> content_text([{"type": "image"}, {"type": "text", "text": "What is it?"}])
    'What is it?'
    """
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content[_last_text(content)])


def with_text(content: Content, text: str) -> Content:
    """A turn's content with another text in the place of `content_text`; its images and other parts stay.

    >>> with_text([{"type": "image"}, {"type": "text", "text": "What is it?"}], "Is it a cat?")
    [{'type': 'image'}, {'type': 'text', 'text': 'Is it a cat?'}]
    """
    if isinstance(content, str):
        return text
    place = _last_text(content)
    return [*content[: place.start], {"type": "text", "text": text}, *content[place.stop :]]


def other_parts(content: Content) -> list[dict[str, Any]]:
    """The parts of a turn that are not text."""
    return [] if isinstance(content, str) else [part for part in content or () if part["type"] != "text"]


def _last_text(content: list[dict[str, Any]]) -> slice:
    """Where the last run of text parts stands; an empty place at the end where there is none."""
    is_text = [part["type"] == "text" for part in content]
    stop = max((i + 1 for i, found in enumerate(is_text) if found), default=len(content))
    start = stop
    while start > 0 and is_text[start - 1]:
        start -= 1
    return slice(start, stop)


def _text_only(context: Context, builder: str) -> str:
    if not isinstance(context, str):
        raise ValueError(
            f"the privileged context must be text for {builder}, got {type(context).__name__}. "
            "Use privileged_builder='few_shot' for a list of messages."
        )
    return context
