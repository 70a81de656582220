"""What the parsers of several commands have in common: their form, and the values that they read alike."""

import argparse
import json
from typing import Any


def command_parser(prog: str, description: str, epilog: str | None = None, **options: Any) -> argparse.ArgumentParser:
    """A parser that prints its texts as they are written, and takes no abbreviated flags."""
    form = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(
        prog, description=description, epilog=epilog, formatter_class=form, allow_abbrev=False, **options
    )


def json_object(text: str) -> dict[str, Any]:
    """Read a JSON object; raises ArgumentTypeError where the text is something else."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object, such as " + '{"enable_thinking": false}')
    return value


def columns(text: str) -> dict[str, str]:
    """Read `prompt=question,answer=label`; `answer` alone is `answer=answer`.

    >>> columns("prompt=question,answer")
    {'prompt': 'question', 'answer': 'answer'}
    """
    pairs = [piece.strip().partition("=") for piece in text.split(",")]
    found = {ours: theirs or ours for ours, _, theirs in pairs}
    if "" in found or len(found) < len(pairs) or "prompt" not in found:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected OURS=THEIRS pairs, each name once and prompt among them, e.g. "
            "prompt=question,answer=label"
        )
    return found
