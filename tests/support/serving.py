"""A server of a tiny model in this process, for the tests of its HTTP."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import oracle
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, EncodingConfig, SoftPrompt
from foreword.chat import encode
from foreword.config import ServeConfig
from foreword.data.encoding import decode
from foreword.prompt.history import History, ValidationPoint
from foreword.prompt.store import Store
from foreword.server.server import Server

TOKENIZER = tiny_tokenizer()
VOCAB = len(TOKENIZER)
END = TOKENIZER.eos_token_id
POINTS = [ValidationPoint(50, 3.8, 0), ValidationPoint(100, 3.2, 0)]
CURVE = History([4 - step / 100 for step in range(100)], [0.1] * 100, POINTS)


def tiny_backbone(family: str = "llama") -> Backbone:
    """Return a tiny model in float64 with the tiny tokenizer, called "tiny"."""
    model = tiny_models.build(family, vocab_size=VOCAB, eos_token_id=END)
    return Backbone(model, TOKENIZER, name="tiny")


def tiny_prompt(backbone: Backbone, seed: int = 1, num_virtual: int = 4) -> SoftPrompt:
    """Return an embedding prompt that knows its base."""
    facts = {"base": {"name": "tiny", "fingerprint": backbone.fingerprint()}}
    values = tiny_models.embeddings(backbone.model, num_virtual, seed)
    return SoftPrompt.from_embeddings(values, facts=facts)


def fill(store: Store, backbone: Backbone, scratch: Path, names: str = "ab") -> dict[str, Any]:
    """Add a prompt for each letter, the first of which tells its training; return them by name."""
    prompts = {}
    for index, name in enumerate(names):
        prompts[name] = tiny_prompt(backbone, index + 1, 3 + index)
        if index == 0:
            prompts[name].facts["history"] = CURVE.facts()
        prompts[name].save(scratch / name)
        store.add(name, scratch / name)
    return prompts


def expected(backbone: Backbone, prompt: SoftPrompt | None, text: Any, num_new: int) -> str:
    """Return the oracle's greedy answer to a text or to messages, as text."""
    ids = encode(backbone, text, EncodingConfig())[0]
    row = oracle.greedy(backbone.model, prompt, torch.tensor(ids), num_new)
    return decode(row[: row.index(END)] if END in row else row, TOKENIZER)


@contextlib.contextmanager
def running(server: Server) -> Iterator[str]:
    """Run a server in a thread; yield its address."""
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 120
    while not server.started and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert server.started
    try:
        yield server.address
    finally:
        server.end()
        thread.join(30)
        assert not thread.is_alive()


@contextlib.contextmanager
def asked(directory: Path, **changes: Any) -> Iterator[httpx.Client]:
    """Serve two prompts of a tiny model with some options; yield a client."""
    backbone, store = tiny_backbone(), Store(directory / "store")
    fill(store, backbone, directory)
    with (
        running(Server(backbone, store, config(**changes))) as address,
        httpx.Client(base_url=address, timeout=60) as made,
    ):
        yield made


def config(**changes: Any) -> ServeConfig:
    """Return options for a free port and short waits."""
    return ServeConfig(**{"port": 0, "drain_seconds": 1.0, "request_seconds": 60.0} | changes)
