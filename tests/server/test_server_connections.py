"""Connections: silent and slow clients keep nobody out, and whatever is refused is told in JSON."""

import contextlib
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from serving import config, running, tiny_backbone

from foreword import Backbone
from foreword.server.server import Server

ASK = {"model": "tiny", "prompt": "hi", "max_tokens": 2}
POST = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
FEW = {"max_batch": 1, "max_queue": 1}  # eight requests at once


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone()


@pytest.fixture(scope="module")
def address(backbone: Backbone) -> Iterator[str]:
    with running(Server(backbone, None, config())) as found:
        yield found


@contextlib.contextmanager
def connected(address: str, count: int = 1) -> Iterator[list[socket.socket]]:
    host, port = address.removeprefix("http://").split(":")
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection((host, int(port)), 30))
            for _ in range(count)
        ]


def received(connection: socket.socket) -> bytes:
    """Return all that comes until the server closes the connection."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            found += part
    return found


def error_in(answer: bytes) -> tuple[int, dict[str, Any]]:
    """Return the status and the error of a whole answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower()
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return int(head.split()[1]), error


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


# Silent and slow clients ------------------------------------------------------------------------


def test_silent_connections_keep_nobody_out(backbone: Backbone) -> None:
    server = Server(backbone, None, config(**FEW))
    with running(server) as address, connected(address, 40) as silent:
        silent[0].sendall(POST)
        assert httpx.get(f"{address}/health").status_code == 200
        assert httpx.post(f"{address}/v1/completions", json=ASK).status_code == 200
        until(lambda: len(server.server_state.connections) <= 10)


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
def test_probes_are_answered_when_nobody_else_is(backbone: Backbone, path: str) -> None:
    server = Server(backbone, None, config(**FEW))
    with running(server) as address, connected(address, 8) as slow:
        for one in slow:
            one.sendall(POST + b"content-length: 100\r\n\r\n{")
        until(lambda: httpx.post(f"{address}/v1/completions", json=ASK).status_code == 503)
        busy = httpx.post(f"{address}/v1/completions", json=ASK)
        assert busy.json()["error"]["code"] == 503 and int(busy.headers["retry-after"]) >= 1
        found = httpx.get(f"{address}{path}")
        assert found.status_code == 200
        text = httpx.get(f"{address}/metrics").text
        assert 'admission_rejections_total{model_name="tiny",reason="queue_full"}' in text


@pytest.fixture(scope="module")
def impatient(backbone: Backbone) -> Iterator[tuple[str, Server]]:
    server = Server(backbone, None, config(client_seconds=0.2))
    with running(server) as found:
        yield found, server


def test_a_connection_that_stays_silent_is_closed(impatient: tuple[str, Server]) -> None:
    with connected(impatient[0]) as (connection,):
        assert received(connection) == b""


@pytest.mark.parametrize("sent", [b"P", POST, POST + b"content-length: 9\r\n\r\n{"])
def test_a_request_that_does_not_come_is_given_up(
    impatient: tuple[str, Server], sent: bytes
) -> None:
    with connected(impatient[0]) as (connection,):
        connection.sendall(sent)
        status, error = error_in(received(connection))
        assert status == error["code"] == 408


def test_a_body_that_nobody_waits_for_is_given_up(impatient: tuple[str, Server]) -> None:
    with connected(impatient[0]) as (connection,):
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{")
        assert b" 200 " in received(connection)


def test_an_idle_connection_after_a_byte_more_is_closed(impatient: tuple[str, Server]) -> None:
    with connected(impatient[0]) as (connection,):
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\nG")
        assert received(connection).count(b"HTTP/1.1") == 2, "its answer, and then 408"


def test_a_client_that_takes_nothing_is_closed(impatient: tuple[str, Server]) -> None:
    address, server = impatient
    one = b"GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with connected(address) as (connection,):
        connection.sendall(one * 2000)
        until(lambda: len(server.server_state.connections) == 1)
        until(lambda: not server.server_state.connections)
    assert httpx.get(f"{address}/health").status_code == 200


def test_a_body_in_tiny_pieces_is_not_taken_apart_to_its_end(
    backbone: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(backbone, None, config(max_body_bytes=100_000))
    with (
        caplog.at_level(logging.INFO, logger="foreword.access"),
        running(server) as address,
        connected(address) as (connection,),
    ):
        connection.sendall(POST + b"transfer-encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(b"1\r\n \r\n" * 60_000 + b"0\r\n\r\n")
        until(lambda: '"status": 499' in caplog.text)
        assert httpx.post(f"{address}/v1/completions", json=ASK).status_code == 200


# What is refused --------------------------------------------------------------------------------

LINE = b" HTTP/1.1\r\nhost: localhost\r\n"
END = b"connection: close\r\n\r\n"
WEBSOCKET = b"upgrade: websocket\r\nsec-websocket-key: eA==\r\nsec-websocket-version: 13\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET /" + b"x" * 60_000 + LINE + END, 404),
        (b"GET /ws" + LINE + b"connection: upgrade\r\n" + WEBSOCKET + b"\r\n", 404),
        (b"GET /v1/completions" + LINE + b"connection: upgrade\r\n" + WEBSOCKET + b"\r\n", 405),
        (b"GET /nothing" + LINE + END, 404),
        (b"GET /health/" + LINE + END, 404),
        (b"GET *" + LINE + END, 404),
        (b"CONNECT evil.example:443" + LINE + END, 404),
        (b"DELETE /v1/models" + LINE + END, 405),
        (b"MADEUP /v1/models" + LINE + END, 405),
        (b"POST /v1/completions" + LINE + END, 415),
        (POST + b"content-length: 99999999\r\n" + END, 413),
        (POST + b"transfer-encoding: chunked\r\n" + END + b"f4240\r\n" + b"x" * 1_000_000 + b"\r\n"
         b"f4240\r\n" + b"x" * 1_000_000 + b"\r\n5\r\n12345\r\n", 413),
        (POST + b"transfer-encoding: chunked\r\n" + END + b"zz\r\n", 400),
    ],
)  # fmt: skip
def test_whatever_is_refused_is_told_in_the_apis_format(
    address: str, request_: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), connected(address) as (connection,):
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(request_)
        connection.shutdown(socket.SHUT_WR)
        assert error_in(received(connection))[0] == status
    assert "Traceback" not in caplog.text and "WebSocket" not in caplog.text
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]


def test_a_failure_that_nobody_expected_is_told_in_the_apis_format(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(backbone, None, config())

    def fail(*_: Any) -> None:
        raise RuntimeError("secret text")

    monkeypatch.setattr(server.catalog, "find", fail)
    with running(server) as address:
        found = httpx.post(f"{address}/v1/completions", json=ASK)
    assert found.status_code == found.json()["error"]["code"] == 500
    assert "RuntimeError" in found.text and "secret" not in found.text


def test_an_error_repeats_little_of_what_a_client_sent(address: str) -> None:
    found = httpx.get(f"{address}/v1/models/tiny@{'x' * 10_000}")
    assert found.status_code in (400, 404) and len(found.content) < 1500


def test_the_log_holds_no_method_that_a_client_made_up(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), connected(address) as (connection,):
        connection.sendall(b"PRIVATE" * 1000 + b" /health HTTP/1.1\r\nhost: localhost\r\n" + END)
        assert error_in(received(connection))[0] == 405
    assert "PRIVATE" not in caplog.text and '"method": "other"' in caplog.text


def test_a_redirect_to_a_host_that_a_client_names_is_not_made(backbone: Backbone) -> None:
    with running(Server(backbone, None, config())) as address:
        found = httpx.get(f"{address}/v1/models/", follow_redirects=False)
        assert found.status_code == 404
