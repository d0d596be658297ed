"""What the plugin does where vLLM calls it, with a stand-in for vLLM: it is not installed here."""

import asyncio
import importlib
import json
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fastapi.responses import JSONResponse, Response
from prometheus_client import CollectorRegistry, generate_latest

from foreword.vllm_plugin import signing
from foreword.vllm_plugin.metrics import PluginMetrics

NAMES = {
    "vllm.entrypoints.generate.base.protocol": ["StreamOptions"],
    "vllm.entrypoints.openai.chat_completion": ["api_router"],
    "vllm.entrypoints.openai.chat_completion.protocol": ["ChatCompletionRequest"],
    "vllm.entrypoints.openai.completion": ["api_router"],
    "vllm.entrypoints.openai.completion.protocol": ["CompletionRequest"],
    "vllm.entrypoints.serve.utils.api_utils": ["validate_json_request"],
    "vllm.exceptions": ["GenerationError"],
    "vllm.inputs.engine": ["embeds_input", "tokens_input"],
    "vllm.logger": ["init_logger"],
    "vllm.sampling_params": ["StructuredOutputsParams"],
    "vllm.distributed.kv_transfer.kv_connector.v1.base": [
        "KVConnectorBase_V1", "KVConnectorMetadata",
    ],
    "vllm.distributed.parallel_state": [
        "get_tensor_model_parallel_rank", "get_tensor_model_parallel_world_size",
    ],
}  # fmt: skip


class Silent:
    """A logger."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Put modules with vLLM's names in its place; return the plugin's own that import them."""
    for path, names in NAMES.items():
        parts = path.split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            if name not in sys.modules:
                monkeypatch.setitem(sys.modules, name, ModuleType(name))
        for name in names:
            setattr(sys.modules[path], name, type(name, (Exception,), {}))
    sys.modules["vllm.logger"].init_logger = lambda _: Silent()  # type: ignore[attr-defined]
    found = {}
    for name in ("connector", "endpoint"):
        path = f"foreword.vllm_plugin.{name}"
        sys.modules.pop(path, None)
        found[name] = importlib.import_module(path)
        monkeypatch.setattr(sys.modules["foreword.vllm_plugin"], name, found[name], raising=False)
    yield SimpleNamespace(**found)
    for name in found:
        del sys.modules[f"foreword.vllm_plugin.{name}"]


# The endpoint ------------------------------------------------------------------------------------


class Front:
    """A front end that binds every request to one prompt."""

    catalog = SimpleNamespace(base=SimpleNamespace(name="base"))

    def is_prompt(self, name: str) -> bool:
        return True

    async def run(self, work: Any) -> Any:
        served = SimpleNamespace(name="home", label="home", entry="home@1")
        return SimpleNamespace(
            served=served, num_virtual=4, rows=[1], order=None, stop_ids=[], use=None
        )


def answered(vllm: SimpleNamespace, handler: Any) -> tuple[Any, str]:
    """Return the answer to a request that vLLM's handler answers, and the metrics after it."""
    registry = CollectorRegistry()
    plugin = vllm.endpoint.Plugin()
    plugin._frontend, plugin._metrics = Front(), PluginMetrics("base", registry)
    body = SimpleNamespace(model="home", ignore_eos=False, stop_token_ids=None, stream=False)
    try:
        found = asyncio.run(plugin._answer(body, None, handler, is_chat=True))
    except asyncio.CancelledError as error:
        found = error
    return found, generate_latest(registry).decode()


@pytest.mark.parametrize("nothing", [None, Response(), Response(status_code=499)])
def test_a_client_that_goes_is_counted_as_an_abort(vllm: SimpleNamespace, nothing: Any) -> None:
    async def handler(body: Any, http: Any) -> Any:
        return nothing

    found, metrics = answered(vllm, handler)
    assert found.status_code == 499
    assert 'finished_reason="abort"' in metrics


def test_an_answer_that_is_cancelled_is_counted_as_an_abort(vllm: SimpleNamespace) -> None:
    async def handler(body: Any, http: Any) -> Any:
        raise asyncio.CancelledError

    found, metrics = answered(vllm, handler)
    assert isinstance(found, asyncio.CancelledError)
    assert 'finished_reason="abort"' in metrics


def test_an_answer_is_rewritten_and_counted(vllm: SimpleNamespace) -> None:
    async def handler(body: Any, http: Any) -> Any:
        usage = {"prompt_tokens": 6, "completion_tokens": 1, "total_tokens": 7}
        choices = [{"index": 0, "finish_reason": "stop"}]
        return JSONResponse({"model": "base", "choices": choices, "usage": usage})

    found, metrics = answered(vllm, handler)
    assert json.loads(found.body)["model"] == "home"
    assert 'finished_reason="stop"' in metrics and "abort" not in metrics


def test_an_error_is_handed_on(vllm: SimpleNamespace) -> None:
    async def handler(body: Any, http: Any) -> Any:
        return JSONResponse({"error": {"message": "x"}}, 400)

    assert answered(vllm, handler)[0].status_code == 400


# The connector -----------------------------------------------------------------------------------


@pytest.fixture
def connector(vllm: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("FOREWORD_SECRET", "00" * 32)
    made = vllm.connector.ForewordConnector.__new__(vllm.connector.ForewordConnector)
    made._pending, made._offered, made._failed = [], {}, set()
    made._block_size, made._layers = 4, {}
    return made


def request(num_virtual: int = 8) -> Any:
    order = signing.sealed({"entry": "home@1", "content": "x", "num_virtual": num_virtual})
    return SimpleNamespace(
        request_id="r", num_tokens=12, kv_transfer_params={"foreword": order},
        skip_reading_prefix_cache=False,
    )  # fmt: skip


BLOCKS: Any = SimpleNamespace(get_block_ids=lambda: ([5, 6, 7],))


@pytest.mark.parametrize(("num_cached", "granted"), [(0, 0), (0, 4), (0, 7), (4, 0), (4, 3)])
def test_a_request_that_is_granted_too_little_fails_by_name(
    connector: Any, num_cached: int, granted: int
) -> None:
    one = request()
    offered, is_later = connector.get_num_new_matched_tokens(one, num_cached)
    assert (offered, is_later) == (8 - num_cached, False)
    connector.update_state_after_alloc(one, BLOCKS, granted)
    meta = connector.build_connector_meta(None)
    assert [load.reason for load in meta.loads] == [
        f"vLLM grants {granted} of its {offered} missing virtual tokens"
    ]
    connector._get_connector_metadata = lambda: meta
    connector.start_load_kv(None)
    assert connector.get_block_ids_with_load_errors() == {5, 6}


@pytest.mark.parametrize("num_cached", [0, 4, 7])
def test_what_is_granted_in_full_is_loaded(connector: Any, num_cached: int) -> None:
    one = request()
    offered, _ = connector.get_num_new_matched_tokens(one, num_cached)
    connector.update_state_after_alloc(one, BLOCKS, offered)
    [load] = connector.build_connector_meta(None).loads
    assert (load.start, load.stop, load.reason) == (num_cached, 8, None)


def test_what_is_cached_in_full_needs_no_load(connector: Any) -> None:
    one = request()
    assert connector.get_num_new_matched_tokens(one, 8) == (0, False)
    connector.update_state_after_alloc(one, BLOCKS, 0)
    assert connector.build_connector_meta(None).loads == []


def test_the_latest_offer_counts_and_none_is_kept(connector: Any) -> None:
    one = request()
    connector.get_num_new_matched_tokens(one, 0)  # there was no room
    connector.get_num_new_matched_tokens(one, 4)
    connector.update_state_after_alloc(one, BLOCKS, 4)
    assert [load.reason for load in connector.build_connector_meta(None).loads] == [None]
    connector.get_num_new_matched_tokens(one, 0)
    assert connector.request_finished(one, []) == (False, None)
    assert not connector._offered
