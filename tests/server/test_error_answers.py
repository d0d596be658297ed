"""Answers to wrong requests: what they say, and which field they name."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from serving import asked, config, running, tiny_backbone

from foreword.prompt.store import Store
from foreword.server.server import Server

USER: dict[str, Any] = {"role": "user", "content": "say yes"}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "a", "messages": [USER]},
    "/v1/completions": {"model": "a", "prompt": "hi"},
    "/v1/responses": {"model": "a", "input": "hi"},
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with asked(tmp_path_factory.mktemp("errors"), max_length=100) as made:
        yield made


def refused(found: httpx.Response, status: int = 400) -> dict[str, Any]:
    """Return the error of an answer."""
    assert found.status_code == status, found.text
    error: dict[str, Any] = found.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["code"] == status
    return error


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/chat/completions", "max_tokens"),
        ("/v1/chat/completions", "max_completion_tokens"),
        ("/v1/completions", "max_tokens"),
        ("/v1/responses", "max_output_tokens"),
    ],
)
def test_too_many_new_tokens_are_refused_by_their_field(
    client: httpx.Client, path: str, field: str
) -> None:
    error = refused(client.post(path, json=BODIES[path] | {field: 5000}))
    assert error["param"] == field and error["message"].startswith(f"{field}: ")
    assert "at most 100 are served: give at most " in error["message"]
    assert error["message"].endswith(", or serve with a larger --max-length")
    most = int(error["message"].split("give at most ")[1].split(",")[0])
    error = refused(client.post(path, json=BODIES[path] | {field: most + 1}))
    assert error["param"] == field
    if path != "/v1/responses":
        assert client.post(path, json=BODIES[path] | {field: most}).status_code == 200


@pytest.mark.parametrize(
    ("path", "changes", "status", "param"),
    [
        ("/v1/completions", {"model": "nobody"}, 404, "model"),
        ("/v1/completions", {"logit_bias": {"99999": 1}}, 400, "logit_bias"),
        ("/v1/chat/completions", {"top_logprobs": 3}, 400, "top_logprobs"),
        ("/v1/chat/completions", {"max_tokens": 1, "max_completion_tokens": 2}, 400, "max_tokens"),
        ("/v1/chat/completions", {"max_tokes": 1}, 400, "max_tokes"),
        ("/v1/responses", {"store": True}, 400, "store"),
    ],
)
def test_an_error_names_the_field_that_is_to_be_changed(
    client: httpx.Client, path: str, changes: dict[str, Any], status: int, param: str
) -> None:
    assert refused(client.post(path, json=BODIES[path] | changes), status)["param"] == param


# Routes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/v1/chat/completion", "/v1/chat/completions"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/response", "/v1/responses"),
        ("/v1/tokenize", "/tokenize"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
    ],
)
def test_an_unknown_route_is_told_which_one_it_may_mean(
    client: httpx.Client, path: str, meant: str
) -> None:
    error = refused(client.post(path, json={}), 404)
    assert error["type"] == "NotFoundError"
    assert error["message"] == (f"no route POST {path}; did you mean {meant}? GET /docs lists all")


def test_an_unknown_route_like_none_is_told_where_all_are(client: httpx.Client) -> None:
    error = refused(client.get("/" + "x" * 5000), 404)
    assert error["message"].endswith("xxx; GET /docs lists all") and len(error["message"]) < 200


def test_another_method_is_told_those_of_the_route(client: httpx.Client) -> None:
    found = client.get("/v1/completions")
    assert refused(found, 405)["message"] == (
        "no route GET /v1/completions: it takes POST; GET /docs lists all"
    )
    assert found.headers["allow"] == "POST"
    assert "it takes GET;" in refused(client.post("/v1/models", json={}), 405)["message"]


def test_the_log_names_the_route_of_every_request_that_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(tiny_backbone(), Store(tmp_path / "store"), config(), api_key="secret")
    routes = [one for one in server.config.app.app.routes if isinstance(one, APIRoute)]
    asked = [(method, one.path) for one in routes for method in sorted(one.methods)]
    with (
        caplog.at_level(logging.DEBUG, "foreword.access"),
        running(server) as address,
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        for method, path in [*asked, ("GET", "/no/such")]:
            client.request(method, path.replace("{model:path}", "a"), json={})
    lines = [json.loads(one.getMessage()) for one in caplog.records if one.name.endswith("access")]
    assert [line["route"] for line in lines] == [*(path for _, path in asked), "none"]
    assert {line["status"] for line in lines} >= {401, 403}
