"""Name what a misspelt word may have meant. Standard library alone, so that every room can use it."""

import difflib
from collections.abc import Iterable


def did_you_mean(given: object, known: Iterable[object], *, otherwise: str = "") -> str:
    """The nearest of the known words as a question, or `otherwise` where none is spelt like the given one.

    >>> did_you_mean("revers_kl", ["reverse_kl", "forward_kl", None])
    'did you mean reverse_kl?'
    >>> did_you_mean("betta", ["loss_top_k"], otherwise="there is loss_top_k.")
    'there is loss_top_k.'
    """
    words = {str(word).lower(): word for word in known if word is not None}
    near = difflib.get_close_matches(str(given).lower(), words, n=1)
    return f"did you mean {words[near[0]]}?" if near else otherwise
