"""Chat endpoint: questions from an OpenAI-compatible server, over HTTP.

In: an address, a model's name, messages. Out: the answer's text, or one line that says why not.
Every call is bounded: in time, in tries, in the bytes of its answer; no redirect is followed, since
it would carry the key elsewhere. The key is read from FOREWORD_QUESTIONS_KEY and kept nowhere.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from foreword.config.addresses import checked_key
from foreword.errors import InputError, UnavailableError

KEY = "FOREWORD_QUESTIONS_KEY"
SECONDS = 60.0  # that a call waits for the server
TRIES = 3
PAUSE = 0.5  # seconds before the second try; then twice as long
MAX_BYTES = 1_000_000
CHUNK = 1 << 16  # bytes that are read at once
AT_ONCE = 4  # calls
AGAIN = (408, 429, 500, 502, 503, 504)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


@dataclass(frozen=True)
class ChatEndpoint:
    """A server's chat completions.

    Attributes:
        url: as "https://host/v1".
        model: which of its models answers.
    """

    url: str
    model: str

    def ask(self, texts: Sequence[str], max_tokens: int, seeds: Sequence[int]) -> list[str]:
        """Return the answer to each text, sampled at temperature 1.

        Raises:
            UnavailableError: no answer after three tries, or one that is no chat completion.
            InputError: the server refuses the request.
        """
        with ThreadPoolExecutor(AT_ONCE) as pool:
            jobs = [
                pool.submit(self._answer, text, max_tokens, seed)
                for text, seed in zip(texts, seeds, strict=True)
            ]
            try:
                return [job.result() for job in jobs]
            finally:
                pool.shutdown(cancel_futures=True)

    def _answer(self, text: str, max_tokens: int, seed: int) -> str:
        body = json.dumps(
            {
                "model": self.model,
                "messages": [{"role": "user", "content": text}],
                "max_tokens": max_tokens,
                "temperature": 1,
                "seed": seed,
            }
        ).encode()
        for attempt in range(TRIES):
            try:
                return self._read(self._send(body))
            except urllib.error.HTTPError as error:
                why = f"status {error.code}: {_said(error)}"
                if error.code not in AGAIN:
                    raise InputError(f"--questions-from {self.url}: {why}") from None
            except UnicodeError as error:
                raise InputError(f"--questions-from {self.url}: no host has this name") from error
            except (OSError, http.client.HTTPException) as error:
                why = str(getattr(error, "reason", None) or error) or type(error).__name__
            if attempt + 1 < TRIES:
                time.sleep(PAUSE * 2**attempt)
        raise UnavailableError(
            f"--questions-from {self.url}: no answer in {TRIES} tries ({why}); try again with "
            "--resume: what it has answered before is kept, but for the newest --answer-batch"
        )

    def _send(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY, "").strip():
            headers["Authorization"] = f"Bearer {checked_key(KEY, os.environ[KEY])}"
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions", body, headers, method="POST"
        )
        opener = urllib.request.build_opener(_NoRedirect)
        deadline = time.monotonic() + SECONDS
        with opener.open(request, timeout=SECONDS) as response:
            found = b""
            while part := response.read1(min(CHUNK, MAX_BYTES + 1 - len(found))):
                found += part
                if time.monotonic() > deadline:
                    raise TimeoutError(f"its answer took more than {SECONDS:g} s")
            if len(found) <= MAX_BYTES and response.length:
                raise http.client.IncompleteRead(found, response.length)
        return found

    def _read(self, body: bytes) -> str:
        try:
            if len(body) > MAX_BYTES:
                raise ValueError(f"more than {MAX_BYTES} bytes")
            choice = json.loads(body)["choices"][0]
            content = choice["message"]["content"]
            if not isinstance(content, str | None):
                raise ValueError("its content is no text")
            if choice.get("finish_reason") == "length":
                return ""  # half a question is none
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise UnavailableError(
                f"--questions-from {self.url}: expected a chat completion, got something else "
                f"({type(error).__name__}: {error!s:.100}): is the address that of its /v1?"
            ) from None
        return content or ""


def _said(error: urllib.error.HTTPError) -> str:
    """Return what a server says of a refusal, in one bounded line."""
    try:
        body = error.read(10_000)
    except (OSError, http.client.HTTPException):
        return str(error.reason)
    try:
        said = json.loads(body)["error"]["message"]
    except (ValueError, LookupError, TypeError, RecursionError):
        said = body.decode("utf-8", "replace") or error.reason
    return " ".join(str(said).split())[:200]
