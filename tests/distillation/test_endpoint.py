"""Questions of a chat endpoint: from the project's own server, and from servers that do not do."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import serving
from test_distill import TEXT
from test_parts import small
from test_self_study import ASKING

from foreword.config import DistillConfig
from foreword.distillation import endpoint, kept_work
from foreword.distillation.endpoint import ChatEndpoint
from foreword.distillation.lesson import prepare
from foreword.distillation.questions import MESSAGES, asked_elsewhere
from foreword.errors import InputError, UnavailableError
from foreword.prompt.store import Store
from foreword.server.server import Server

Reply = tuple[int, dict[str, str], bytes]


@contextlib.contextmanager
def replying(reply: Callable[[int, dict[str, Any], Any], Reply]) -> Iterator[str]:
    """Answer each request by its number, body and headers; yield the address."""
    lock, count = threading.Lock(), 0

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal count
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                count += 1
                number = count
            status, headers, found = reply(number, {"path": self.path} | body, self.headers)
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(found))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(found)

        def log_message(self, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def saying(text: Any) -> Reply:
    body = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    return 200, {}, json.dumps(body).encode()


def asking(url: str, model: str = "tiny", **options: Any) -> DistillConfig:
    return replace(ASKING, questions_from=url, questions_model=model, **options)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "PAUSE", 0.0)


def test_the_server_of_this_project_asks(tmp_path: Path) -> None:
    backbone = serving.tiny_backbone()
    server = Server(backbone, Store(tmp_path), serving.config())
    with serving.running(server) as address:
        found = ChatEndpoint(f"{address}/v1", "tiny").ask(["What?", "Why?"], 9, [5, 6])
        body = {"model": "tiny", "max_tokens": 9, "temperature": 1, "seed": 6}
        body["messages"] = [{"role": "user", "content": "Why?"}]
        answer = httpx.post(f"{address}/v1/chat/completions", json=body).json()
        [choice] = answer["choices"]
        is_cut = choice["finish_reason"] == "length"  # half a question is none
        assert found[1] == ("" if is_cut else choice["message"]["content"])
        with pytest.raises(InputError, match=r"--questions-from http.*: status 404: .*none"):
            ChatEndpoint(f"{address}/v1", "none").ask(["What?"], 9, [5])


def test_its_questions_are_kept_and_asked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREWORD_QUESTIONS_KEY", " secret\n")
    seen: list[dict[str, Any]] = []

    def reply(number: int, body: dict[str, Any], headers: Any) -> Reply:
        seen.append(body | {"key": headers["Authorization"]})
        return saying(f"1. Why is {number}?")

    with replying(reply) as url:
        lesson = prepare(small(1024), TEXT, None, 8, asking(url), folder=tmp_path)
        assert f"asked by tiny at {url}; 0 of 12 dropped" in lesson.said[0]
        assert len(seen) == 12 and {one["key"] for one in seen} == {"Bearer secret"}
        assert all(one["path"] == "/v1/chat/completions" for one in seen)
        assert all(one["max_tokens"] == 20 and one["model"] == "tiny" for one in seen)
        assert all("passage" in one["messages"][0]["content"] for one in seen)
        again = prepare(small(1024), TEXT, None, 8, asking(url), folder=tmp_path)
        assert len(seen) == 12
        assert [row.input_ids for row in again.rows] == [row.input_ids for row in lesson.rows]
        with pytest.raises(InputError, match="holds questions about another text"):
            prepare(small(1024), TEXT, None, 8, asking(url, "other"), folder=tmp_path)
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or b"secret" not in file.read_bytes()
    told = asked_elsewhere(TEXT, MESSAGES["short"], True)
    assert TEXT in told and MESSAGES["short"] in told


def test_a_server_that_is_busy_is_asked_again() -> None:
    def reply(number: int, *_: Any) -> Reply:
        return (503, {}, b"busy") if number < 3 else saying("Why?")

    with replying(reply) as url:
        assert ChatEndpoint(url, "m").ask(["a"], 5, [1]) == ["Why?"]


@pytest.mark.parametrize(
    ("reply", "error", "expected", "count"),
    [
        ((500, {}, b'{"error": {"message": "out\\nof order"}}'), UnavailableError,
         r"no answer in 3 tries \(status 500: out of order\); try again with --resume", 3),
        ((401, {}, b'{"error": {"message": "wrong key"}}'), InputError, "401: wrong key", 1),
        ((302, {"Location": "http://127.0.0.1:1/"}, b""), InputError, "status 302", 1),
        ((404, {}, b"x" * 10_000), InputError, "status 404: x{200}$", 1),
        ((200, {}, b"<html>"), UnavailableError, "expected a chat completion, got something", 1),
        ((200, {}, b'{"choices": []}'), UnavailableError, "is the address that of its /v1", 1),
        ((200, {}, b"[" * 900_000), UnavailableError, "expected a chat completion", 1),
        ((200, {}, b" " * 1_000_001), UnavailableError, "more than 1000000 bytes", 1),
        (saying(["a"]), UnavailableError, "its content is no text", 1),
        ((200, {"Content-Length": "50"}, b"{"), UnavailableError, "no answer in 3 tries", 3),
    ],
)  # fmt: skip
def test_a_server_that_does_not_do_is_told_in_one_line(
    reply: Reply, error: type[Exception], expected: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "SECONDS", 1.0)
    numbers: list[int] = []
    with (
        replying(lambda number, *_: numbers.append(number) or reply) as url,
        pytest.raises(error, match=expected) as caught,
    ):
        ChatEndpoint(url, "m").ask(["a"], 5, [1])
    assert "\n" not in str(caught.value) and len(numbers) == count


def test_nobody_at_the_address_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnavailableError, match="no answer in 3 tries .*refused"):
        ChatEndpoint("http://127.0.0.1:9/v1", "m").ask(["a"], 5, [1])


def test_what_was_answered_is_kept_when_the_server_goes_away(tmp_path: Path) -> None:
    gone: list[int] = []

    def reply(number: int, *_: Any) -> Reply:
        return saying(f"Why {number}?") if number <= 4 or gone else (500, {}, b"")

    with replying(reply) as url:
        with pytest.raises(UnavailableError):
            prepare(small(1024), TEXT, None, 8, asking(url), folder=tmp_path)
        assert len(list((tmp_path / "questions").iterdir())) == 1
        gone.append(1)
        assert len(prepare(small(1024), TEXT, None, 8, asking(url), folder=tmp_path).queries) == 12


def test_answers_that_are_no_text_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = iter(["\ud800 why?", "a\0b?", None, "x " * 5000])

    def reply(number: int, *_: Any) -> Reply:
        return saying(next(odd, f"Why {number}?"))

    monkeypatch.setattr(endpoint, "AT_ONCE", 1)
    with replying(reply) as url:
        lesson = prepare(small(1024), TEXT, None, 8, asking(url))
    assert "4 of 12 dropped: 2 not text, 1 empty, 1 too long" in lesson.said[0]
    assert kept_work.ASKED == "questions"


@pytest.mark.parametrize(
    "url", ["host/v1", "ftp://host", "http://", "http://h:0/v1", "http://h/?a=1", "x"]
)
def test_addresses_that_are_none_are_refused(url: str) -> None:
    with pytest.raises(InputError, match="--questions-from: expected one like https://host/v1"):
        asking(url)
    with pytest.raises(InputError, match="holds a key"):
        asking("http://me:secret@host/v1")
    with pytest.raises(InputError, match="go together"):
        DistillConfig(questions_from="http://host/v1")


def test_a_question_that_was_cut_is_none() -> None:
    body = {"choices": [{"message": {"content": "Which of the"}, "finish_reason": "length"}]}
    with replying(lambda *_: (200, {}, json.dumps(body).encode())) as url:
        assert ChatEndpoint(url, "tiny").ask(["What?"], 9, [5]) == [""]


@pytest.mark.parametrize("key", ["sk-secret\nx", "\u043a\u043b\u044e\u0447"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREWORD_QUESTIONS_KEY", key)
    with pytest.raises(InputError, match="FOREWORD_QUESTIONS_KEY: expected printable") as refused:
        ChatEndpoint("http://127.0.0.1:9/v1", "tiny").ask(["What?"], 9, [5])
    assert key not in str(refused.value)


@pytest.mark.parametrize("host", ["a..b", ".x", "a" * 300])
def test_a_host_that_cannot_be_named_is_refused(host: str) -> None:
    with pytest.raises(InputError, match="--questions-from"):
        asking(f"http://{host}/v1")
    with pytest.raises(InputError, match="--questions-from"):
        ChatEndpoint(f"http://{host}/v1", "tiny").ask(["What?"], 9, [5])


def test_an_answer_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "SECONDS", 0.3)
    monkeypatch.setattr(endpoint, "TRIES", 1)
    is_over = threading.Event()

    def trickle() -> None:
        connection, _ = server.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")
            while not is_over.wait(0.02):
                connection.sendall(b" ")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=trickle)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        with pytest.raises(UnavailableError, match=r"took more than 0\.3 s"):
            ChatEndpoint(url, "tiny").ask(["What?"], 9, [5])
        is_over.set()
        thread.join()
