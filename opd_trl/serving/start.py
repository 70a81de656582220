"""Before a model is served: is what is asked for there, may it be served at that address, and is the port free?"""

import argparse
import importlib.util
import ipaddress
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from ..credentials import API_KEY_VARIABLE
from ..data.files import looks_local


class InputError(Exception):
    """What was asked for cannot be served; the message is one line."""


def check(args: argparse.Namespace, key: str | None) -> None:
    """Raise InputError where a package, the folder of the model or the key is missing, before anything is loaded."""
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f'{" and ".join(missing)} not installed. Install with: pip install "opd_trl[serve]"')
    folder = Path(args.model).expanduser()
    if folder.exists() and not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise InputError(f"--model {args.model} holds no config.json: it is not the folder of a saved model.")
    if looks_local(args.model) and not folder.exists():
        raise InputError(f"--model {args.model} does not exist (looked in {Path.cwd()}). Give a folder or a hub id.")
    if key is None and not is_loopback(args.host):
        raise InputError(
            f"--host {args.host} can be reached from other machines, and {API_KEY_VARIABLE} is not set. Set it here "
            f"and for the students, e.g. `export {API_KEY_VARIABLE}=$(openssl rand -hex 32)`, or "
            "keep --host 127.0.0.1."
        )


def resolve(host: str) -> list[tuple[Any, ...]]:
    """The addresses of a host, as `socket.getaddrinfo` gives them; raises InputError where there are none."""
    try:
        return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host} is not an address of this machine ({error}). Give e.g. 127.0.0.1.") from None


def is_loopback(host: str) -> bool:
    """Do all addresses of a host stay on this machine?

    >>> is_loopback("127.0.0.1"), is_loopback("0.0.0.0")
    (True, False)
    """
    return all(ipaddress.ip_address(entry[4][0].partition("%")[0]).is_loopback for entry in resolve(host))


def bind(host: str, number: int) -> socket.socket:
    """A socket that holds the port before the model is loaded; raises InputError where the port cannot be had."""
    family, _, _, _, address = resolve(host)[0]
    # With the protocol named, asyncio sends small packets at once; without it every answer waits 40 ms for an ACK.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((address[0], number, *address[2:]))
    except OSError as error:
        sock.close()
        raise InputError(f"port {number} of {host} cannot be used ({error.strerror}). Give another --port.") from None
    return sock


def end_on_signals() -> None:
    """Let SIGTERM and Ctrl-C end the process while the model loads; uvicorn repeats them after its own shutdown."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
