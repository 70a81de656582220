"""Keys and passwords: read from the environment in one way, and left out of all that is shown or written."""

import json
import math
import os
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

from .foreign import parse_json


#: Environment variable with the key of a served teacher, on both sides.
API_KEY_VARIABLE = "OPD_TRL_API_KEY"
SECRET = re.compile(r"(token|key|password|secret)$", re.IGNORECASE)
#: User and password of an address, also of one without its scheme.
USER_INFO = re.compile(r"(?<=://)[^/\s?#]*(?=@)|(?<![^\s'\"=])[^\s/:@]+:[^\s/@]+(?=@)")
#: The value of a parameter whose name says that it is a secret.
PARAMETER = re.compile(r"(?<=[?&])([^\s=&#]*(?:token|key|passw|secret|sig)[^\s=&#]*=)[^\s&#'\"]+", re.IGNORECASE)
LEFT_OUT = "(left out)"
#: A key of fewer characters is not a secret: leaving it out of a text would only garble the text.
SHORTEST_KEY = 8


class Key(str):
    """A key that no `repr` shows."""

    __slots__ = ()

    def __repr__(self) -> str:
        return LEFT_OUT


def api_key() -> Key | None:
    """The key of the environment, or None where it is not set or empty; raises ValueError as `usable_key` does."""
    return usable_key(os.environ.get(API_KEY_VARIABLE))


def usable_key(text: str | None) -> Key | None:
    """A key without the white space around it, such as the last newline of a file; None where nothing is left.

    Raises:
        ValueError: a key that no header can carry. The message does not hold it.

    Example:
        >>> usable_key("abc\\n") == "abc", usable_key(" "), usable_key("abc")
        (True, None, (left out))
    """
    key = (text or "").strip()
    wrong = next((place for place, sign in enumerate(key, 1) if not " " <= sign <= "~"), None)
    if wrong is not None:
        raise ValueError(
            f"the key ({API_KEY_VARIABLE}) cannot be sent in a header: character {wrong} of {len(key)} is not a "
            "printable ASCII character. Make one with `openssl rand -hex 32`, and set it on both sides."
        )
    return Key(key) if key else None


def hide(text: str) -> str:
    """A text without the key of the environment, and without users, passwords and keys in addresses.

    Example:
        >>> hide("http://me:pw@host:1/v1?api_key=abc&n=1")
        'http://(left out)@host:1/v1?api_key=(left out)&n=1'
    """
    key = os.environ.get(API_KEY_VARIABLE, "").strip()
    if len(key) >= SHORTEST_KEY:
        text = text.replace(key, LEFT_OUT)
    return PARAMETER.sub(rf"\1{LEFT_OUT}", USER_INFO.sub(LEFT_OUT, text))


def is_secret(name: str) -> bool:
    """Does a field hold a secret, to judge by its name?"""
    return SECRET.search(name) is not None


def as_json(value: Any) -> Any:
    """A JSON value: numbers, texts, lists and mappings as they are, all else as text; without secrets.

    Example:
        >>> as_json({"url": "http://me:pw@host/", "hub_token": "abc", "rate": float("inf"), "size": 2})
        {'url': 'http://(left out)@host/', 'rate': 'inf', 'size': 2}
    """
    if isinstance(value, Mapping):
        return {hide(str(name)): as_json(x) for name, x in value.items() if not is_secret(str(name))}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [as_json(x) for x in value]
    if isinstance(value, Enum):
        return as_json(value.value)
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return hide(str(value))


def without_secrets(argv: list[str]) -> list[str]:
    """A command line without the values of `--*token`, `--*key` and the like.

    Example:
        >>> without_secrets(["train.py", "--hub_token", "abc", "--api-key=x", "--lr", "1e-4", '{"token": "abc"}'])
        ['train.py', '--hub_token', '(left out)', '--api-key=(left out)', '--lr', '1e-4', '{}']
    """
    shown, is_value = [], False
    for argument in argv:
        name, equals, _ = argument.partition("=")
        is_option = argument.startswith("--")
        if is_value and not is_option:
            shown.append(LEFT_OUT)
        elif is_option and equals and is_secret(name):
            shown.append(f"{name}={LEFT_OUT}")
        else:
            shown.append(mapping_without_secrets(argument))
        is_value = is_option and not equals and is_secret(argument)
    return shown


def mapping_without_secrets(argument: str) -> str:
    """A JSON mapping without its secrets; any other argument without those of an address."""
    name, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    try:
        content = parse_json(value)
    except (ValueError, RecursionError):
        content = None
    if isinstance(content, dict):
        value = json.dumps(as_json(content))
    return name + equals + hide(value)
