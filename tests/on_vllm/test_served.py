"""Prompts of both forms on one vLLM server, against the oracle; blocks are scarce, so that requests
are preempted.
"""

import itertools
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import oracle
import pytest
import served
import torch

from foreword import Backbone, EncodingConfig, SoftPrompt
from foreword.data.encoding import encode_prompt
from foreword.prompt.store import Store

FORMS, LENGTHS = ("embeddings", "key_values"), (16, 20, 32, 40)
NAMES = [f"{form[:3]}{length}" for form in FORMS for length in LENGTHS]
NUM_NEW = 12
NUM_BLOCKS = "44"  # of 32 tokens
ROUNDS = 6  # of requests at once, until one is preempted
FOLLOWS_SECONDS = 120.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    tmp = tmp_path_factory.mktemp("served")
    model = served.build()
    directory = served.save(model, tmp / "model")
    backbone = Backbone(model, served.TOKENIZER, name="tiny")
    store = Store(tmp / "store")
    prompts: dict[str, SoftPrompt | None] = {"base": None}
    for seed, (form, length) in enumerate(itertools.product(FORMS, LENGTHS)):
        name = f"{form[:3]}{length}"
        prompts[name] = served.add(store, name, served.prompt(backbone, form, length, seed), tmp)
    store.alias("alias", "key20")
    log = tmp / "log"
    with served.serving(
        directory,
        store.directory,
        log,
        "--num-gpu-blocks-override",
        NUM_BLOCKS,
        "--enable-scale-out",
    ) as url:
        yield SimpleNamespace(
            url=url, model=model, backbone=backbone, store=store, prompts=prompts, log=log, tmp=tmp
        )


def ask(server: Any, name: str, ids: list[int], **fields: Any) -> dict[str, Any]:
    """Return a greedy completion of ids, with its own ids."""
    body = {
        "model": name, "prompt": ids, "max_tokens": NUM_NEW, "temperature": 0, "ignore_eos": True,
        "return_token_ids": True,
    }  # fmt: skip
    status, answer = served.post(f"{server.url}/v1/completions", body | fields)
    assert status == 200, answer
    return answer


def new_ids(answer: dict[str, Any]) -> list[int]:
    return answer["choices"][0]["token_ids"]


def wait_until(is_so: Any) -> None:
    deadline = time.monotonic() + FOLLOWS_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


# Equality ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_answers_equal_the_oracles_cold_and_cached(server: Any, name: str) -> None:
    ids = served.ids_of(50)
    wanted = served.expected(server.model, server.prompts[name], ids, NUM_NEW)
    assert wanted != served.expected(server.model, None, ids, NUM_NEW)
    cold, cached = ask(server, name, ids), ask(server, name, ids)
    assert new_ids(cold) == new_ids(cached) == wanted
    details = [one["usage"]["prompt_tokens_details"] for one in (cold, cached)]
    num_virtual = int(name[3:])
    assert [one["virtual_tokens"] for one in details] == [num_virtual] * 2
    whole_blocks = (num_virtual + len(ids)) // 32 * 32
    assert [one["cached_tokens"] for one in details] == [0, whole_blocks - num_virtual]


def test_the_base_is_served_as_it_is(server: Any) -> None:
    ids = served.ids_of(9)
    answer = ask(server, "base", ids)
    assert new_ids(answer) == served.expected(server.model, None, ids, NUM_NEW)
    assert answer["model"] == "base"


def test_32_requests_at_once_equal_the_oracles_though_some_are_preempted(server: Any) -> None:
    names = itertools.cycle(["base", *NAMES])
    requests = [(next(names), served.ids_of(10 + 3 * index)) for index in range(32)]
    many = 150  # so long that they overlap, and grow past the blocks there are
    known = [
        served.expected(server.model, server.prompts[name], ids, many) for name, ids in requests
    ]
    for _ in range(ROUNDS):  # a machine that is busy may let them come one after another
        with ThreadPoolExecutor(32) as pool:
            found = list(
                pool.map(lambda pair: new_ids(ask(server, *pair, max_tokens=many)), requests)
            )
        for (name, _), expected, got in zip(requests, known, found, strict=True):
            assert got == expected, name
        if num_preemptions(server) > 0:
            return
    pytest.fail(f"no request was preempted in {ROUNDS} rounds")


def num_preemptions(server: Any) -> float:
    metrics = served.get(server.url + "/metrics")
    found = re.search(r"^vllm:num_preemptions_total\{.*\} (.*)$", metrics, re.M)
    assert found is not None
    return float(found[1])


@pytest.mark.parametrize("name", ["base", "emb20", "key20", "key32"])
def test_a_stream_says_what_the_whole_answer_says(server: Any, name: str) -> None:
    ids = served.ids_of(17)
    body = {
        "model": name, "prompt": ids, "max_tokens": NUM_NEW, "temperature": 0, "ignore_eos": True,
        "return_token_ids": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    *events, last = served.stream(f"{server.url}/v1/completions", body)
    whole = ask(server, name, ids)
    assert sum((event["choices"][0]["token_ids"] for event in events), []) == new_ids(whole)
    assert "".join(event["choices"][0]["text"] for event in events) == whole["choices"][0]["text"]
    assert {event["model"] for event in [*events, last]} == {name}
    assert events[0]["choices"][0]["prompt_token_ids"] == ids
    for field in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert last["usage"][field] == whole["usage"][field]


@pytest.mark.parametrize("name", ["emb32", "key40"])
def test_a_chat_equals_the_oracles(server: Any, name: str) -> None:
    messages = [{"role": "system", "content": "be"}, {"role": "user", "content": "what is it?"}]
    ids = encode_prompt(messages, served.TOKENIZER, EncodingConfig())
    wanted = served.expected(server.model, server.prompts[name], ids, NUM_NEW)
    body = {
        "model": name, "messages": messages, "max_tokens": NUM_NEW, "temperature": 0,
        "ignore_eos": True, "return_token_ids": True,
    }  # fmt: skip
    status, answer = served.post(f"{server.url}/v1/chat/completions", body)
    assert status == 200 and new_ids(answer) == wanted and answer["prompt_token_ids"] == ids
    assert answer["model"] == name and answer["usage"]["prompt_tokens"] == len(ids)
    events = served.stream(f"{server.url}/v1/chat/completions", body)
    parts = [event["choices"][0]["delta"].get("content") or "" for event in events]
    assert "".join(parts) == answer["choices"][0]["message"]["content"]
    assert {event["model"] for event in events} == {name}


@pytest.mark.parametrize("name", ["emb20", "key32"])
def test_an_answer_ends_where_the_oracles_does(server: Any, name: str) -> None:
    end = served.TOKENIZER.eos_token_id
    for seed in range(20):
        ids = served.ids_of(6, seed)
        wanted = served.expected(server.model, server.prompts[name], ids, 60)
        if end in wanted:
            break
    answer = ask(server, name, ids, max_tokens=60, ignore_eos=False)
    assert (
        new_ids(answer)[: len(wanted)] == wanted[: wanted.index(end) + 1]
        if end in wanted
        else wanted
    )
    assert answer["choices"][0]["finish_reason"] == ("stop" if end in wanted else "length")


@pytest.mark.parametrize("name", ["base", "emb16", "key20"])
def test_a_repetition_penalty_sees_real_tokens_only(server: Any, name: str) -> None:
    ids = served.ids_of(7)
    assert 0 not in ids
    wanted = oracle.generate(
        server.model, server.prompts[name], torch.tensor(ids), repetition_penalty=1.8,
        max_new_tokens=30, do_sample=False, eos_token_id=None,
    )  # fmt: skip
    answer = ask(server, name, ids, max_tokens=30, repetition_penalty=1.8)
    assert new_ids(answer) == wanted[0, len(ids) :].tolist()
    plain = ask(server, name, ids, max_tokens=30)
    assert new_ids(answer) != new_ids(plain)


@pytest.mark.parametrize("name", ["emb16", "key20"])
def test_several_prompts_with_several_answers_each(server: Any, name: str) -> None:
    rows = [served.ids_of(6), served.ids_of(11)]
    answer = ask(server, name, rows, n=2, temperature=1, top_k=1)
    found = [choice["token_ids"] for choice in answer["choices"]]
    wanted = [served.expected(server.model, server.prompts[name], row, NUM_NEW) for row in rows]
    assert found == [wanted[0], wanted[0], wanted[1], wanted[1]]
    usage = answer["usage"]
    assert usage["prompt_tokens"] == 17 and usage["completion_tokens"] == 4 * NUM_NEW
    assert usage["prompt_tokens_details"]["virtual_tokens"] == 2 * int(name[3:])


@pytest.mark.parametrize("name", ["emb16", "key20"])
def test_logprobs_are_the_oracles(server: Any, name: str) -> None:
    ids = served.ids_of(8)
    answer = ask(server, name, ids, logprobs=1, max_tokens=1)
    logits = oracle.row_logits(server.model, server.prompts[name], torch.tensor(ids))[-1]
    wanted = logits.log_softmax(-1).max().item()
    assert answer["choices"][0]["logprobs"]["token_logprobs"][0] == pytest.approx(wanted, abs=1e-4)


def test_rows_of_a_row_template_are_encoded_as_in_training(server: Any) -> None:
    one = server.prompts["emb16"]
    templated = one.replaced(one.tensors, one.facts | {"encoding": {"row_template": "Q: {prompt}"}})
    served.add(server.store, "templated", templated, server.tmp)
    wait_until(lambda: "templated" in models(server))
    ids = served.TOKENIZER("Q: hi", add_special_tokens=False)["input_ids"]
    body = {
        "model": "templated", "messages": [{"role": "user", "content": "hi"}], "temperature": 0,
        "max_tokens": NUM_NEW, "ignore_eos": True, "return_token_ids": True,
    }  # fmt: skip
    _, answer = served.post(f"{server.url}/v1/chat/completions", body)
    server.store.remove("templated")
    assert new_ids(answer) == served.expected(server.model, one, ids, NUM_NEW)


# Names ------------------------------------------------------------------------------------------


def models(server: Any) -> dict[str, Any]:
    return {card["id"]: card for card in served.get(server.url + "/v1/models")["data"]}


def test_models_lists_the_base_and_every_prompt(server: Any) -> None:
    cards = models(server)
    assert set(cards) >= {"base", "alias", *NAMES}
    entry = server.store.resolve("key20")
    assert cards["alias"]["root"] == str(entry) and cards["alias"]["parent"] == "base"
    assert cards["key20"]["soft_prompt"]["form"] == "key_values"
    assert cards["key20"]["max_model_len"] == 512 - 20


def test_versions_and_aliases_are_models_too(server: Any) -> None:
    ids = served.ids_of(8)
    wanted = served.expected(server.model, server.prompts["key20"], ids, NUM_NEW)
    version = server.store.resolve("key20").version
    for asked, name in (("alias", "alias"), (f"key20@{version[:6]}", f"key20@{version}")):
        answer = ask(server, asked, ids)
        assert new_ids(answer) == wanted and answer["model"] == name


def test_an_unknown_name_is_not_found(server: Any) -> None:
    for name in ("nothing", "key20@ffff"):
        body = {"model": name, "prompt": "x"}
        status, answer = served.post(f"{server.url}/v1/completions", body)
        assert status == 404 and name.split("@")[0] in answer["error"]["message"]


def test_metrics_and_log_say_the_prompts_name(server: Any) -> None:
    ask(server, "key32", served.ids_of(8))
    text = served.get(server.url + "/metrics")
    labels = 'model_name="base",soft_prompt="key32"'
    assert f"foreword:generation_tokens_total{{{labels}}}" in text
    assert f"foreword:e2e_request_latency_seconds_count{{{labels}}}" in text
    assert 'vllm:generation_tokens_total{engine="0",model_name="base"}' in text
    assert (
        f'"model": "key32", "soft_prompt": "key32", "root": "{server.store.resolve("key32")}"'
        in (server.log.read_text())
    )


# Refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"echo": True}, {"prompt_logprobs": 1}, {"use_beam_search": True},
        {"truncate_prompt_tokens": 3}, {"suffix": "x"}, {"kv_transfer_params": {"a": 1}},
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["emb16", "key20"])
def test_what_cannot_be_exact_is_refused(server: Any, name: str, fields: dict[str, Any]) -> None:
    body = {"model": name, "prompt": "x", "max_tokens": 1}
    status, answer = served.post(f"{server.url}/v1/completions", body | fields)
    assert status == 400 and next(iter(fields)) in answer["error"]["message"]


def test_what_does_not_fit_is_refused(server: Any) -> None:
    body = {"model": "key40", "prompt": served.ids_of(400), "max_tokens": 73}
    status, answer = served.post(f"{server.url}/v1/completions", body)
    assert status == 400 and "40 virtual tokens, 400 of the request" in answer["error"]["message"]


@pytest.mark.parametrize("name", ["base", "emb16"])
def test_clients_tensors_are_refused(server: Any, name: str) -> None:
    body = {"model": name, "prompt_embeds": "AAAA", "max_tokens": 1}
    status, answer = served.post(f"{server.url}/v1/completions", body)
    assert status == 400 and "prompt_embeds" in answer["error"]["message"]
    part = {"type": "prompt_embeds", "data": "AAAA"}
    body = {"model": name, "messages": [{"role": "user", "content": [part]}]}
    assert served.post(f"{server.url}/v1/chat/completions", body)[0] == 400


def test_an_order_that_a_client_made_up_is_refused(server: Any) -> None:
    entry = server.store.resolve("key20")
    order = {"entry": str(entry), "content": server.prompts["key20"].content_hash}
    order |= {"num_virtual": 20, "seal": "0" * 64}
    fields = {"kv_transfer_params": {"foreword": order}}
    body = {"model": "base", "prompt": served.ids_of(30), "max_tokens": 1, **fields}
    status, answer = served.post(f"{server.url}/v1/completions", body)
    assert status == 400 and "kv_transfer_params" in answer["error"]["message"]
    # Another of vLLM's routes, past this plugin: the engine does not take it either.
    inputs = {"model": "base", "token_ids": served.ids_of(30), "sampling_params": {"max_tokens": 1}}
    status, answer = served.post(f"{server.url}/inference/v1/generate", inputs | fields)
    assert status == 500, answer


# The store --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_prompt_is_replaced_under_load_and_then_removed(server: Any, form: str) -> None:
    old, new = (served.prompt(server.backbone, form, 24, seed) for seed in (70, 71))
    rows = [served.ids_of(9, seed) for seed in range(4)]
    wanted = {
        one.content_hash: [served.expected(server.model, one, ids, NUM_NEW) for ids in rows]
        for one in (old, new)
    }
    served.add(server.store, "moving", old, server.tmp)
    wait_until(lambda: "moving" in models(server))

    def asked(index: int) -> str:
        found = new_ids(ask(server, "moving", rows[index % 4]))
        return next(key for key, answers in wanted.items() if answers[index % 4] == found)

    with ThreadPoolExecutor(4) as pool:
        before = list(pool.map(asked, range(8)))
        served.add(server.store, "moving", new, server.tmp)
        root = str(server.store.resolve("moving"))
        during = []
        while models(server)["moving"]["root"] != root:
            during += pool.map(asked, range(8))
        after = list(pool.map(asked, range(8)))
    assert set(before) == {old.content_hash} and set(after) == {new.content_hash}
    assert set(during) <= set(wanted)
    server.store.remove("moving")
    wait_until(lambda: "moving" not in models(server))
    assert served.post(f"{server.url}/v1/completions", {"model": "moving", "prompt": "x"})[0] == 404


def test_a_prompt_of_another_base_says_why_it_is_not_served(server: Any) -> None:
    served.add(server.store, "wrong", SoftPrompt.from_embeddings(torch.randn(3, 7)), server.tmp)
    body = {"model": "wrong", "prompt": "x"}
    wait_until(lambda: served.post(f"{server.url}/v1/completions", body)[0] == 400)
    _, answer = served.post(f"{server.url}/v1/completions", body)
    assert "hidden size 7" in answer["error"]["message"]
    server.store.remove("wrong")


def test_keys_that_cannot_be_read_fail_their_own_request_only(server: Any) -> None:
    one = served.prompt(server.backbone, "key_values", 24, 80)
    served.add(server.store, "broken", one, server.tmp)
    wait_until(lambda: "broken" in models(server))
    (server.store.resolve("broken").path / "adapter_model.safetensors").write_bytes(b"x")
    body = {"model": "broken", "prompt": served.ids_of(50), "max_tokens": 4}
    for _ in range(2):  # nothing of it is left in the cache
        status, answer = served.post(f"{server.url}/v1/completions", body)
        assert status == 500 and "broken could not" in answer["error"]["message"], answer
    assert "the files do not match their version" in server.log.read_text()
    ids = served.ids_of(9)
    wanted = served.expected(server.model, server.prompts["key20"], ids, NUM_NEW)
    assert new_ids(ask(server, "key20", ids)) == wanted
    server.store.remove("broken")
