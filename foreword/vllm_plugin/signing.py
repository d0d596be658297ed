"""Signing: cache salts and load orders that only the server's own processes can make.

In: a content hash, values. Out: a salt that no client can guess, values with a seal. A client may
send vLLM a salt or transfer parameters of its own: with a salt that it knew, it could read a
prompt's cached keys, or put its own in their place. The first process makes the secret and its
children inherit it; servers on several hosts that share an engine are given one. Knows no vLLM.
"""

import hashlib
import hmac
import json
import os
import secrets
from typing import Any

from foreword.errors import InputError

VARIABLE = "FOREWORD_SECRET"


def ensure_secret() -> None:
    """Make the secret of this process and its children, where there is none yet."""
    os.environ.setdefault(VARIABLE, secrets.token_hex(32))


def salt(content_hash: str, own: str | None = None) -> str:
    """Return the salt of a prompt's cached blocks, and of a client's own salt within them."""
    return _digest("salt", {"content": content_hash, "own": own})


def sealed(values: dict[str, Any]) -> dict[str, Any]:
    """Return values with a seal."""
    return values | {"seal": _digest("order", values)}


def is_sealed(values: Any) -> bool:
    """Return whether values come from a process with the same secret, unchanged."""
    if not isinstance(values, dict) or not isinstance(given := values.get("seal"), str):
        return False
    rest = {name: value for name, value in values.items() if name != "seal"}
    return hmac.compare_digest(given.encode(), _digest("order", rest).encode())


def _digest(purpose: str, values: dict[str, Any]) -> str:
    key = os.environ.get(VARIABLE)
    if not key:
        raise InputError(f"{VARIABLE} is not set: this process was not started by the plugin")
    text = json.dumps([purpose, values], sort_keys=True)
    return hmac.new(key.encode(), text.encode(), hashlib.sha256).hexdigest()
