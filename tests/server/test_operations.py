"""Operation: reloading the store, log lines, traces, and the examples of dashboards and units."""

import contextlib
import json
import logging
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from serving import config, fill, running, tiny_backbone, tiny_prompt
from test_server_limits import until
from typer.testing import CliRunner

from foreword import Backbone
from foreword.cli import app
from foreword.errors import DependencyError, InputError
from foreword.prompt.store import Store
from foreword.server import tracing
from foreword.server.logs import LOGGERS, JsonFormatter
from foreword.server.server import Server

ASK = {"model": "tiny", "prompt": "say a", "max_tokens": 3}
GREEDY = ASK | {"temperature": 0}  # drawn ids may end an answer early
EXAMPLES = Path(__file__).parents[2] / "examples" / "operations"


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return tiny_backbone()


# Reloading --------------------------------------------------------------------------------------


def test_reloading_serves_what_the_store_holds_now(
    backbone: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path / "store")
    fill(store, backbone, tmp_path, "abd")
    store.alias("other", "a")
    server = Server(backbone, store, config())
    before = {one.name: one.entry for one in server.catalog.all()}
    tiny_prompt(backbone, 9).save(tmp_path / "new")
    store.add("a", tmp_path / "new")  # a newer version, also of the alias
    store.add("c", tmp_path / "new")
    store.remove("b")
    (store.resolve("d").path / "adapter_model.safetensors").write_bytes(b"cut")
    with caplog.at_level(logging.INFO, "foreword.server"):
        server.reload()
    after = {one.name: one.entry for one in server.catalog.all()}
    assert list(after) == ["tiny", "a", "c", "d", "other"]
    assert after["a"] == store.resolve("a") != before["a"] and after["other"] == after["a"]
    assert after["d"] == before["d"]  # damaged by now: what is served stays
    assert "b: no longer served" in caplog.text and "d: refused" in caplog.text
    assert "4 names" not in caplog.text and "5 names changed" in caplog.text


def test_reloading_reads_what_has_changed_and_nothing_else(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    fill(store, backbone, tmp_path, "abcd")
    store.alias("other", "a")
    read: list[str] = []
    verify = Store.verify
    monkeypatch.setattr(
        Store, "verify", lambda s, entry: read.append(entry.name) or verify(s, entry)
    )
    catalog = Server(backbone, store, config()).catalog
    assert read == ["a", "b", "c", "d"]  # the alias is of a's own files
    read.clear()
    assert catalog.reload() == {} and read == []
    tiny_prompt(backbone, 9).save(tmp_path / "new")
    store.add("b", tmp_path / "new")
    file = store.resolve("c").path / "adapter_config.json"
    file.write_text(file.read_text() + " ")
    store.alias("other", "d")
    assert [*catalog.reload()] == ["b", "other", "c"] and read == ["b", "c"]
    assert catalog.find("other").entry == store.resolve("d")
    assert catalog.find("other").label == "other"


def test_a_store_that_is_away_unloads_nothing(
    backbone: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path / "store")
    fill(store, backbone, tmp_path, "a")
    server = Server(backbone, store, config())
    store.directory.rename(tmp_path / "away")
    server.reload()
    assert [one.name for one in server.catalog.all()] == ["tiny", "a"]
    assert "was not read again" in caplog.text


PROCESS = """
import os, signal, sys, threading, time
sys.path.insert(0, sys.argv[1])
from serving import config, tiny_backbone
from foreword.os_calls import held_hangups
from foreword.prompt.store import Store
from foreword.server.logs import log_to_stderr
from foreword.server.server import Server, serve
store = Store(sys.argv[2])
server = Server(tiny_backbone(), store, config(), was_hung_up=held_hangups())
for new in sys.argv[3:]:  # what comes before the server can take a signal
    store.add("b", new)
    os.kill(os.getpid(), signal.SIGHUP)
def tell():
    while not server.started:
        time.sleep(0.01)
    print(server.address, flush=True)
threading.Thread(target=tell, daemon=True).start()
with log_to_stderr("json"):
    sys.exit(serve(server))
"""


@contextlib.contextmanager
def process_of(store: Store, *new: Path) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """Yield a server's process and a client of it; prompts may come while it loads."""
    support = str(Path(__file__).parents[1] / "support")
    words = [support, str(store.directory), *map(str, new)]
    with (
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
        contextlib.ExitStack() as at_failure,
    ):
        at_failure.callback(process.kill)  # else nothing would end it
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        with httpx.Client(base_url=address, timeout=60) as client:
            yield process, client


def served_by(client: httpx.Client) -> list[str]:
    return [one["id"] for one in client.get("/v1/models").json()["data"]]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_a_hangup_reloads_while_requests_go_on_and_each_line_is_json(
    backbone: Backbone, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    fill(store, backbone, tmp_path, "a")
    with process_of(store) as (process, client):
        tiny_prompt(backbone, 9).save(tmp_path / "new")
        store.add("b", tmp_path / "new")
        assert client.post("/v1/completions", json=ASK | {"model": "b"}).status_code == 404
        process.send_signal(signal.SIGHUP)
        until(lambda: "b" in served_by(client))
        assert client.post("/v1/completions", json=ASK | {"model": "b"}).status_code == 200
        process.send_signal(signal.SIGTERM)
        _, written = process.communicate(timeout=120)
        assert process.returncode == 0
    lines = [json.loads(line) for line in written.splitlines()]
    assert {"time", "level", "logger"} <= set.intersection(*map(set, lines))
    calls = [line for line in lines if line["logger"] == "foreword.access"]
    assert {"route", "status", "seconds", "id"} <= set(calls[0])
    assert any("was read again" in line.get("message", "") for line in lines)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_a_hangup_while_the_server_loads_is_answered_once_it_has(
    backbone: Backbone, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    fill(store, backbone, tmp_path, "a")
    tiny_prompt(backbone, 9).save(tmp_path / "new")
    with process_of(store, tmp_path / "new") as (process, client):
        until(lambda: "b" in served_by(client))
        process.send_signal(signal.SIGTERM)
        _, written = process.communicate(timeout=120)
        assert process.returncode == 0, written


# Log lines --------------------------------------------------------------------------------------


def test_a_command_that_has_ended_leaves_loggers_as_they_were(tmp_path: Path) -> None:
    def state() -> list[Any]:
        loggers = [logging.getLogger(name) for name in LOGGERS]
        return [(one.level, one.propagate, list(one.handlers)) for one in loggers]

    before = state()
    result = CliRunner().invoke(app, ["serve", str(tmp_path / "none"), "--port", "0"])
    assert isinstance(result.exception, InputError) and state() == before


def test_probes_that_are_well_are_not_logged_and_a_client_finds_its_request(
    backbone: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(backbone, None, config())
    with (
        caplog.at_level(logging.INFO, "foreword"),
        running(server) as address,
        httpx.Client(base_url=address) as client,
    ):
        for path in ("/health", "/ready", "/metrics"):
            assert client.get(path).status_code == 200
        answers = [
            client.post("/v1/completions", json=ASK, headers=headers)
            for headers in (
                {},
                {"x-client-request-id": "job-7.a_b"},
                {"x-request-id": "from-a-proxy"},
                {"x-client-request-id": "no text {} of users"},
                {"x-client-request-id": "n" * 129},
            )
        ]
    lines = [json.loads(r.getMessage()) for r in caplog.records if r.name == "foreword.access"]
    assert [line["id"] for line in lines] == [one.headers["x-request-id"] for one in answers]
    names = [line.get("client_request_id") for line in lines]
    assert names == [None, "job-7.a_b", "from-a-proxy", None, None]


def test_a_line_of_json_holds_its_message_and_where_an_error_came_from() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.getLogger("foreword.x").makeRecord(
            "foreword.x", logging.ERROR, "file", 1, "failed: %s", ('"a"\n',), sys.exc_info()
        )
    text = JsonFormatter().format(record)
    line = json.loads(text)
    assert "\n" not in text and line["message"] == 'failed: "a"\n'
    assert "ValueError: two" in line["traceback"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])


# Traces -----------------------------------------------------------------------------------------


@pytest.fixture
def spans() -> Iterator[tuple[tracing.Tracing, Any]]:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield tracing.Tracing(provider), exporter


def test_each_call_is_a_span_under_the_clients_own(
    backbone: Backbone, spans: tuple[tracing.Tracing, Any]
) -> None:
    traces, exporter = spans
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with (
        running(Server(backbone, None, config(), tracing=traces)) as address,
        httpx.Client(base_url=address) as client,
    ):
        client.get("/health")
        client.post("/v1/completions", json=GREEDY, headers={"traceparent": parent})
        client.post("/v1/completions", json=ASK | {"model": "PRIVATE", "prompt": "PRIVATE"})
        with client.stream("POST", "/v1/completions", json=GREEDY | {"stream": True}) as stream:
            stream.read()
        until(lambda: len(exporter.get_finished_spans()) == 3)
    # A span may end after its client has gone on to the next call.
    in_order = sorted(exporter.get_finished_spans(), key=lambda one: one.start_time)
    answered, refused, streamed = in_order
    said = dict(answered.attributes)
    assert answered.name == "POST /v1/completions"
    assert f"{answered.context.trace_id:032x}" in parent
    assert f"{answered.parent.span_id:016x}" in parent
    assert said["gen_ai.operation.name"] == "text_completion"
    assert said["gen_ai.request.model"] == "tiny" and said["gen_ai.usage.output_tokens"] == 3
    assert said["http.response.status_code"] == 200
    [event] = answered.events
    assert answered.start_time < event.timestamp <= answered.end_time
    assert dict(refused.attributes)["http.response.status_code"] == 404
    assert "PRIVATE" not in str([one.to_json() for one in (answered, refused, streamed)])
    assert dict(streamed.attributes)["gen_ai.usage.output_tokens"] == 3


def test_traces_are_off_without_an_address_and_need_their_packages_with_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in tracing.ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert tracing.from_environment() is None
    monkeypatch.setenv(tracing.ENDPOINTS[0], "http://127.0.0.1:9")
    with pytest.raises(DependencyError, match=r"foreword\[tracing\]"):
        tracing.from_environment()


# Examples ---------------------------------------------------------------------------------------


def test_every_metric_of_the_examples_is_one_that_the_server_has(
    backbone: Backbone, tmp_path: Path
) -> None:
    with (
        running(Server(backbone, None, config())) as address,
        httpx.Client(base_url=address) as client,
    ):
        client.post("/v1/completions", json=ASK)
        client.post("/v1/completions", json=ASK | {"model": "none"})
        text = client.get("/metrics").text
    known = set(re.findall(r"^# TYPE (foreword:\w+)", text, re.M))
    known |= set(re.findall(r"^(foreword:\w+?)(?:\{| )", text, re.M))
    labels = set(re.findall(r'[{,](\w+)="', text)) | {"instance", "job"}  # Prometheus' own
    for name in ("grafana.json", "alerts.yaml"):
        found = (EXAMPLES / name).read_text()
        named = set(re.findall(r"foreword:\w+", found))
        failures = "foreword:request_failures_total"  # of no failure there is no line
        assert named and named - {failures} <= known, named - known
        used = re.findall(r'[{,](\w+)=~?\\?"', found)
        assert set(used) <= labels | {"reason"}
    reasons = {"timeout", "model", "engine_dead", "unavailable", "other", "queue_full", "invalid"}
    rules = yaml.safe_load((EXAMPLES / "alerts.yaml").read_text())["groups"][0]["rules"]
    for rule in rules:
        for found in re.findall(r'reason=~?"([^"]+)"', rule["expr"]):
            assert set(found.split("|")) <= reasons


def test_the_unit_and_the_image_use_options_that_there_are() -> None:
    serve = next(one for one in app.registered_commands if one.name == "serve").callback
    assert serve is not None
    known = set(serve.__annotations__)
    options = yaml.safe_load((EXAMPLES / "serve.yaml").read_text())
    assert {one.replace("-", "_") for one in options} <= known
    for name in ("Containerfile", "foreword.service"):
        text = (EXAMPLES / name).read_text()
        [command] = re.findall(r"^(?:ENTRYPOINT|ExecStart=).*$", text, re.M)
        given = {one.replace("-", "_") for one in re.findall(r"--([a-z-]+)", command)}
        assert given and given <= known | {"config"}
