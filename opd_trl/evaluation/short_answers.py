"""Short answers to short questions: is one of the accepted answers given, first and plainly?"""

import re
import unicodedata
from collections.abc import Sequence


# An accepted answer counts where it stands within so many words; a chatty model may begin "The capital of Peru is".
MAX_WORDS = 40


def gives_answer(text: str, accepted: Sequence[str]) -> bool:
    """Does the first sentence of a text, at most its first `MAX_WORDS` words, hold an accepted answer as whole words?

    Case, accents, punctuation and the commas within numbers do not count. A looser measure than the equality of
    strings, since instruction-tuned models answer in sentences; a collapsed text holds no answer.

    Example:
        >>> gives_answer("The capital of Peru is Lima.", ["Lima"]), gives_answer("It is 1,024!", ["1024"])
        (True, True)
        >>> gives_answer("It is limasol.", ["Lima"]), gives_answer("112", ["12"]), gives_answer("", ["12"])
        (False, False, False)
    """
    first = re.split(r"(?<=[.!?])\s|\n", text.strip()[:2000], maxsplit=1)[0]
    words = plain(" ".join(first.split()[:MAX_WORDS]))
    return any(f" {plain(answer)} " in f" {words} " for answer in accepted)


def plain(text: str) -> str:
    """Letters and digits in lower case, one blank between words.

    >>> plain("It's São Paulo: 1,024.5!")
    'it s sao paulo 1024.5'
    """
    text = unicodedata.normalize("NFKD", text.lower())
    text = "".join(sign for sign in text if not unicodedata.combining(sign))
    text = re.sub(r"(?<=\d),(?=\d)", "", text)
    return " ".join(re.sub(r"(?<!\d)\.|\.(?!\d)|[^\w.]|_", " ", text).split())
