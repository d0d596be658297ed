"""llama-server client: an exported state restored into a slot, and the proof that it is used.

In: a running server, a slot file and its sidecar. Out: how many tokens came from the cache at a
request behind the prompt's ids; fewer than P, another base or a file that the server does not take
is an error. A server that is only asked would go on with the bare model.
"""

import http.client
import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from foreword.errors import InputError, MismatchError, UnavailableError
from foreword.export.state_ids import check_alone, read_facts
from foreword.export.targets import check_server
from foreword.llama_cpp import base

MAX_ANSWER = 1 << 24  # bytes
SECONDS = 60.0


def restore(
    url: str, path: str | os.PathLike[str], *, slot: int = 0, api_key: str | None = None
) -> int:
    """Restore a slot file, which lies in the server's `--slot-save-path`, and prove that a request
    starts from it; return how many of its tokens came from the cache.

    Raises:
        InputError: no sidecar, no such server, one that does not take the file, or a state of
            another prompt under the same ids beside it.
        MismatchError: the server has another base. UnavailableError: the state is not used.
    """
    facts = read_facts(path)
    check_alone(path, facts)
    server = _Server(url, api_key)
    _check_base(server, facts, path)
    server.ask(f"/slots/{slot}?action=erase", {})  # what ran under these ids without the prompt
    name = Path(path).name
    restored = server.ask(f"/slots/{slot}?action=restore", {"filename": name}).get("n_restored")
    ids = facts["ids"]
    if restored != len(ids):
        raise UnavailableError(f"{url} restored {restored} tokens of {name}, expected {len(ids)}")
    # One more id than the state has, as a request has: the state itself is not run again.
    asked = {"prompt": [*ids, ids[-1]], "n_predict": 0, "cache_prompt": True, "id_slot": slot}
    answered = server.ask("/completion", asked)
    return check_cached(answered, len(ids), f"{url}: slot {slot}")


def check_cached(answer: dict[str, Any], num_virtual: int, where: str) -> int:
    """Return how many tokens an answer of llama-server took from its cache.

    Raises:
        UnavailableError: fewer than the prompt has: it was answered without the prompt.
    """
    timings = answer.get("timings")
    found = timings.get("cache_n") if isinstance(timings, dict) else None
    if type(found) is not int or found < num_virtual:
        raise UnavailableError(
            f"{where}: {found} tokens came from the cache, expected {num_virtual} or more: the "
            "answer was made without the prompt; restore the slot again"
        )
    return found


def _check_base(server: "_Server", facts: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Refuse another base: by its file's hash where that is on this machine, else by its size."""
    own = facts["base"]
    told = server.ask("/props").get("model_path")
    known = Path(told) if isinstance(told, str) and "\0" not in told else Path()
    if known.is_file():
        if base.sha256_of(known) != own["sha256"]:
            raise MismatchError(
                f"{path} was exported for {own.get('gguf')}; {server.url} serves {known}, another "
                "file: export the prompt for that one"
            )
        return
    found, wanted = _meta(server.ask("/v1/models")), own.get("meta")
    wanted = wanted if isinstance(wanted, dict) else {}
    differing = [key for key, value in wanted.items() if found.get(key) != value]
    if differing or not wanted:
        raise MismatchError(
            f"{path} was exported for {own.get('gguf')}; the model of {server.url} is another one "
            f"(they differ in {', '.join(differing) or 'all that is known'})"
        )


def _meta(answer: dict[str, Any]) -> dict[str, Any]:
    """Return what llama-server says of its model; nothing where it says something else."""
    try:
        found = answer["data"][0]["meta"]
    except (LookupError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _said(error: urllib.error.HTTPError) -> str:
    """Return what a server says of a refusal, in one bounded line."""
    with error:
        try:
            return " ".join(error.read(2000).decode(errors="replace").split())
        except (OSError, http.client.HTTPException):
            return str(error.reason)


class _Server:
    """Asks one server; its answers are bounded."""

    def __init__(self, url: str, api_key: str | None) -> None:
        check_server(url)
        self.url, self.api_key = url.rstrip("/"), api_key

    def ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the JSON object of an answer.

        Raises:
            InputError: it cannot be reached, refuses, or answers something else.
        """
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self.url + path, data, {"content-type": "application/json"})
        if self.api_key is not None:
            asked.add_header("authorization", f"Bearer {self.api_key}")
        try:
            with urllib.request.urlopen(asked, timeout=SECONDS) as answer:
                found = json.loads(answer.read(MAX_ANSWER))
        except urllib.error.HTTPError as error:
            raise InputError(
                f"{self.url}{path} refuses ({error.code}: {_said(error):.300})"
            ) from None
        except (OSError, ValueError, http.client.HTTPException, RecursionError) as error:
            said = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{self.url}{path} cannot be asked ({said:.300})") from None
        if not isinstance(found, dict):
            raise InputError(f"{self.url}{path}: expected a JSON object; is it a llama-server?")
        return found
