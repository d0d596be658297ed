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
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, Row, SoftPrompt, TrainConfig, train
from foreword.config import RewardConfig
from foreword.errors import ForewordError
from foreword.training.distributed import join
from foreword.training.objective import LIKELIHOOD
from foreword.training.preference import Preference
from foreword.training.rewarded import reward
from foreword.training.rewards import RewardFunction

# Lengths and numbers of labels differ, and the last batch of an epoch is a single row.
ROWS = [
    Row.from_ids(
        tiny_models.ids(length, seed=length).tolist(), [5 + length, 7, 8][: length % 3 + 1]
    )
    for length in (3, 4, 5, 6, 7, 8, 9, 10, 11)
]
ROWS = [dataclasses.replace(row, task="ab"[index % 2]) for index, row in enumerate(ROWS)]
PAIRS = [
    dataclasses.replace(row, rejected=Row.from_ids(row.input_ids[: -row.num_labels], [9, 4]))
    for row in ROWS
]
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
    resume, objective = options.pop("resume", False), options.pop("objective", LIKELIHOOD)
    backbone = Backbone(tiny_models.build(options.pop("family", "llama"), dtype=dtype))
    os.environ["ACCELERATE_USE_FSDP"] = str(is_sharded)
    num_whole = sum(p.numel() for p in backbone.model.parameters())
    config = dataclasses.replace(CONFIG, **options)
    rows = PAIRS if isinstance(objective, Preference) else ROWS
    events = []
    for event in train(
        backbone, rows, config, validation=rows[:5], checkpoint=checkpoint, resume=resume,
        objective=objective,
    ):  # fmt: skip
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


def rewarded(checkpoint: Path) -> Any:
    """Train a tiny model by rewards of its own answers; return the prompt's hash and these."""
    torch.set_num_threads(1)
    tokenizer = tiny_tokenizer()
    backbone = Backbone(tiny_models.build("llama", vocab_size=len(tokenizer)), tokenizer)
    questions = [{"prompt": word} for word in ("a", "bc", "def", "g", "hi")]
    events = reward(
        backbone,
        SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, 4)),
        RewardFunction("length", lambda completions: [len(one) for one in completions]),
        questions,
        RewardConfig(group=3, answer_tokens=4, kl=0.1),
        TrainConfig(num_steps=3, batch_size=3, learning_rate=0.1, save_every=1),
        validation=questions[:3],
        checkpoint=checkpoint,
        resume=True,
    )
    found = list(events)
    return {
        "num_processes": join().size,
        "hash": found[-1].prompt.content_hash,
        "rewards": [event.reward for event in found],
        "validation": found[-1].validation.reward,
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
    pairs: dict[str, Any] = {"init": "vocabulary", "objective": Preference(0.3)}
    for name, size in (("one", 1), ("two", 2), ("sharded", 2)):
        is_sharded = name == "sharded"
        scenario(f"{name} pairs", size, torch.float64, is_sharded=is_sharded, **pairs)
    scenario("sharded multitask", 2, torch.float64, method="multitask", is_sharded=True)
    scenario(
        "sharded recomputed", 2, torch.float64, form="embeddings", is_sharded=True,
        gradient_checkpointing=True, micro_batch_size=1,
    )  # fmt: skip
    state = folder / "state"
    scenario("dies", 2, torch.float64, checkpoint=state, save_every=2, dies_at=("1", 3))
    scenario("resumed", 2, torch.float64, checkpoint=state, save_every=2, resume=True)
    for name in ("rewards", "rewards again"):
        found[name] = together(lambda rank, n=name: rewarded(folder / f"{n} run"), folder / name, 2)
    found["apart"] = together(lambda rank: trained(torch.float64, seed=rank), folder / "apart", 2)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
