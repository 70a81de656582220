"""The address of a server: taken apart, checked at once, and shown without its user and password."""

import base64
import ipaddress
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from .credentials import LEFT_OUT


SCHEMES = ("http", "https")
HOST_AND_PORT = re.compile(r"(?:\[(?P<ip>[^\[\]]+)\]|(?P<name>[^:\[\]]+))(?::(?P<port>[0-9]{0,5}))?")


def is_url(teacher: Any) -> bool:
    """Does a teacher's name mean a server?"""
    return isinstance(teacher, str) and "://" in teacher


@dataclass(frozen=True)
class Address:
    """Where a server is.

    Attributes:
        scheme: http or https.
        host: a name or an IP address.
        port: None for the scheme's own.
        path: below which the server is; empty or `/a/b`. A last `/v1` is dropped.
        user: what an `Authorization: Basic` header carries for the user and password of the address, or None.
    """

    scheme: str
    host: str
    port: int | None
    path: str
    user: str | None = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Take an address apart.

        Raises:
            ValueError: it is none of a server's root. The message shows it without user and password.

        Example:
            >>> str(Address.parse("http://me:pw@[::1]:8000/v1"))
            'http://[::1]:8000'
        """
        try:
            return cls._parse(text)
        except ValueError as error:
            raise ValueError(
                f"{shown(text)!r} is not the address of a server: {error}. Give its root, e.g. http://127.0.0.1:8001."
            ) from None

    @classmethod
    def _parse(cls, text: str) -> "Address":
        if re.search(r"[^!-~]", text):
            raise ValueError("it holds a space or a character outside ASCII")
        if not text.startswith(tuple(f"{scheme}://" for scheme in SCHEMES)):
            raise ValueError("it must start with http:// or https://")
        if "?" in text or "#" in text:
            raise ValueError("a ? or # does not belong there, and a key belongs into OPD_TRL_API_KEY")
        scheme, _, rest = text.partition("://")
        authority, slash, path = rest.partition("/")
        user, _, place = authority.rpartition("@")
        found = HOST_AND_PORT.fullmatch(place)
        if found is None or not is_host(found["ip"] or found["name"].lower()):
            raise ValueError("its host or its port is malformed")
        port = int(found["port"]) if found["port"] else None
        if port is not None and not 0 < port < 65536:
            raise ValueError("its port is not from 1 to 65535")
        path = (slash + path).rstrip("/").removesuffix("/v1").rstrip("/")
        return cls(scheme, found["ip"] or found["name"].lower(), port, path, basic(user) if user else None)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}{'' if self.port is None else f':{self.port}'}{self.path}"


def basic(user: str) -> str:
    """What `Authorization: Basic` carries for `USER:PASSWORD` of an address."""
    name, _, password = user.partition(":")
    return base64.b64encode(f"{unquote(name)}:{unquote(password)}".encode()).decode()


def is_host(text: str) -> bool:
    """Can a text be the name or the IP address of a host?

    >>> [is_host(text) for text in ("teacher_1.local", "::1", "10.0.0.1", "a..b", "a:b", "")]
    [True, True, True, False, False, False]
    """
    if ":" in text:
        try:
            return bool(ipaddress.ip_address(text))
        except ValueError:
            return False
    labels = text.removesuffix(".").split(".")
    return all(re.fullmatch(r"[a-z0-9_-]{1,63}", label) for label in labels) and len(text) < 254


def shown(text: str) -> str:
    """What may be an address, without user, password, and all from a ? on, however malformed it is.

    >>> shown("http://me:p/w@host:99999?key=abc"), shown("me:pw@host")
    ('http://(left out)@host:99999?(left out)', '(left out)@host')
    """
    scheme, divider, rest = text.rpartition("://") if "@" not in text.partition("://")[0] else ("", "", text)
    user, at, rest = rest.rpartition("@")  # a password can hold every other sign
    rest, query, _ = rest.partition("?")
    rest = (user and LEFT_OUT) + at + rest
    return scheme + divider + rest + (query and f"?{LEFT_OUT}")
