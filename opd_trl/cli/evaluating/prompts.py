"""From a problem to the token ids that the model reads, as the protocol says."""

from typing import Any

from ...privileged import get_builder
from ...suites.problems import Message, Problem
from ...suites.protocol import Protocol


def messages_of(problem: Problem, protocol: Protocol, context: Any = None) -> list[Message]:
    """The conversation that is asked: template, system prompt, and a context that the measured model reads.

    Args:
        problem: its last turn is the user's.
        protocol: template and system prompt.
        context: text (a system message) or messages (worked examples) that go before all: what a teacher reads.

    Example:
        >>> protocol = Protocol(suite="math", temperature=0, max_new_tokens=9, prompt_template="{prompt} Box it.")
        >>> messages_of(Problem("0", [{"role": "user", "content": "1 + 1?"}]), protocol, "Be brief.")
        [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': '1 + 1? Box it.'}]
    """
    *before, last = problem.messages
    messages = [*before, {**last, "content": protocol.prompt_template.replace("{prompt}", last["content"])}]
    if protocol.system_prompt is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": protocol.system_prompt}, *messages]
    if context is None:
        return messages
    return get_builder("system_prompt" if isinstance(context, str) else "few_shot")(messages, context)


def encode(messages: list[Message], tokenizer: Any, protocol: Protocol) -> list[int]:
    """Token ids of a conversation up to where the answer starts.

    Raises:
        ValueError: the tokenizer has no chat template, or it fails on these messages.
    """
    from jinja2 import TemplateError

    if tokenizer.chat_template is None and protocol.chat_template is None:
        raise ValueError(
            "the tokenizer has no chat template. Set chat_template in the protocol to a Jinja file beside it, e.g. "
            "`{% for m in messages %}{{ m['content'] }}\\n{% endfor %}` for a base model."
        )
    options = {} if protocol.chat_template is None else {"chat_template": protocol.chat_template}
    try:
        encoded = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, **options, **protocol.chat_template_kwargs
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(f"the chat template refuses a prompt with the roles {roles}: {error}.") from None
    return list(encoded["input_ids"])
