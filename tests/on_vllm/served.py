"""A vLLM server in another process, and the slow computation that it must equal."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import oracle
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, SoftPrompt
from foreword.prompt.store import Store

TOKENIZER = tiny_tokenizer()
VOCAB = len(TOKENIZER)
# vLLM's attention on processors wants heads of at least 32.
SIZES = {
    "hidden_size": 128, "intermediate_size": 192, "head_dim": 32, "max_position_embeddings": 512,
    "vocab_size": VOCAB, "eos_token_id": TOKENIZER.eos_token_id,
}  # fmt: skip
ENGINE = (
    "--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "32",
    "--max-num-batched-tokens", "512", "--block-size", "32",
)  # fmt: skip
START_SECONDS = 900


def build(family: str = "llama", **changes: Any) -> Any:
    """Return a tiny model in float32 whose logits differ clearly."""
    model = tiny_models.build(family, dtype=torch.float32, **SIZES, **changes)
    model.generation_config.eos_token_id = TOKENIZER.eos_token_id
    return model


def save(model: Any, directory: Path) -> Path:
    """Save a model with the tiny tokenizer."""
    model.save_pretrained(directory)
    TOKENIZER.save_pretrained(directory)
    return directory


def prompt(backbone: Backbone, form: str, num_virtual: int, seed: int = 1) -> SoftPrompt:
    """Return a random prompt that knows its base."""
    facts = {"base": {"name": backbone.name, "fingerprint": backbone.fingerprint()}}
    generator = torch.Generator().manual_seed(seed)
    if form == "embeddings":
        table = backbone.model.get_input_embeddings().weight
        noise = torch.randn(num_virtual, table.shape[1], generator=generator)
        return SoftPrompt.from_embeddings(noise * table.std(), facts=facts)
    config = backbone.model.config
    shape = config.num_key_value_heads, num_virtual, config.head_dim
    pairs = [
        [torch.randn(shape, generator=generator) for _ in range(2)]
        for _ in range(config.num_hidden_layers)
    ]
    return SoftPrompt.from_key_values(pairs, facts=facts)


def add(store: Store, name: str, one: SoftPrompt, scratch: Path) -> SoftPrompt:
    """Put a prompt into the store as the current version of a name."""
    directory = scratch / f"{name}-{one.content_hash[:8]}"
    one.save(directory)
    store.add(name, directory)
    return one


def ids_of(length: int, seed: int = 2) -> list[int]:
    """Return random ids of the tiny tokenizer, none of them special."""
    generator = torch.Generator().manual_seed(seed + 1000 * length)
    return torch.randint(3, VOCAB, (length,), generator=generator).tolist()


def expected(model: Any, one: SoftPrompt | None, ids: Sequence[int], num_new: int) -> list[int]:
    """Return the oracle's greedy ids."""
    return oracle.greedy(model, one, torch.tensor(list(ids)), num_new)


# Servers ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(
    model: Path | str,
    store: Path,
    log: Path,
    *options: str,
    **variables: str,
) -> Iterator[str]:
    """Run a server; yield its address.

    Args:
        model: the directory of the base, which is called "base".
        store: the prompts.
        log: where the server writes.
        options: of `vllm serve`, after those of this module.
        variables: of the environment.
    """
    port = free_port()
    start = [
        *(sys.executable, "-m", "foreword", "serve", str(model), "--engine", "vllm"),
        *("--prompts", str(store), "--port", str(port), "--served-name", "base", "--"),
        *ENGINE,
        *(() if "--compilation-config" in options else ("--enforce-eager",)),
        *options,
    ]
    with log.open("w") as file:
        process = subprocess.Popen(
            start, stdout=file, stderr=file, env=environment(**variables), start_new_session=True
        )
    try:
        wait(process, port, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def environment(**variables: str) -> dict[str, str]:
    """Return an environment for small engines without a network."""
    return os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **variables,
    }


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait(process: Any, port: int, log: Path) -> None:
    """Wait until a server answers."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
            return
        time.sleep(0.25)
    raise AssertionError(log.read_text()[-3000:])


def post(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Send JSON; return the status and the answer."""
    kind = {"content-type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), kind)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def get(url: str) -> Any:
    """Return what a route says, as text or JSON."""
    with urllib.request.urlopen(url, timeout=300) as answer:
        text = answer.read().decode()
    return json.loads(text) if text.startswith("{") else text


def stream(url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the events of a stream."""
    kind = {"content-type": "application/json"}
    asked = urllib.request.Request(url, json.dumps(body | {"stream": True}).encode(), kind)
    with urllib.request.urlopen(asked, timeout=120) as answer:
        lines = [line.decode().strip() for line in answer]
    assert lines[-2 if not lines[-1] else -1] == "data: [DONE]", lines[-3:]
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
