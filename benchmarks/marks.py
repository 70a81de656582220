"""Parts of pages that a script writes, between two marks."""

from pathlib import Path


def marks_of(script: str) -> tuple[str, str]:
    """The lines that begin and end what `benchmarks/<script>.py` writes.

    >>> marks_of("internalise")
    ('<!-- internalise: begin, written by benchmarks/internalise.py -->', '<!-- internalise: end -->')
    """
    return f"<!-- {script}: begin, written by benchmarks/{script}.py -->", f"<!-- {script}: end -->"


def write_between_marks(page: Path, text: str, script: str) -> None:
    """Replace what stands between the marks of a script on a page.

    Raises:
        ValueError: the page is missing, or has not each mark once, in their order.
    """
    content, (begin, end) = page.read_text(encoding="utf-8") if page.is_file() else "", marks_of(script)
    if content.count(begin) != 1 or content.count(end) != 1 or content.index(begin) > content.index(end):
        raise ValueError(f"{page} must hold the lines {begin} and {end}, once and in this order. Put them there.")
    head, rest = content.split(begin)
    temporary = page.with_suffix(".part")
    temporary.write_text(f"{head}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}", encoding="utf-8")
    temporary.replace(page)
