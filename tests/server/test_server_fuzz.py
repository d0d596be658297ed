"""Requests made up from the server's own description: none of them is the server's fault."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from serving import config, fill, running, tiny_backbone

from foreword.prompt.store import Store
from foreword.server.server import Server

ROUTES = [
    ("/v1/chat/completions", "POST"), ("/v1/completions", "POST"), ("/v1/responses", "POST"),
    ("/v1/classify", "POST"), ("/tokenize", "POST"),
    ("/detokenize", "POST"),
    ("/v1/models", "GET"), ("/v1/models/{model}", "GET"), ("/v1/load_soft_prompt", "POST"),
    ("/v1/unload_soft_prompt", "POST"), ("/health", "GET"), ("/ready", "GET"), ("/version", "GET"),
    ("/metrics", "GET"),
]  # fmt: skip


REACHES: dict[str, Any] = {
    "prompt": "hi", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "n": 1,
    "input": "hi", "max_output_tokens": 3, "tokens": [5], "max_completion_tokens": 3,
    "logit_bias": {"5": 1.0}, "response_format": None, "choices": ["a", "b"],
}  # fmt: skip

KEY = {"authorization": "Bearer root"}

# What a plain request of a route says: it is answered whatever was asked before.
PLAIN = {
    "/v1/chat/completions": ("messages", "max_tokens"),
    "/v1/completions": ("prompt", "max_tokens"),
    "/v1/responses": ("input", "max_output_tokens"),
    "/v1/classify": ("prompt", "choices"),
    "/tokenize": ("prompt",),
    "/detokenize": ("tokens",),
}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory: Path = tmp_path_factory.mktemp("fuzz")
    backbone, store = tiny_backbone(), Store(directory / "store")
    fill(store, backbone, directory)
    server = Server(backbone, store, config(runtime_loading=True), admin_key="root")
    with running(server) as found:
        yield found


def test_every_route_is_described(address: str) -> None:
    paths = httpx.get(f"{address}/openapi.json").json()["paths"]
    assert {(path, verb.upper()) for path in paths for verb in paths[path]} == set(ROUTES)


@pytest.mark.parametrize(("path", "method"), ROUTES)
def test_made_up_requests_are_answered_without_a_failure(
    address: str, path: str, method: str
) -> None:
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    operation = schema[path][method]

    @operation_cases(operation)
    def call(case: Any) -> None:
        model = case.body.get("model") if isinstance(case.body, dict) else None
        if isinstance(model, str) and len(model) % 2:
            # Half of them are let through to the engine: what remains is made up.
            case.body |= {name: value for name, value in REACHES.items() if name in case.body}
            case.body["model"] = "a"
        response = case.call(headers=KEY, timeout=60)
        assert response.status_code < 500 or response.status_code == 503, response.text

    call()
    body = {name: REACHES[name] for name in PLAIN[path]} | {"model": "a"} if path in PLAIN else None
    route = f"{address}{path}".replace("{model}", "a")
    if "load_soft_prompt" not in path:
        answer = httpx.request(method, route, json=body, headers=KEY, timeout=60)
        assert answer.status_code == 200, answer.text
    assert httpx.get(f"{address}/health").status_code == 200


def operation_cases(operation: Any) -> Any:
    """Give a test the cases of one operation, valid and invalid ones."""

    def decorate(test: Any) -> Any:
        from hypothesis import given

        modes = schemathesis.GenerationMode
        cases = operation.as_strategy(generation_mode=modes.POSITIVE) | operation.as_strategy(
            generation_mode=modes.NEGATIVE
        )
        limits = settings(
            max_examples=30, deadline=None, derandomize=True, database=None,
            phases=[Phase.generate], suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        return limits(given(case=cases)(test))

    return decorate
