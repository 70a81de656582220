r"""Answers in LaTeX boxes, `\boxed{...}`: found in one pass, whatever the text."""

import re
from typing import NamedTuple


NO_BOX, SEVERAL_BOXES, UNCLOSED_BOX = "no box", "several boxes", "unclosed box"
EMPTY_BOX, TOO_LONG = "empty box", "too long"
REASONS = (NO_BOX, SEVERAL_BOXES, UNCLOSED_BOX, EMPTY_BOX, TOO_LONG)

_BOX = r"\\(?:boxed|fbox)\s*\{"
# A backslash escapes what follows it, but for a box: `\\boxed{7}`, escaped once too often, is still one.
_TOKEN = re.compile(rf"(?P<box>{_BOX})|\\(?!{_BOX}).|(?P<open>\{{)|(?P<close>\}})", re.DOTALL)


class BoxedAnswer(NamedTuple):
    """The one boxed answer of a text, or why there is none.

    Args:
        answer: what stands in the box; None where there is a reason.
        reason: one of `REASONS`; None where there is an answer.
    """

    answer: str | None
    reason: str | None


def boxed_answers(text: str) -> list[str]:
    r"""Return what stands in the closed boxes of a text, in order; a box around a box counts as the inner one.

    Braces are balanced, escaped ones (`\{`) are text, and a box that is never closed is left out. One pass: the time
    is linear in the length, and there is no recursion. A box without braces (`\boxed 7`) does not count.

    Example:
        >>> boxed_answers(r"First \boxed{\frac{1}{2}}, then \boxed{\{1, 2\}} and \boxed{3")
        ['\\frac{1}{2}', '\\{1, 2\\}']
    """
    return _scan(text)[0]


def single_boxed_answer(text: str, *, max_chars: int = 1000) -> BoxedAnswer:
    r"""Return the answer of a text whose boxes all say the same, or the reason why it has none.

    Boxes that differ in white space alone are the same; empty ones do not count beside others.

    Args:
        text: a solution.
        max_chars: a longer answer is refused.

    Returns:
        the answer, or one of: "no box", "several boxes" (that differ), "unclosed box" (there is one, whatever else the
        text holds: it was cut off), "empty box", "too long".

    Example:
        >>> single_boxed_answer(r"So \boxed{7}. Again: \boxed{ 7 }.")
        BoxedAnswer(answer='7', reason=None)
        >>> single_boxed_answer(r"\boxed{7} or \boxed{8}").reason, single_boxed_answer("It is 7.").reason
        ('several boxes', 'no box')
    """
    answers, unclosed = _scan(text)
    filled = [answer.strip() for answer in answers if answer.strip()]
    if unclosed:
        return BoxedAnswer(None, UNCLOSED_BOX)
    if not filled:
        return BoxedAnswer(None, EMPTY_BOX if answers else NO_BOX)
    if len({"".join(answer.split()) for answer in filled}) > 1:
        return BoxedAnswer(None, SEVERAL_BOXES)
    if len(filled[0]) > max_chars:
        return BoxedAnswer(None, TOO_LONG)
    return BoxedAnswer(filled[0], None)


def last_boxed_answer(text: str, *, max_chars: int = 1000) -> BoxedAnswer:
    r"""Return the last box of a text, which is the answer where several are given, or the reason why there is none.

    Args:
        text: a model's answer.
        max_chars: a longer box is refused.

    Returns:
        the answer, or one of "no box", "unclosed box" (nothing closed comes after it), "empty box", "too long".

    Example:
        >>> last_boxed_answer(r"\boxed{7}, no: \boxed{8}").answer, last_boxed_answer(r"\boxed{7}, no: \boxed{8").reason
        ('8', 'unclosed box')
    """
    answers, unclosed = _scan(text, only_after_last=True)
    if unclosed:
        return BoxedAnswer(None, UNCLOSED_BOX)
    if not answers:
        return BoxedAnswer(None, NO_BOX)
    answer = answers[-1].strip()
    reason = EMPTY_BOX if not answer else TOO_LONG if len(answer) > max_chars else None
    return BoxedAnswer(None if reason else answer, reason)


def _scan(text: str, *, only_after_last: bool = False) -> tuple[list[str], bool]:
    """The innermost closed boxes, and whether some box (after the last closed one, if so asked) stays open."""
    first = re.search(_BOX, text)
    if first is None:
        return [], False
    spans: list[tuple[int, int]] = []
    boxes: list[tuple[int, int]] = []  # the open ones: where the content starts, and the depth of their brace
    depth = 0
    for token in _TOKEN.finditer(text, first.start()):
        if token["box"]:
            depth += 1
            boxes.append((token.end(), depth))
        elif token["open"]:
            depth += 1
        elif token["close"]:
            if boxes and boxes[-1][1] == depth:
                start, _ = boxes.pop()
                if not spans or spans[-1][0] < start:
                    spans.append((start, token.start()))
            depth -= 1
    end = spans[-1][1] if spans and only_after_last else 0
    return [text[start:stop] for start, stop in spans], any(start > end for start, _ in boxes)
