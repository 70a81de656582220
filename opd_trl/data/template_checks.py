"""What a chat template and a tokenizer make of a prompt: refused, lost, printed as Python, a token too many."""

import re
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from .prompts import RowError, marked, num_bytes


#: Roles that need not stand in a chat template: most print whatever role they get.
ROLES = {"system", "developer", "user", "assistant", "tool"}
#: How a template fails: on purpose, or where it meets what it does not expect.
FAILURES: tuple[type[Exception], ...] = (TemplateError, TypeError, ValueError, LookupError)

ONE_TEXT = "Write the content as one text (`opd-trl data prepare` does), or take a chat_template for parts."


class Template:
    """Renders prompts as the trainer does, and checks what comes out.

    Args:
        processing_class: the student's tokenizer, or a processor around it.
        tokenizer: that tokenizer.
        tools: functions that the prompts tell of.
    """

    def __init__(self, processing_class: Any, tokenizer: Any, tools: Sequence[Any] | None = None):
        self.processing_class, self.tokenizer, self.tools = processing_class, tokenizer, tools or None
        self.reads_parts = processing_class is not tokenizer
        special, bos, eos = list(tokenizer("")["input_ids"]), tokenizer.bos_token_id, tokenizer.eos_token_id
        self.adds_bos = bos is not None and special[:1] == [bos]
        self.adds_eos = eos is not None and special[-1:] == [eos] and (len(special) > 1 or bos != eos)

    def render(self, prompt: Any, kwargs: dict[str, Any]) -> str:
        """The text that the model reads of a prompt, or of one with its answer; raises one of `FAILURES`."""
        if isinstance(prompt, str):
            return prompt
        if self.reads_parts:  # as TRL hands messages to a processor
            prompt = [
                {**x, "content": [{"type": "text", "text": x["content"]}]} if isinstance(x.get("content"), str) else x
                for x in prompt
            ]
        return self.processing_class.apply_chat_template(
            prompt,
            tools=self.tools,
            add_generation_prompt=prompt[-1]["role"] != "assistant",
            tokenize=False,
            **kwargs,
        )

    def num_tokens(self, prompts: list[Any], kwargs: dict[str, Any]) -> list[int]:
        """Tokens of each prompt, without those of its images."""
        texts = [self.render(prompt, kwargs) for prompt in prompts]
        special = isinstance(prompts[0], str)
        return list(map(len, self.tokenizer(texts, add_special_tokens=special)["input_ids"]))

    def check_start(self, prompt: Any) -> None:
        """Refuse a text that brings along the token which tokenizer or template put before it."""
        bos = self.tokenizer.bos_token
        if isinstance(prompt, str):
            twice = self.adds_bos and prompt.startswith(bos)
        else:
            twice = bos is not None and any(str(turn.get("content")).startswith(bos) for turn in prompt)
        if twice:
            raise RowError(
                f"the prompt begins with {bos}, which tokenizer or template add too: the model would read two",
                f"Take {bos} off the text, which looks rendered already.",
            )

    def check(self, prompt: Any, kwargs: dict[str, Any], *, whose: str, remedy: str) -> int:
        """Render a prompt with marks in place of its texts, and look for them; return how many bytes that takes.

        Args:
            prompt: text or messages, as `look_at` lets them through.
            kwargs: of the chat template.
            whose: what errors call the prompt.
            remedy: against a template that refuses it.

        Raises:
            RowError: the template refuses the messages, leaves a text out or prints its parts as Python or JSON; two
                tokens begin the prompt, or one ends it.
        """
        if isinstance(prompt, str):
            if self.adds_eos:
                raise RowError(
                    f"the tokenizer puts {self.tokenizer.eos_token} behind {whose}, so that it ends before the answer",
                    "Set add_eos_token to false in its tokenizer_config.json.",
                )
            return len(self.tokenizer("")["input_ids"])
        self._check_kinds(prompt, whose)
        messages, marks = marked(prompt)
        try:
            text = self.render(messages, kwargs)
        except FAILURES as error:
            said, roles = " ".join(str(error).split()).rstrip("."), ", ".join(turn["role"] for turn in prompt)
            if any(isinstance(turn.get("content"), list) for turn in prompt):
                remedy = ONE_TEXT
            raise RowError(f"the chat template refuses {whose}, of the roles {roles}: {said}", remedy) from error
        for mark, number in marks.items():
            self._check_mark(text, mark, f"turn {number} ({prompt[number]['role']}) of {whose}", prompt[number])
        bos = self.tokenizer.bos_token
        if bos and text.removeprefix(bos).startswith(bos) and text.startswith(bos):
            raise RowError(
                f"the chat template begins {whose} with two {bos}", "Take one of them out of chat_template."
            )
        return num_bytes(text)

    def _check_kinds(self, prompt: list[dict[str, Any]], whose: str) -> None:
        """Refuse messages without a template, roles that it does not know, and parts that are not text."""
        template = getattr(self.processing_class, "chat_template", self)  # mistral-common renders without one
        if not template:
            raise RowError(
                f"{whose} is made of messages, and the tokenizer has no chat template",
                "Give it one (tokenizer.chat_template), or give prompts as text.",
            )
        for number, turn in enumerate(prompt):
            role, content = turn["role"], turn.get("content")
            if role not in ROLES and role not in str(template):
                raise RowError(
                    f"turn {number} of {whose} has the role {role!r}, which the chat template does not know",
                    "Rename it: those who ask are 'user' (ShareGPT: human), those who answer 'assistant' (gpt).",
                )
            kinds = {part["type"] for part in content} - {"text"} if isinstance(content, list) else set()
            if kinds and not self.reads_parts:
                raise RowError(
                    f"turn {number} ({role}) of {whose} holds {', '.join(sorted(kinds))}, and a tokenizer reads text",
                    "Give a processor as processing_class, with a student that reads it, or leave these parts out.",
                )

    def _check_mark(self, text: str, mark: str, place: str, turn: dict[str, Any]) -> None:
        """Refuse a rendered prompt that lacks a turn's text, or shows the list that it stands in."""
        parts = isinstance(turn["content"], list)
        remedy = f"Take a tokenizer whose chat_template renders turns of the role {turn['role']}, or change the turn."
        if parts:
            remedy = ONE_TEXT
        if mark not in text:
            raise RowError(f"the chat template leaves out the text of {place}{', a list of parts' * parts}", remedy)
        if parts and re.search(rf"""["']text["']\s*:\s*["']{mark}""", text):
            raise RowError(f"the chat template prints the list of parts of {place} as code", remedy)
