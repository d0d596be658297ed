"""Options of serving: how a server takes requests on, how many, and which keys go with that."""

from dataclasses import dataclass
from typing import Literal

from foreword.config.addresses import checked_key
from foreword.config.checks import above_zero, at_least_one, check_types, not_negative
from foreword.config.declaring import option
from foreword.errors import InputError

MAX_SERVED_NAME = 200  # characters of a model's name in a request


@dataclass(frozen=True)
class ServeConfig:
    """How a server takes requests on, and how many."""

    host: str = option("127.0.0.1", "address to listen at; the default is this machine only")
    port: int = option(8000, "port to listen at; 0 takes a free one")
    served_name: str | None = option(None, "name of the bare model; default: as it was loaded")
    max_batch: int = option(32, "requests that are answered at once")
    max_queue: int = option(128, "requests that may wait; more are told to come back (503)")
    max_length: int | None = option(
        None, "tokens of one request, virtual and new ones included; default: the model's context"
    )
    default_max_tokens: int = option(
        1024, "new tokens of a chat answer that names no limit; memory is kept for all of them"
    )
    max_choices: int = option(
        16, "answers to one HTTP request: its prompts times its n, or the choices of /v1/classify"
    )
    max_body_bytes: int = option(2_000_000, "size of one HTTP request")
    max_media: int = option(16, "images and sounds of one HTTP request; 0 refuses them")
    image_pixels: int = option(20_000_000, "pixels of all images of one HTTP request")
    media_bytes: int = option(
        1_000_000_000, "memory for images and sounds of requests that wait, in bytes"
    )
    request_seconds: float = option(600.0, "after these a request is ended with an error (504)")
    client_seconds: float = option(
        30.0, "time that a client has to send its request whole, and to take what it is sent"
    )
    drain_seconds: float = option(30.0, "time that running requests get to end at SIGTERM")
    chunk_tokens: int = option(256, "tokens of prompts read between two decoding steps")
    batch_tokens: int | None = option(
        None,
        "tokens of all running requests that memory is kept for; default: 65536, or 16384 with "
        "--engine llama.cpp, which takes that memory at once",
    )
    cache_bytes: int = option(
        1_000_000_000, "memory for the states of prompts and conversations, in bytes"
    )
    runtime_loading: bool = option(
        False, "let the admin key load and unload prompts of the store while serving"
    )
    log_format: Literal["text", "json"] = option(
        "text", "how log lines are written: for people, or each one a JSON object"
    )

    def __post_init__(self) -> None:
        check_types(self)
        at_least_one(
            self, "max_batch", "max_queue", "default_max_tokens", "max_choices", "chunk_tokens"
        )
        above_zero(self, "request_seconds", "client_seconds", "max_body_bytes")
        for name in ("max_length", "batch_tokens"):  # one given and one new
            if (tokens := getattr(self, name)) is not None and tokens < 2:
                option_ = f"--{name.replace('_', '-')}"
                raise InputError(f"{option_} must be at least 2 tokens, got {tokens}")
        not_negative(
            self, "drain_seconds", "cache_bytes", "max_media", "image_pixels", "media_bytes"
        )
        for name in ("host", "served_name"):
            value = getattr(self, name)
            if value is not None and not value.strip():
                raise InputError(f"--{name.replace('_', '-')} is empty; give it, or leave it out")
        name = self.served_name or ""
        if len(name) > MAX_SERVED_NAME or not name.isprintable():
            raise InputError(
                f"--served-name must be at most {MAX_SERVED_NAME} printable characters, which "
                f"clients can send, got {name!r:.80}"
            )
        if not 0 <= self.port < 65536:
            raise InputError(f"--port must be from 0 to 65535, got {self.port}")


def served_name(config: ServeConfig, model: str) -> str:
    """Return the name of the bare model: the option, or how it was loaded.

    Raises:
        InputError: no request could name it.
    """
    found = config.served_name or model
    if len(found) > MAX_SERVED_NAME or not found.isprintable():
        raise InputError(
            f"the bare model would be called {found!r:.60} of {len(found)} characters, and a "
            f"request names at most {MAX_SERVED_NAME} printable ones: give --served-name"
        )
    return found


def check_keys(config: ServeConfig, api_key: str | None, admin_key: str | None) -> None:
    """Refuse keys that do not go with a server's options, or with each other.

    Raises:
        InputError: no key for loading at run time, or one that every client has.
    """
    if not config.runtime_loading:
        return
    if admin_key is None:
        raise InputError("--runtime-loading needs an admin key: set FOREWORD_ADMIN_KEY")
    if checked_key("the admin key", admin_key) == checked_key("the API key", api_key):
        raise InputError(
            "FOREWORD_ADMIN_KEY is FOREWORD_API_KEY, so that every client could load prompts: "
            "give another one"
        )
