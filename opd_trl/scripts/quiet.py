"""Keep the bars, warnings and advice of libraries off the screen."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def quiet_start() -> None:
    """Leave out, for the rest of this process, what libraries say at every start and no user can act on.

    Names of transformers that TRL still uses, accelerate's list of its own defaults, DeepSpeed on a CPU, and a kernel
    for CPUs that bitsandbytes would download.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.getLogger("accelerate.commands.launch").setLevel(logging.ERROR)
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    logging.getLogger("DeepSpeed").addFilter(says_more)


def says_more(record: logging.LogRecord) -> bool:
    """Does DeepSpeed say more than that it sees no GPU?"""
    return "Setting accelerator to CPU" not in record.getMessage()


@contextmanager
def quiet_libraries(*, ours_too: bool = True) -> Iterator[None]:
    """Within, the libraries show no loading bars and give no advice; afterwards everything is as it was before.

    Args:
        ours_too: leave out every warning and our own log as well, where another process or a report gives them.
            Otherwise only the libraries' own FutureWarnings are left out.
    """
    import datasets  # not before it is needed: the help of a command must come at once
    import transformers

    loggers = {name: logging.getLogger(name) for name in (*["opd_trl"] * ours_too, "accelerate", "trl")}
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
            if ours_too:
                warnings.simplefilter("ignore")
            else:
                warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
            yield
    finally:
        for name, logger in loggers.items():
            logger.setLevel(levels[name])
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()
        if datasets_bars:
            datasets.enable_progress_bars()
