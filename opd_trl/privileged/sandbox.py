"""Jinja templates of users and recipes: in a sandbox that cannot reach Python, with bounded time, memory and text."""

import contextlib
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError


#: Of one rendering; a usual one takes a millisecond. Other threads of the process share the bytes, so they are many.
MOST_SECONDS, MOST_BYTES, MOST_CHARACTERS = 10.0, 2**30, 10_000_000
MOST_BASE = 1000
#: What can make more of its variables than they are.
COSTLY = (nodes.BinExpr, nodes.Concat, nodes.Filter, nodes.Call, nodes.For, nodes.Assign, nodes.AssignBlock)
PROCESS_SIZE = Path("/proc/self/statm")


class Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox that transformers renders chat templates in, with a deadline for loops, calls and operators."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        # Jinja by itself drops a last line break, which the user may have meant.
        super().__init__(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True, optimized=False)
        del self.globals["lipsum"]  # of as many words as one asks for
        self.deadline = 0.0

    def in_time(self, *_: Any) -> str:
        """Raise SecurityError where a rendering has taken too long; nothing is printed."""
        if time.monotonic() > self.deadline:
            raise SecurityError(f"it takes more than {MOST_SECONDS:g} s")
        return ""

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right`; a power, which may take forever by itself, of small numbers alone."""
        self.in_time()
        if operator == "**" and max(abs(left), abs(right)) > MOST_BASE:
            raise SecurityError(f"a power of numbers above {MOST_BASE}")
        return super().call_binop(context, operator, left, right)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Call a macro, a method or a global function, where the sandbox lets it and time is left."""
        self.in_time()
        return super().call(*args, **kwargs)


class Template:
    """A Jinja template of somebody else.

    Args:
        text: the template.
        key: what errors call it, such as `privileged_template`.

    Raises:
        ValueError: it does not parse.

    Example:
        >>> Template("Hint: {{ context }}", key="privileged_template").render(context="count")
        'Hint: count'
        >>> Template("{{ cycler.__init__.__globals__ }}", key="privileged_template").render()
        Traceback (most recent call last):
        ValueError: privileged_template: access to attribute '__init__' of 'type' object is unsafe. Got \
'{{ cycler.__init__.__globals__ }}'.
    """

    def __init__(self, text: str, *, key: str):
        self.text, self.key, self._sandbox = text, key, Sandbox()
        try:
            tree = self._sandbox.parse(text)
            self._is_costly = any(tree.find_all(COSTLY))
            for loop in tree.find_all(nodes.For):
                check = nodes.Call(nodes.EnvironmentAttribute("in_time"), [], [], None, None)
                loop.body.insert(0, nodes.ExprStmt(check, lineno=loop.lineno))
            with memory_limited():  # constants are computed here
                code = self._sandbox.compile(tree)
            self._template = self._sandbox.template_class.from_code(self._sandbox, code, self._sandbox.globals)
        except (TemplateError, SyntaxError, RecursionError, MemoryError) as error:  # the latter: nested without end
            said = str(error) or type(error).__name__
            raise ValueError(f"{key} is not a valid Jinja template: {said}. Got {self._shown}.") from error

    def render(self, **variables: Any) -> str:
        """The text; ValueError, which names key and template, where the sandbox or the template itself fails."""
        self._sandbox.deadline = time.monotonic() + MOST_SECONDS
        try:
            with memory_limited() if self._is_costly else contextlib.nullcontext():
                text = self._template.render(**variables)
        except MemoryError:
            raise ValueError(f"{self.key}: it takes more than {MOST_BYTES >> 20} MiB. Got {self._shown}.") from None
        except Exception as error:  # a template may fail in every way that Python does
            raise ValueError(f"{self.key}: {str(error).rstrip('.')}. Got {self._shown}.") from error
        if len(text) > MOST_CHARACTERS:
            raise ValueError(f"{self.key} gives a text of {len(text):,} characters. Got {self._shown}.")
        return text

    @property
    def _shown(self) -> str:
        return repr(self.text if len(self.text) <= 200 else f"{self.text[:200]}...")


@contextlib.contextmanager
def memory_limited() -> Iterator[None]:
    """Within, this process may grow by `MOST_BYTES`; what needs more is a MemoryError. Linux; elsewhere no limit."""
    if not PROCESS_SIZE.exists():
        yield
        return
    pages = int(PROCESS_SIZE.read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + MOST_BYTES
    if soft != resource.RLIM_INFINITY:
        wanted = min(wanted, soft)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
