"""What a server withstands: strangers, overload, clients that go, changing prompts, its death."""

import concurrent.futures
import contextlib
import json
import logging
import os
import re
import shutil
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
import tiny_models
import torch
from serving import (
    END,
    TOKENIZER,
    VOCAB,
    config,
    expected,
    fill,
    running,
    tiny_backbone,
    tiny_prompt,
)
from typer.testing import CliRunner

from foreword import Backbone, SoftPrompt
from foreword.cli import app
from foreword.config import ServeConfig
from foreword.errors import DependencyError, InputError, UnavailableError, UnsupportedError
from foreword.prompt.peft_format import FILES
from foreword.prompt.store import Store
from foreword.server.app import max_requests
from foreword.server.catalog import Catalog
from foreword.server.metric_labels import MAX_LABELS, Labels
from foreword.server.middleware import ADMIN, OPEN
from foreword.server.server import Server, listen, warnings_for
from foreword.vllm_plugin import launch

LONG: dict[str, Any] = {"model": "tiny", "prompt": "hi", "max_tokens": 250, "ignore_eos": True}
SHORT: dict[str, Any] = {"model": "tiny", "prompt": "hi", "max_tokens": 4, "temperature": 0}
ADMIN_KEY = {"authorization": "Bearer root"}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone()


def until(condition: Callable[[], bool]) -> None:
    """Wait for another thread."""
    deadline = time.monotonic() + 300  # a process that starts imports torch
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


@pytest.mark.parametrize("key", ["", " ", "\n", "a\nb", "schlüssel", "a\x00b"])
def test_a_key_that_lets_everybody_or_nobody_in_is_refused(backbone: Backbone, key: str) -> None:
    with pytest.raises(InputError, match="the API key"):
        Server(backbone, None, config(), api_key=key)
    with pytest.raises(InputError, match="the admin key"):
        Server(backbone, None, config(runtime_loading=True), admin_key=key)


def test_a_keys_line_break_is_no_part_of_it(backbone: Backbone) -> None:
    server = Server(backbone, None, config(), api_key="secret\n")
    with running(server) as address, httpx.Client(base_url=address) as client:
        assert client.get("/v1/models").status_code == 401
        headers = {"authorization": "Bearer secret"}
        assert client.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("value", ["", " \n"])
@pytest.mark.parametrize("name", ["FOREWORD_API_KEY", "FOREWORD_ADMIN_KEY", "FOREWORD_PROMPTS"])
@pytest.mark.parametrize("engine", ["foreword", "vllm"])
def test_an_empty_variable_is_not_read_as_none(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, engine: str
) -> None:
    monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app, ["serve", "tiny", "--engine", engine])
    assert isinstance(result.exception, InputError) and name in str(result.exception)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--runtime-loading"], "needs an admin key"),
        (["--runtime-loading", "--api-key", "x", "--admin-key", "x"], "every client could load"),
        (["--served-name", "x" * 201], "--served-name must be at most 200"),
        (["--served-name", "a\nb"], "--served-name must be at most 200 printable"),
        (["--batch-tokens", "1"], "--batch-tokens must be at least 2"),
    ],
)
def test_options_that_do_not_go_together_are_told_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, options: list[str], expected: str
) -> None:
    monkeypatch.setattr("foreword.cli.options.load", lambda *_: pytest.fail("loaded"))
    result = CliRunner().invoke(app, ["serve", "tiny", "--port", "0", *options])
    assert isinstance(result.exception, InputError) and expected in str(result.exception)


@pytest.mark.parametrize("option", ["--api-key", "--admin-key", "--prompts", "--host"])
def test_an_empty_option_is_refused(option: str) -> None:
    result = CliRunner().invoke(app, ["serve", "tiny", option, ""])
    assert isinstance(result.exception, InputError) and "empty" in str(result.exception)


# Web pages elsewhere ----------------------------------------------------------------------------

PAGE_ORIGIN = {"origin": "https://app.example"}
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}


@pytest.fixture(scope="module")
def shared(backbone: Backbone) -> Iterator[httpx.Client]:
    origins = ["https://app.example:443/", "http://localhost:3000"]
    server = Server(backbone, None, config(), api_key="secret", origins=origins)
    with running(server) as address, httpx.Client(base_url=address) as client:
        yield client


@pytest.mark.parametrize("origin", ["https://app.example", "http://localhost:3000"])
def test_a_page_of_an_allowed_origin_may_use_the_server(shared: httpx.Client, origin: str) -> None:
    asked = shared.options("/v1/completions", headers=PREFLIGHT | {"origin": origin})
    assert (
        asked.status_code in (200, 204) and asked.headers["access-control-allow-origin"] == origin
    )
    assert "x-stainless-lang" in asked.headers["access-control-allow-headers"]
    headers = {"origin": origin, "authorization": "Bearer secret"}
    for found, status in (
        (shared.post("/v1/completions", headers=headers, json=SHORT), 200),
        (shared.post("/v1/completions", headers={"origin": origin}, json=SHORT), 401),
        (shared.post("/v1/completions", headers=headers, json={}), 400),
        (shared.get("/nothing", headers=headers), 404),
    ):
        assert found.status_code == status
        assert found.headers["access-control-allow-origin"] == origin
        assert "access-control-allow-credentials" not in found.headers
        assert "origin" in found.headers["vary"].lower()


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "https://app.example.evil", "http://app.example", "null"]
)
def test_a_page_of_another_origin_may_not(shared: httpx.Client, origin: str) -> None:
    asked = shared.options("/v1/completions", headers=PREFLIGHT | {"origin": origin})
    assert asked.status_code == asked.json()["error"]["code"] == 403
    found = shared.get("/health", headers={"origin": origin})
    for one in (asked, found):
        assert "access-control-allow-origin" not in one.headers


def test_no_origin_is_allowed_by_default(guarded: httpx.Client) -> None:
    asked = guarded.options("/v1/completions", headers=PREFLIGHT | PAGE_ORIGIN)
    assert asked.status_code == 401 and "access-control-allow-origin" not in asked.headers
    found = guarded.get("/health", headers=PAGE_ORIGIN)
    assert "access-control-allow-origin" not in found.headers


@pytest.mark.parametrize(
    "origin",
    ["*", "null", "", "app.example", "https://", "https://*.example", "https://a.example/path",
     "https://a.example?x", "https://me@a.example", "https://a.example:port",
     "https://a.example,b.example", "https://a b", "https://a.example:0"],
)  # fmt: skip
def test_what_is_no_origin_is_refused(origin: str) -> None:
    result = CliRunner().invoke(app, ["serve", "tiny", "--allow-origin", origin])
    assert isinstance(result.exception, InputError) and "--allow-origin" in str(result.exception)


def test_origins_for_vllm_are_given_as_its_own_option() -> None:
    options = ["--engine", "vllm", "--prompts", "p", "--allow-origin", "https://app.example"]
    result = CliRunner().invoke(app, ["serve", "tiny", *options])
    assert isinstance(result.exception, UnsupportedError)
    assert "--allowed-origins" in str(result.exception)


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


def test_a_version_that_cannot_be_looked_up_is_the_servers_fault(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    fill(store, backbone, tmp_path)
    catalog = Catalog(backbone, store, "tiny")
    catalog.load_all()

    def refuse(name: str) -> Any:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(store, "resolve", refuse)
    with pytest.raises(UnavailableError, match="^the prompt a is damaged or gone on the server"):
        catalog.find("a@0123")


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


def _copied(source: Path, target: Path) -> None:
    for path in source.iterdir():
        shutil.copy(path, target)


@pytest.mark.parametrize("value", ["\ud800", float("nan"), ["x" * 1000] * 2000])
def test_facts_that_cannot_be_listed_hide_no_other_prompt(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    store = Store(tmp_path / "store")
    fill(store, backbone, tmp_path)
    facts = {"format_version": 1, "metrics": {"free": value}}
    with monkeypatch.context() as patch:  # as a release did that checked neither
        patch.setattr("foreword.prompt.store._copy_checked", _copied)
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
        assert several.status_code == 400, "it would never be served"
        assert "4 answers in one call, of 2 at most" in several.json()["error"]["message"]
        until(lambda: is_idle(server))
        assert client.post("/v1/completions", json=SHORT).status_code == 200


def test_connections_leave_files_to_open(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    assert max_requests(config()) == 128 and max_requests(config(max_batch=1, max_queue=1)) == 8
    monkeypatch.setattr(resource, "getrlimit", lambda _: (-1, -1))
    assert max_requests(config()) == 640


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


def counted(client: httpx.Client, counter: str) -> dict[str, float]:
    """Return a counter of /metrics by its reason."""
    found = {}
    for line in client.get("/metrics").text.splitlines():
        if line.startswith(f"foreword:{counter}_total{{"):
            labels, _, value = line.rpartition(" ")
            found[labels.partition('reason="')[2].partition('"')[0]] = float(value)
    return found


def test_errors_are_counted_by_kind(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(backbone, None, config(request_seconds=0.5))
    slowed(server)
    with running(server) as address, httpx.Client(base_url=address, timeout=60) as client:

        def ask(**changes: Any) -> int:
            return client.post("/v1/completions", json=LONG | changes).status_code

        assert ask() == 504 and ask(stream=True) == 200
        assert ask(model="nobody") == 404 and ask(n="2") == 400 and ask(prompt="") == 400
        assert counted(client, "admission_rejections") == {"invalid": 3}
        assert counted(client, "request_failures") == {"timeout": 2}
        assert counted(client, "request_success") == {}, "none has ended well"

        def fail(*_: Any) -> None:
            raise RuntimeError("lost")

        with monkeypatch.context() as broken:
            broken.setattr(server.worker.engine.runner, "hidden", fail)
            assert ask() == 500
        assert counted(client, "request_failures") == {"timeout": 2, "model": 1}
        monkeypatch.setattr(server.worker.engine, "step", fail)
        assert ask() == 503
        assert counted(client, "request_failures") == {"timeout": 2, "model": 1, "engine_dead": 1}
        assert counted(client, "admission_rejections") == {"invalid": 3}


def test_refusals_before_the_application_are_counted_too(backbone: Backbone) -> None:
    server = Server(backbone, None, config(max_body_bytes=100), api_key="k")
    with running(server) as address, httpx.Client(base_url=address, timeout=60) as client:
        client.headers["authorization"] = "Bearer k"
        route, json_type = "/v1/completions", {"content-type": "application/json"}

        def chunks() -> Iterator[bytes]:
            yield b" " * 200  # of no declared length

        for sent, status in (
            (client.post(route, content=b" " * 200, headers=json_type), 413),
            (client.post(route, content=chunks(), headers=json_type), 413),
            (client.post(route, content=b"{}"), 415),
            (client.get("/nowhere"), 404),
            (client.get(route), 405),
        ):
            assert sent.status_code == status
        assert counted(client, "admission_rejections") == {"invalid": 5}
        assert client.get("/v1/models", headers={"authorization": ""}).status_code == 401
        assert client.post("/v1/load_soft_prompt", json={"name": "a"}).status_code == 403
        assert counted(client, "admission_rejections") == {"invalid": 5, "forbidden": 2}
        for path in ("/health", "/ready", "/metrics", "/v1/models"):
            client.get(path)
        assert counted(client, "admission_rejections") == {"invalid": 5, "forbidden": 2}


def test_head_is_answered_wherever_get_is(backbone: Backbone) -> None:
    server = Server(backbone, None, config())
    with running(server) as address, httpx.Client(base_url=address, timeout=60) as client:
        paths = client.get("/openapi.json").json()["paths"]
        paths = [path for path, verbs in paths.items() if "get" in verbs]
        for path in ("/", "/docs", "/nowhere", "/v1/completions", *paths):
            place = path.replace("{model}", "tiny")
            got, head = client.get(place), client.head(place)
            assert head.status_code == got.status_code and head.content == b""
            assert head.headers["content-type"] == got.headers["content-type"]
        assert client.head("/health").status_code == 200


@pytest.mark.parametrize("name", ["x" * 201, "/data/" + "é" * 300, "a\nb"])
def test_a_bare_model_that_no_request_could_name_is_refused_at_the_start(name: str) -> None:
    model = tiny_models.build("llama", vocab_size=VOCAB, eos_token_id=END)
    long = Backbone(model, TOKENIZER, name=name)
    with pytest.raises(InputError, match="at most 200 printable ones: give --served-name") as said:
        Server(long, None, config())
    assert "\n" not in str(said.value) and len(str(said.value)) < 400
    assert Server(long, None, config(served_name="short")).catalog.base.name == "short"
    with pytest.raises(InputError, match="give --served-name"):
        launch.command("base", name, "prompts", ServeConfig())


def test_past_their_bound_metrics_share_a_label_that_no_prompt_has() -> None:
    labels = Labels()
    given = [labels.of(name) for name in ["other", *map(str, range(MAX_LABELS))]]
    assert given[0] == "other" and given[-1] == labels.of("one more") == "(other)"


TEMPLATES = {
    "TypeError": "{{ messages[0]['content'] + 1 }}",
    "UndefinedError": "{{ messages[0]['no such thing'].more }}",
    "ZeroDivisionError": "{{ 1 // 0 }}",
    "RecursionError": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "IndexError": "{{ messages[0]['content'].format(1) }}",
    "two lines": "{{ raise_exception('no such role\nTraceback') }}",
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_whatever_a_chat_template_raises_is_one_line_about_the_messages(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = tiny_backbone()
    monkeypatch.setattr(backbone.tokenizer, "chat_template", TEMPLATES[kind])
    turns = [{"role": "user", "content": "{}{}"}]
    server = Server(backbone, None, config())
    with running(server) as address, httpx.Client(base_url=address, timeout=60) as client:
        for path in ("/v1/chat/completions", "/tokenize"):
            found = client.post(path, json={"model": "tiny", "messages": turns})
            message = found.json()["error"]["message"]
            assert found.status_code == 400
            assert re.search("the chat template (refuses|fails on) the messages: ", message)
            assert "\n" not in message


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
from foreword.server.logs import log_to_stderr
from foreword.server.server import Server, serve
drain = 0.2 if sys.argv[2] == "is stopped" else 20.0
server = Server(tiny_backbone(), None, config(drain_seconds=drain))
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
with log_to_stderr():
    sys.exit(serve(server))
"""


def started(how: str) -> tuple["subprocess.Popen[str]", str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(Path(__file__).parents[1] / "support"), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if how in ("is stopped", "is interrupted") else None,
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
    assert process.wait(120) == 0 and process.stdout and not process.stdout.close()


def test_requests_that_outlast_the_drain_end_by_name_and_without_a_trace() -> None:
    process, address = started("is stopped")
    streams = [True, True, False, False]
    ask = LONG | {"max_tokens": 250}
    with (
        httpx.Client(base_url=address, timeout=60) as client,
        concurrent.futures.ThreadPoolExecutor(len(streams)) as pool,
    ):

        def answer(stream: bool) -> httpx.Response:
            return client.post("/v1/completions", json=ask | {"stream": stream})

        waiting = [pool.submit(answer, stream) for stream in streams]
        running_now = 'num_requests_running{model_name="tiny"} 4.0'
        until(lambda: running_now in client.get("/metrics").text)
        process.send_signal(signal.SIGTERM)
        found = [one.result() for one in waiting]
    assert [one.status_code for one in found] == [200, 200, 503, 503]
    for one in found[:2]:
        lines = [line for line in one.text.splitlines() if line]
        assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == 503
        assert lines[-1] == "data: [DONE]"
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0 and told.count('"event": "request"') >= 4
    assert "Traceback" not in told and "ERROR" not in told


def test_a_second_interrupt_ends_requests_at_once_and_without_a_trace() -> None:
    process, address = started("is interrupted")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        ask = LONG | {"max_tokens": 250}
        waiting = pool.submit(httpx.post, f"{address}/v1/completions", json=ask, timeout=60)
        running_now = 'num_requests_running{model_name="tiny"} 1.0'
        until(lambda: running_now in httpx.get(f"{address}/metrics").text)
        process.send_signal(signal.SIGINT)
        until(lambda: not _listens(address))
        process.send_signal(signal.SIGINT)
        assert waiting.result().status_code == 503
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in told and "ERROR" not in told


def _listens(address: str) -> bool:
    try:
        httpx.get(f"{address}/health")
    except httpx.TransportError:
        return False
    return True


def test_a_taken_port_is_told_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foreword.cli.options.load", lambda *_: pytest.fail("loaded"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["serve", "tiny", "--port", str(port)])
    assert isinstance(result.exception, InputError) and result.exception.exit_code == 2
    assert f"cannot listen at 127.0.0.1:{port}" in str(result.exception)


def test_an_address_that_cannot_be_listened_at_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(app, ["serve", "tiny", "--host", "203.0.113.7"])
    assert isinstance(result.exception, InputError) and "203.0.113.7" in str(result.exception)

    for name in ("x" * 100, "a\0b"):
        with pytest.raises(InputError, match="cannot listen at"):
            listen(name, 0)

    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(InputError, match="nowhere:1 .Name or service not known"):
        listen("nowhere", 1)


def test_a_name_of_several_addresses_is_listened_at_on_one_port() -> None:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(one) for one in listen("localhost", 0)]
        assert found and len({one.getsockname()[1] for one in found}) == 1


def test_a_port_that_is_taken_meanwhile_is_told(backbone: Backbone) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match="cannot listen at"):
            Server(backbone, None, config(port=port)).run()


def test_a_dead_engine_ends_the_process_with_an_error() -> None:
    process, address = started("dies")
    with httpx.Client(base_url=address, timeout=60) as client:
        assert client.post("/v1/completions", json=SHORT).status_code == 503
        assert client.get("/health").status_code == 503
    assert process.wait(120) == 1 and process.stdout and not process.stdout.close()


def test_the_command_serves_a_store_and_all_that_it_says_is_json(
    tmp_path: Path, backbone: Backbone
) -> None:
    backbone.model.float().save_pretrained(tmp_path / "model")
    serving.TOKENIZER.save_pretrained(tmp_path / "model")
    backbone.model.double()
    SoftPrompt.from_embeddings(torch.zeros(3, 32)).save(tmp_path / "p")
    Store(tmp_path / "store").add("mine", tmp_path / "p")
    SoftPrompt.from_embeddings(torch.zeros(3, 8)).save(tmp_path / "p")
    Store(tmp_path / "store").add("wide", tmp_path / "p")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from foreword.cli import main; main()", "serve"]
    options = [str(tmp_path / "model"), "--prompts", str(tmp_path / "store"), "--port", str(port)]
    environment = os.environ | {"FOREWORD_API_KEY": "secret", "FOREWORD_ADMIN_KEY": "root"}
    process = subprocess.Popen(
        [*command, *options, "--served-name", "base", "--log-format", "json"],
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
    assert process.wait(120) == 0
    reader.join(10)
    process.stderr.close()
    said = [json.loads(line) for line in lines]
    assert all(
        one["logger"] in ("foreword.server", "foreword.access", "uvicorn.error") for one in said
    )
    texts = [one.get("message", "") for one in said]
    assert any("serving base, mine at http" in text for text in texts)
    assert any("not served: wide" in text for text in texts)


def test_what_ends_a_server_before_it_serves_is_json_too() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(app, ["serve", "tiny", "--port", port, "--log-format", "json"])
    assert result.exit_code == 2
    [line] = [json.loads(line) for line in result.stderr.splitlines()]
    assert line["level"] == "ERROR" and f"cannot listen at 127.0.0.1:{port}" in line["message"]
