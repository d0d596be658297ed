"""Several processes: each has its part of a prompt, and all front ends see the same store.

Each kind of parallelism takes another family, so that every family is served once.
"""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import served

from foreword import Backbone
from foreword.prompt.store import Store

NUM_NEW = 12
COMPILED = '{"mode": 1, "backend": "eager"}'


def body_of(name: str, ids: list[int]) -> dict[str, Any]:
    return {
        "model": name, "prompt": ids, "max_tokens": NUM_NEW, "temperature": 0, "ignore_eos": True,
        "return_token_ids": True,
    }  # fmt: skip


def answer(url: str, name: str, ids: list[int]) -> list[int]:
    status, found = served.post(f"{url}/v1/completions", body_of(name, ids))
    assert status == 200, found
    ids_found: list[int] = found["choices"][0]["token_ids"]
    return ids_found


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("qwen2", ("--tensor-parallel-size", "2")),
        # Without any compilation, vLLM's stages on processors have no room for what they receive.
        ("qwen3", ("--pipeline-parallel-size", "2", "--compilation-config", COMPILED)),
        ("llama", ("--data-parallel-size", "2", "--api-server-count", "2")),
    ],
    ids=["tensor", "pipeline", "data"],
)
def test_two_processes_answer_as_the_oracle(
    tmp_path: Path, family: str, options: tuple[str, ...]
) -> None:
    model = served.build(family)
    directory = served.save(model, tmp_path / "model")
    backbone = Backbone(model, served.TOKENIZER, name="tiny")
    store = Store(tmp_path / "store")
    prompts: dict[str, Any] = {"base": None}
    for seed, (form, length) in enumerate(
        itertools.product(("embeddings", "key_values"), (20, 32))
    ):
        name = f"{form[:3]}{length}"
        prompts[name] = served.add(
            store, name, served.prompt(backbone, form, length, seed), tmp_path
        )
    with served.serving(directory, store.directory, tmp_path / "log", *options) as url:
        names = itertools.cycle(prompts)
        requests = [(next(names), served.ids_of(10 + 2 * index)) for index in range(20)]
        with ThreadPoolExecutor(20) as pool:
            found = list(pool.map(lambda pair: answer(url, *pair), requests))
        for (name, ids), got in zip(requests, found, strict=True):
            assert got == served.expected(model, prompts[name], ids, NUM_NEW), name
        _follows(url, model, backbone, store, tmp_path)


def _follows(url: str, model: Any, backbone: Backbone, store: Store, scratch: Path) -> None:
    """Add a prompt, and ask often enough to meet every front end and every engine."""
    new = served.add(store, "new", served.prompt(backbone, "key_values", 20, 9), scratch)
    ids, deadline = served.ids_of(9), time.monotonic() + 120
    wanted = served.expected(model, new, ids, NUM_NEW)
    num_answered = 0
    while num_answered < 8:
        # The front end that has time takes a connection, which need not be one that has looked.
        if not _serves(url, "new"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
            continue
        status, found = served.post(f"{url}/v1/completions", body_of("new", ids))
        assert status == 200 or (status == 404 and time.monotonic() < deadline), found
        if status == 200:
            assert found["choices"][0]["token_ids"] == wanted
            num_answered += 1
    # Whichever process is asked, it tells the numbers of all.
    label = 'foreword:generation_tokens_total{model_name="base",soft_prompt="new"}'
    assert f"{label} {8.0 * NUM_NEW}" in served.get(url + "/metrics")


def _serves(url: str, name: str) -> bool:
    return name in [card["id"] for card in served.get(url + "/v1/models")["data"]]
