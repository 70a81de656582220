"""What checks print: progress, verdicts in colour, tables."""

import contextlib
import logging
import warnings
from collections.abc import Iterator


STYLES = {"ok": "green", "fix": "yellow", "stop": "bold red", "not run": "dim"}


@contextlib.contextmanager
def hush() -> Iterator[None]:
    """Leave the screen to the check: no loading bars, no advice of libraries."""
    import datasets
    import transformers

    loggers = {name: logging.getLogger(name) for name in ("opd_trl", "accelerate", "trl")}
    levels = {name: logger.level for name, logger in loggers.items()}
    verbosity, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    datasets_bars = not datasets.are_progress_bars_disabled()
    for logger in loggers.values():
        logger.setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, logger in loggers.items():
            logger.setLevel(levels[name])
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()
        if datasets_bars:
            datasets.enable_progress_bars()


def verdict(word: str) -> str:
    """A verdict with its colour, for rich."""
    return f"[{STYLES[word]}]{word}[/]"


def number(value: float | None, form: str = ".3f") -> str:
    """A figure, or a dash where there is none.

    >>> number(0.5), number(None)
    ('0.500', '-')
    """
    return "-" if value is None else format(value, form)
