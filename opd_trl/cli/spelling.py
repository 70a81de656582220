"""What somebody may have meant by a name that does not exist."""

import difflib

from ..scripts.launching import flag_name


def suggest(given: str, known: list[str]) -> str:
    """Name the nearest right key or flag.

    >>> suggest("betta", ["beta", "learning_rate"])
    'betta: did you mean beta?'
    """
    near = difflib.get_close_matches(flag_name(given), known, n=1)
    if not near:
        return f"{given}: nothing is spelt like it; `--help` and `--help-all` list what there is."
    dashes = "--" if given.startswith("--") else ""
    return f"{given}: did you mean {dashes}{near[0]}?"
