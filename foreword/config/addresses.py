"""Addresses and keys: those that options and variables of the environment name.

In: text. Out: the same as it is compared or sent, or an error that says what is expected. Nothing
is looked up.
"""

import re
from urllib.parse import urlsplit

from foreword.errors import InputError

HOST = re.compile(r"[a-z0-9._-]+")  # of an origin, as browsers write it


def checked_key(name: str, key: str | None) -> str | None:
    """Return a key without the line break that a variable may end in; None where there is none.

    Raises:
        InputError: an empty key, which would let everybody in, or one that lets nobody in.
    """
    if key is None:
        return None
    key = key.strip()
    if not key:
        raise InputError(f"{name} is empty; give a key, or unset it to do without one")
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"{name}: expected printable ASCII, found what no header can carry")
    return key


def checked_origin(origin: str) -> str:
    """Return the origin of a web page as browsers write it.

    Raises:
        InputError: not one origin.
    """
    try:
        parts = urlsplit(origin.strip().rstrip("/"))
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    has_more = parts.path or parts.query or parts.fragment or "@" in parts.netloc
    is_one = host is not None and (":" in host or HOST.fullmatch(host)) and port != 0
    if not parts.scheme or not host or not is_one or has_more or not origin.isascii():
        raise InputError(f"--allow-origin: expected one like https://app.example, got {origin!r}")
    host = f"[{host}]" if ":" in host else host
    is_default = port in (None, {"http": 80, "https": 443}.get(parts.scheme))
    return f"{parts.scheme}://{host}" + ("" if is_default else f":{port}")


def is_http(url: str) -> bool:
    """Return whether a text is the address of a server or of a folder on it, and no more."""
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        (parts.hostname or "").encode("idna")  # as a socket asks for it
    except ValueError:
        return False
    plain = url.isascii() and url.isprintable() and " " not in url
    return is_one and plain and not parts.query and not parts.fragment


def check_endpoint(url: str) -> None:
    """Refuse what is no address of an endpoint, and one that holds a key.

    Raises:
        InputError: says what is expected.
    """
    if not is_http(url):
        raise InputError(f"--questions-from: expected one like https://host/v1, got {url!r:.200}")
    if "@" in urlsplit(url).netloc:
        raise InputError("--questions-from holds a key: give it as FOREWORD_QUESTIONS_KEY")
