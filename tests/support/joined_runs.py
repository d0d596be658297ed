"""Runs of two processes on one machine, for the tests: forks both, lets them train, compares.

    python tests/support/joined_runs.py FOLDER

Prints one JSON object with, for each scenario, what each process said and the prompt it ended with.
"""

import dataclasses
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny_models
import torch

from foreword import Backbone, Row, TrainConfig, train
from foreword.errors import ForewordError
from foreword.training.distributed import join

# Lengths and numbers of labels differ, and the last batch of an epoch is a single row.
ROWS = [
    Row.from_ids(
        tiny_models.ids(length, seed=length).tolist(), [5 + length, 7, 8][: length % 3 + 1]
    )
    for length in (3, 4, 5, 6, 7, 8, 9, 10, 11)
]
ROWS = [dataclasses.replace(row, task="ab"[index % 2]) for index, row in enumerate(ROWS)]
METHODS: dict[str, dict[str, Any]] = {
    "residual": {"learning_rate": "auto"},
    "multitask": {},
    "context-tuning": {"num_virtual_tokens": 20},
}
CONFIG = TrainConfig(
    num_virtual_tokens=4, batch_size=4, num_steps=6, eval_every=3, learning_rate=0.05
)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def together(work: Callable[[int], Any], folder: Path, size: int) -> list[Any]:
    """Run a function in `size` processes that find each other; return what each one gives."""
    port, children = free_port(), []
    folder.mkdir()
    for rank in range(size):
        child = os.fork()
        if child == 0:
            if size > 1:
                os.environ |= {
                    "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
                    "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }  # fmt: skip
            try:
                result = work(rank)
            except ForewordError as error:
                result = {"error": f"{type(error).__name__}: {error}"}
            (folder / f"{rank}.json").write_text(json.dumps(result))
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    files = [folder / f"{rank}.json" for rank in range(size)]
    return [json.loads(file.read_text()) if file.exists() else None for file in files]


def trained(dtype: torch.dtype, checkpoint: Path | None = None, **options: Any) -> Any:
    """Train a tiny model; return the prompt's values and the losses."""
    torch.set_num_threads(1)
    is_sharded, dies_at = options.pop("is_sharded", False), options.pop("dies_at", None)
    resume = options.pop("resume", False)
    backbone = Backbone(tiny_models.build(options.pop("family", "llama"), dtype=dtype))
    os.environ["ACCELERATE_USE_FSDP"] = str(is_sharded)
    num_whole = sum(p.numel() for p in backbone.model.parameters())
    config = dataclasses.replace(CONFIG, **options)
    events = []
    for event in train(
        backbone, ROWS, config, validation=ROWS[:5], checkpoint=checkpoint, resume=resume
    ):
        events.append(event)
        if dies_at == (os.environ.get("RANK"), event.step):
            os.kill(os.getpid(), signal.SIGKILL)
    values = torch.cat([tensor.flatten().double() for tensor in events[-1].prompt.tensors])
    own = [p.to_local() if hasattr(p, "to_local") else p for p in backbone.model.parameters()]
    return {
        "num_processes": join().size,
        "share_of_base": sum(p.numel() for p in own) / num_whole,
        "values": values.tolist(),
        "hash": events[-1].prompt.content_hash,
        "losses": [event.loss for event in events],
        "validation": [e.validation.loss for e in events if e.validation],
        "exact": [e.validation.exact for e in events if e.validation],
        "agreement": [e.validation.agreement for e in events if e.validation],
        "steps": [event.step for event in events],
        "notices": [notice for event in events for notice in event.notices],
    }


def main(folder: Path) -> None:
    """Run every scenario and print what came of it."""
    found: dict[str, Any] = {}

    def scenario(name: str, size: int, dtype: torch.dtype, **options: Any) -> None:
        place = folder / name.replace(" ", "-")
        found[name] = together(lambda rank: trained(dtype, **options), place, size)

    for form in ("embeddings", "key_values"):
        for dtype in (torch.float64, torch.float32):
            short = str(dtype).removeprefix("torch.")
            scenario(f"one {form} {short}", 1, dtype, form=form)
            scenario(f"two {form} {short}", 2, dtype, form=form)
        scenario(f"sharded {form}", 2, torch.float64, form=form, is_sharded=True)
    for method, options in METHODS.items():
        for name, size in (("one", 1), ("two", 2)):
            scenario(f"{name} {method}", size, torch.float64, method=method, **options)
    scenario("sharded multitask", 2, torch.float64, method="multitask", is_sharded=True)
    scenario(
        "sharded recomputed", 2, torch.float64, form="embeddings", is_sharded=True,
        gradient_checkpointing=True, micro_batch_size=1,
    )  # fmt: skip
    state = folder / "state"
    scenario("dies", 2, torch.float64, checkpoint=state, save_every=2, dies_at=("1", 3))
    scenario("resumed", 2, torch.float64, checkpoint=state, save_every=2, resume=True)
    found["apart"] = together(lambda rank: trained(torch.float64, seed=rank), folder / "apart", 2)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
