"""What a server withstands: strangers, overload, clients that go, changing prompts, its death."""

import concurrent.futures
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import serving
import torch
from serving import config, expected, fill, running, tiny_backbone, tiny_prompt
from typer.testing import CliRunner

from foreword import Backbone, SoftPrompt
from foreword.cli import app
from foreword.errors import DependencyError, InputError
from foreword.prompt.peft_format import FILES
from foreword.prompt.store import Store
from foreword.server.middleware import ADMIN, OPEN
from foreword.server.server import Server, warnings_for

LONG: dict[str, Any] = {"model": "tiny", "prompt": "hi", "max_tokens": 250, "ignore_eos": True}
SHORT: dict[str, Any] = {"model": "tiny", "prompt": "hi", "max_tokens": 4, "temperature": 0}
ADMIN_KEY = {"authorization": "Bearer root"}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone()


def until(condition: Callable[[], bool]) -> None:
    """Wait for another thread."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def is_idle(server: Server) -> bool:
    engine = server.worker.engine
    return not engine.has_work and not engine.kv_cache.num_bytes and not server.worker.num_live


def slowed(server: Server, seconds: float = 0.01) -> None:
    """Let each step take a while, so that tests meet requests under way."""
    step = server.worker.engine.step

    def slow() -> bool:
        time.sleep(seconds)
        return step()

    server.worker.engine.step = slow  # type: ignore[method-assign]


# Keys and hosts ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    store = Store(tmp_path_factory.mktemp("guarded") / "store")
    server = Server(
        backbone, store, config(runtime_loading=True), api_key="secret", admin_key="root"
    )
    with running(server) as address, httpx.Client(base_url=address) as client:
        yield client


@pytest.mark.parametrize("given", [None, "Bearer wrong", "Bearer", "secret", "Basic secret"])
def test_every_route_but_the_open_ones_needs_the_key(
    guarded: httpx.Client, given: str | None
) -> None:
    headers = {"authorization": given} if given is not None else {}
    paths = guarded.get("/openapi.json", headers={"authorization": "Bearer secret"}).json()["paths"]
    assert len(paths) >= 11
    for path in [*paths, "/openapi.json", "/no/such/route"]:
        for method in ("GET", "POST", "HEAD", "OPTIONS"):
            found = guarded.request(method, path, headers=headers, json={})
            assert (found.status_code == 401) == (path not in OPEN), (method, path)


def test_the_right_key_opens(guarded: httpx.Client) -> None:
    headers = {"authorization": "bearer secret"}
    assert guarded.get("/v1/models", headers=headers).status_code == 200
    assert guarded.post("/v1/completions", headers=headers, json=SHORT).status_code == 200
    for path in ADMIN:
        found = guarded.post(path, headers=headers, json={"name": "a"})
        assert found.status_code == 401, "the clients' key is not the admin's"
        assert guarded.post(path, headers=ADMIN_KEY, json={"name": "a"}).status_code == 404


def test_loading_is_off_by_default(backbone: Backbone) -> None:
    server = Server(backbone, None, config(), admin_key="root")
    with running(server) as address, httpx.Client(base_url=address) as client:
        found = client.post("/v1/load_soft_prompt", headers=ADMIN_KEY, json={"name": "a"})
        assert found.status_code == 403
    with pytest.raises(InputError, match="needs an admin key"):
        Server(backbone, None, config(runtime_loading=True))


def test_a_local_server_answers_to_its_own_address_only(guarded: httpx.Client) -> None:
    """A page elsewhere can make its own name lead to this machine."""
    assert guarded.get("/health", headers={"host": "evil.example:8000"}).status_code == 403
    assert guarded.get("/health", headers={"host": "localhost:8000"}).status_code == 200
    assert guarded.get("/health", headers={"host": "[::1]:8000"}).status_code == 200


def test_an_open_address_without_a_key_is_warned_of() -> None:
    assert "set a key" in warnings_for(config(host="0.0.0.0"), None)[0]
    assert not warnings_for(config(host="0.0.0.0"), "key")
    assert not warnings_for(config(), None)


def test_a_missing_extra_names_its_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "foreword.server.server")
    monkeypatch.delattr("foreword.server.server")
    result = CliRunner().invoke(app, ["serve", "tiny"])
    assert isinstance(result.exception, DependencyError)
    assert "pip install 'foreword[serve]'" in str(result.exception)


# Prompts that come and go -----------------------------------------------------------------------


def test_prompts_are_loaded_replaced_and_unloaded_under_load(
    backbone: Backbone, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    old, new = tiny_prompt(backbone, 1), tiny_prompt(backbone, 2, 6)
    old.save(tmp_path / "old")
    new.save(tmp_path / "new")
    server = Server(backbone, store, config(runtime_loading=True), admin_key="root")
    slowed(server, 0.002)
    ask = {"model": "p", "prompt": "say yes", "max_tokens": 20, "temperature": 0}
    answers = [expected(backbone, prompt, "say yes", 20) for prompt in (old, new)]
    assert answers[0] != answers[1]
    with (
        running(server) as address,
        httpx.Client(base_url=address, timeout=60) as client,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        assert client.post("/v1/completions", json=ask).status_code == 404
        first = store.add("p", tmp_path / "old")
        assert client.post("/v1/completions", json=ask).status_code == 404, "not loaded yet"

        def load() -> dict[str, Any]:
            found = client.post("/v1/load_soft_prompt", headers=ADMIN_KEY, json={"name": "p"})
            assert found.status_code == 200, found.text
            card: dict[str, Any] = found.json()
            return card

        def text(_: int = 0) -> str:
            return str(client.post("/v1/completions", json=ask).json()["choices"][0]["text"])

        assert load()["root"] == str(first) and text() == answers[0]
        waiting = [pool.submit(text) for _ in range(24)]
        store.add("p", tmp_path / "new")
        assert text() == answers[0], "the store alone changes nothing"
        load()
        assert text() == answers[1]
        assert {future.result() for future in waiting} <= set(answers)
        pinned = client.post("/v1/completions", json=ask | {"model": str(first)}).json()
        assert pinned["choices"][0]["text"] == answers[0]
        running_one = pool.submit(text)
        until(lambda: server.worker.num_live > 0)
        unload = client.post("/v1/unload_soft_prompt", headers=ADMIN_KEY, json={"name": "p"})
        assert unload.status_code == 200
        assert running_one.result() == answers[1], "a request under way is not disturbed"
        assert client.post("/v1/completions", json=ask).status_code == 404
        until(lambda: is_idle(server))


@pytest.mark.parametrize("name", ["../p", "/etc/passwd", "p/../p", "a@0123", ".hidden", "tiny"])
def test_only_names_of_the_store_are_loaded(backbone: Backbone, tmp_path: Path, name: str) -> None:
    server = Server(
        backbone, Store(tmp_path / "store"), config(runtime_loading=True), admin_key="root"
    )
    with running(server) as address, httpx.Client(base_url=address) as client:
        found = client.post("/v1/load_soft_prompt", headers=ADMIN_KEY, json={"name": name})
        assert found.status_code == 400, found.text


def spoil(kind: str, entry: Path, backbone: Backbone) -> None:
    """Make an entry of the store hostile."""
    tensors = entry / FILES[1]
    if kind == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-4])
    elif kind == "link":
        tensors.rename(entry.parent / "kept")
        tensors.symlink_to(entry.parent / "kept")
    elif kind == "pickle":
        torch.save({"prompt_embeddings": torch.zeros(3, 32)}, tensors)
    elif kind == "gone":
        tensors.unlink()


@pytest.mark.parametrize("kind", ["truncated", "link", "pickle", "gone", "other base"])
def test_a_hostile_prompt_is_refused_at_the_start_and_the_others_are_served(
    kind: str, backbone: Backbone, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    prompts = fill(store, backbone, tmp_path)
    if kind == "other base":
        SoftPrompt.from_embeddings(torch.zeros(3, 7)).save(tmp_path / "c")
        store.add("c", tmp_path / "c")
    else:
        prompts["c"] = tiny_prompt(backbone, 9)
        prompts["c"].save(tmp_path / "c")
        spoil(kind, store.add("c", tmp_path / "c").path, backbone)
    server = Server(backbone, store, config())
    assert list(server.refused) == ["c"] and len(server.refused["c"]) > 20
    assert [served.name for served in server.catalog.all()] == ["tiny", "a", "b"]


def test_a_prompt_that_goes_while_it_is_served_fails_its_own_requests(
    backbone: Backbone, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    fill(store, backbone, tmp_path)
    server = Server(backbone, store, config(cache_bytes=0))
    with running(server) as address, httpx.Client(base_url=address) as client:
        spoil("gone", store.resolve("a").path, backbone)
        assert client.post("/v1/completions", json=SHORT | {"model": "a"}).status_code == 503
        assert client.post("/v1/completions", json=SHORT | {"model": "b"}).status_code == 200


@pytest.mark.parametrize("kind", ["truncated", "link", "pickle", "gone", "removed"])
def test_a_damaged_file_is_told_to_the_log_and_not_to_clients(
    kind: str, backbone: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path / "store")
    fill(store, backbone, tmp_path)
    entry = store.resolve("a")
    # With runtime loading, as a name is loaded again at a version that is damaged by then.
    server = Server(backbone, store, config(cache_bytes=0, runtime_loading=True), admin_key="root")
    with running(server) as address, httpx.Client(base_url=address) as client:
        if kind == "removed":
            store.remove("a")
        else:
            spoil(kind, entry.path, backbone)
        asked = [
            client.post("/v1/completions", json=SHORT | {"model": "a"}),
            client.post("/v1/completions", json=SHORT | {"model": str(entry)}),
            client.get(f"/v1/models/{entry}"),
        ]
        loaded = client.post("/v1/load_soft_prompt", headers=ADMIN_KEY, json={"name": "a"})
        streamed = client.post("/v1/completions", json=SHORT | {"model": "a", "stream": True}).text
        for version in ("0000", "0" * 16):
            other = client.post("/v1/completions", json=SHORT | {"model": f"a@{version}"})
            assert other.status_code == 404 and str(tmp_path) not in other.text
        names = [card["id"] for card in client.get("/v1/models").json()["data"]]
    assert [one.status_code for one in asked] == [503] * 3, [one.text for one in asked]
    assert loaded.status_code == (404 if kind == "removed" else 503), loaded.text
    for text in (*(one.text for one in (*asked, loaded)), streamed):
        assert (
            str(tmp_path) not in text
            and "damaged or gone on the server" in text
            or (kind == "removed" and "the store has no prompt 'a'" in text)
        )
    assert str(entry.path) in caplog.text and names == ["tiny", "a", "b"]


def test_a_prompt_with_the_name_of_the_bare_model_in_metrics_is_not_served(
    backbone: Backbone, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    fill(store, backbone, tmp_path)
    store.add("base", tmp_path / "a")
    server = Server(backbone, store, config())
    assert "stands for the bare model in metrics" in server.refused["base"]
    assert [served.name for served in server.catalog.all()] == ["tiny", "a", "b"]


@pytest.mark.parametrize("value", ["\ud800", float("nan"), ["x" * 1000] * 2000])
def test_facts_that_cannot_be_listed_hide_no_other_prompt(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    store = Store(tmp_path / "store")
    fill(store, backbone, tmp_path)
    facts = {"format_version": 1, "metrics": {"free": value}}
    with monkeypatch.context() as patch:  # as a release did that checked neither
        patch.setattr("foreword.prompt.store.summary", lambda *_: {})
        patch.setattr("foreword.prompt.artifact.as_json", lambda *_: json.dumps(facts))
        SoftPrompt.from_embeddings(torch.zeros(3, 32)).save(tmp_path / "c")
        store.add("c", tmp_path / "c")
    server = Server(backbone, store, config())
    assert "the metadata under" in server.refused["c"] and server.refused["c"].isprintable()
    with running(server) as address:
        found = httpx.get(f"{address}/v1/models")
    assert [card["id"] for card in found.json()["data"]] == ["tiny", "a", "b"]
    assert len(found.content) < 20_000


def test_a_damaged_name_hides_no_other(backbone: Backbone, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    fill(store, backbone, tmp_path)
    (store.directory / "a" / "current").write_text("?")
    server = Server(backbone, store, config())
    assert "names no version" in server.refused["a"]
    assert [served.name for served in server.catalog.all()] == ["tiny", "b"]


@pytest.mark.parametrize(
    ("what", "engine"),
    [("a file", "foreword"), ("a file", "vllm"), ("no such directory", "foreword")],
)
def test_a_store_that_is_none_is_refused_before_the_model_is_loaded(
    tmp_path: Path, what: str, engine: str
) -> None:
    place = tmp_path / "store"
    if what == "a file":
        place.write_text("")
    arguments = ["serve", str(tmp_path / "no-model"), "--prompts", str(place), "--engine", engine]
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, InputError) and str(error).startswith(f"{place}: {what}; expected")


# Overload ---------------------------------------------------------------------------------------


def test_a_full_queue_is_told_with_retry_after(backbone: Backbone) -> None:
    server = Server(backbone, None, config(max_batch=1, max_queue=2))
    slowed(server)
    ask = LONG | {"max_tokens": 40}
    with (
        running(server) as address,
        httpx.Client(base_url=address, timeout=60) as client,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        found = list(pool.map(lambda _: client.post("/v1/completions", json=ask), range(8)))
        codes = sorted(one.status_code for one in found)
        assert codes[:2] == [200] * 2 and codes[-1] == 503
        busy = next(one for one in found if one.status_code == 503)
        assert int(busy.headers["retry-after"]) >= 1
        several = client.post("/v1/completions", json=ask | {"n": 4})
        assert several.status_code == 503
        until(lambda: is_idle(server))
        assert client.post("/v1/completions", json=SHORT).status_code == 200


def test_a_long_body_is_not_read(guarded: httpx.Client, backbone: Backbone) -> None:
    server = Server(backbone, None, config(max_body_bytes=1000))
    with running(server) as address, httpx.Client(base_url=address) as client:
        long = json.dumps(SHORT | {"prompt": "x" * 2000}).encode()
        kind = {"content-type": "application/json"}
        told = client.post("/v1/completions", content=long, headers=kind)
        assert told.status_code == 413
        untold = client.post(
            "/v1/completions", content=iter([long[:900], long[900:]]), headers=kind
        )
        assert untold.status_code == 413
        assert client.post("/v1/completions", json=SHORT).status_code == 200


def test_a_request_that_takes_too_long_ends_with_an_error(backbone: Backbone) -> None:
    server = Server(backbone, None, config(request_seconds=0.1))
    slowed(server)
    with running(server) as address, httpx.Client(base_url=address) as client:
        assert client.post("/v1/completions", json=LONG).status_code == 504
        with client.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as stream:
            lines = [line for line in stream.iter_lines() if line]
        assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == 504
        assert lines[-1] == "data: [DONE]"
        until(lambda: is_idle(server))


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_goes_frees_its_row(backbone: Backbone, streams: bool) -> None:
    server = Server(backbone, None, config())
    slowed(server, 0.02)
    with running(server) as address:
        host, port = address.removeprefix("http://").split(":")
        body = json.dumps(LONG | {"stream": streams, "n": 2}).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
            "content-type: application/json\r\n\r\n"
        )
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + body)
            until(lambda: len(server.worker.engine.running) == 2)
        until(lambda: is_idle(server))
        assert server.worker.engine.num_new_tokens < 2 * 250


# Failures ---------------------------------------------------------------------------------------


def test_a_request_that_breaks_the_model_fails_alone(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(backbone, None, config())
    engine = server.worker.engine
    poison = serving.TOKENIZER("Z")["input_ids"][0]
    real = engine.runner.hidden

    def hidden(current: Any, ids: list[list[int]]) -> Any:
        if any(poison in row for row in ids):
            raise RuntimeError("secret text")
        return real(current, ids)

    monkeypatch.setattr(engine.runner, "hidden", hidden)
    with running(server) as address, httpx.Client(base_url=address, timeout=60) as client:
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            prompts = ["hi", "Z", "say yes", "ZZ", "hello"]
            found = list(
                pool.map(
                    lambda p: client.post("/v1/completions", json=SHORT | {"prompt": p}), prompts
                )
            )
        assert [one.status_code for one in found] == [200, 500, 200, 500, 200]
        assert "secret text" not in found[1].text
        for prompt, one in zip(prompts, found, strict=True):
            if one.status_code == 200:
                text = one.json()["choices"][0]["text"]
                assert text == expected(backbone, None, prompt, 4)
        assert client.get("/health").status_code == 200


def test_a_dead_engine_is_told_and_ends_the_server(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(backbone, None, config())

    def die() -> bool:
        raise RuntimeError("device lost")

    with running(server) as address, httpx.Client(base_url=address, timeout=60) as client:
        monkeypatch.setattr(server.worker.engine, "step", die)
        assert client.post("/v1/completions", json=SHORT).status_code == 503
        assert client.get("/health").status_code == 503
        assert client.get("/ready").status_code == 503
        assert client.post("/v1/completions", json=SHORT).status_code == 503
        until(lambda: server.should_exit)


def test_the_log_holds_numbers_and_names_but_no_text(
    backbone: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(backbone, None, config())
    with (
        caplog.at_level(logging.DEBUG, logger="foreword"),
        running(server) as address,
        httpx.Client(base_url=address) as client,
    ):
        client.post("/v1/completions", json=SHORT | {"prompt": "PRIVATE", "user": "PRIVATE"})
        client.post("/v1/completions", json=SHORT | {"model": "PRIVATE"})
        client.post("/v1/completions", json=SHORT | {"stop": 7, "prompt": "PRIVATE"})
        client.get("/v1/models/PRIVATE?q=PRIVATE")
        client.get("/PRIVATE")
    lines = [json.loads(r.message) for r in caplog.records if r.name == "foreword.access"]
    assert len(lines) == 5 and "PRIVATE" not in caplog.text
    assert lines[0]["model"] == "tiny" and lines[0]["new_tokens"] == 4
    assert lines[0]["prompt_tokens"] == 7 and lines[0]["status"] == 200
    assert [line["status"] for line in lines[1:]] == [404, 400, 404, 404]
    assert len({line["id"] for line in lines}) == 5


# The process ------------------------------------------------------------------------------------

SERVE = """
import sys
sys.path.insert(0, sys.argv[1])
import time
from serving import config, tiny_backbone
from foreword.server.server import Server, log_to_stderr, serve
server = Server(tiny_backbone(), None, config(drain_seconds=20.0))
step = server.worker.engine.step
def slow():
    time.sleep(0.01)
    if sys.argv[2] == "dies" and server.worker.engine.running:
        raise RuntimeError("device lost")
    return step()
server.worker.engine.step = slow
import threading
def tell():
    while not server.started:
        time.sleep(0.01)
    print(server.address, flush=True)
threading.Thread(target=tell, daemon=True).start()
sys.exit(serve(server))
"""


def started(how: str) -> tuple["subprocess.Popen[str]", str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(Path(__file__).parents[1] / "support"), how],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_sigterm_lets_running_requests_end() -> None:
    process, address = started("lives")
    with httpx.Client(base_url=address, timeout=60) as client:
        ask = LONG | {"stream": True, "max_tokens": 60}
        with client.stream("POST", "/v1/completions", json=ask) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert process.wait(30) == 0 and process.stdout and not process.stdout.close()


def test_a_dead_engine_ends_the_process_with_an_error() -> None:
    process, address = started("dies")
    with httpx.Client(base_url=address, timeout=60) as client:
        assert client.post("/v1/completions", json=SHORT).status_code == 503
        assert client.get("/health").status_code == 503
    assert process.wait(30) == 1 and process.stdout and not process.stdout.close()


def test_the_command_serves_a_store(tmp_path: Path, backbone: Backbone) -> None:
    backbone.model.float().save_pretrained(tmp_path / "model")
    serving.TOKENIZER.save_pretrained(tmp_path / "model")
    backbone.model.double()
    SoftPrompt.from_embeddings(torch.zeros(3, 32)).save(tmp_path / "p")
    Store(tmp_path / "store").add("mine", tmp_path / "p")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from foreword.cli import main; main()", "serve"]
    options = [str(tmp_path / "model"), "--prompts", str(tmp_path / "store"), "--port", str(port)]
    environment = os.environ | {"FOREWORD_API_KEY": "secret", "FOREWORD_ADMIN_KEY": "root"}
    process = subprocess.Popen(
        [*command, *options, "--served-name", "base"],
        env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stderr or []), daemon=True)
    reader.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:

        def answers() -> bool:
            try:
                return client.get("/ready").status_code == 200
            except httpx.TransportError:
                return process.poll() is not None

        until(answers)
        assert client.get("/v1/models").status_code == 401
        client.headers["authorization"] = "Bearer secret"
        names = [card["id"] for card in client.get("/v1/models").json()["data"]]
        assert names == ["base", "mine"]
        asked = {"model": "mine", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
        assert client.post("/v1/chat/completions", json=asked).status_code == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    reader.join(10)
    process.stderr.close()
    assert any("serving base, mine" in line for line in lines)
