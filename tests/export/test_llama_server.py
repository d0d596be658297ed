"""A llama-server that is none: every address and every answer ends in one line."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from foreword.errors import ForewordError, InputError
from foreword.export import llama_server, targets

ADDRESSES = (
    "localhost:8080", "ftp://here", "http://", "http://localhost:abc", "http://[::1",
    "http://a b:80", "http://localhost:99999", "http://localhost:0", "http://\u00fc",
    "http://a\n.b", "http://user:secret@h:1", "http://h:1/?a=b", "http://" + "a" * 70 + ":80",
)  # fmt: skip
OK = b"HTTP/1.1 200 OK\r\n\r\n"
ANSWERS = {
    "no HTTP": b"SSH-2.0-OpenSSH_9\r\n",
    "nothing": b"",
    "cut short": b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{",
    "a refusal cut short": b"HTTP/1.1 500 X\r\nContent-Length: 900\r\n\r\nabc",
    "elsewhere": b"HTTP/1.1 302 X\r\nLocation: ftp://x/y\r\n\r\n",
    "a list": OK + b"[]",
    "deep": OK + b"[" * 100_000,
    "no JSON": OK + b"\xff",
    "data of another shape": OK + b'{"data": {"a": 1}, "model_path": 5}',
    "models of another shape": OK + b'{"data": ["x"], "model_path": "a\\u0000b"}',
    "meta of another shape": OK + b'{"data": [{"meta": [1]}], "model_path": []}',
    "no models": OK + b'{"data": []}',
}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    facts = {"ids": [0, 1], "base": {"sha256": "0", "meta": {"n_vocab": 5}}}
    (tmp_path / "x.bin.json").write_text(json.dumps(facts), encoding="utf-8")
    return tmp_path / "x.bin"


@contextlib.contextmanager
def answering(said: bytes) -> Iterator[str]:
    """Answer every request by the same bytes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(said)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
    thread.join(5)


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_that_is_none_is_refused(address: str, state: Path) -> None:
    for ask in (
        lambda: targets.check_server(address),
        lambda: llama_server.restore(address, state),
    ):
        with pytest.raises(InputError, match="is no address; expected http://HOST:PORT") as caught:
            ask()
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("address", ["http://localhost:8080", "https://[::1]:1/under/", "http://h"])
def test_an_address_is_taken(address: str) -> None:
    targets.check_server(address)


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_that_is_none_is_refused_in_one_line(kind: str, state: Path) -> None:
    with answering(ANSWERS[kind]) as url, pytest.raises(ForewordError) as caught:
        llama_server.restore(url, state)
    message = str(caught.value)
    assert message.isprintable() and url in message and len(message) < 600
