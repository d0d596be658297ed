"""Distillations of two processes, and ones that are killed, for the tests.

    python tests/support/distilled_runs.py FOLDER

Prints one JSON object: what one process and two come to, and the hash of a run that nothing
happened to beside those of runs that were killed while the teacher answered or samples were drawn.
"""

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import tiny_models
import torch
from joined_runs import together
from killed_runs import die_at_call, die_at_event
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, TrainConfig
from foreword.config import DistillConfig
from foreword.distillation.distill import distill
from foreword.distillation.lesson import prepare
from foreword.training.distributed import join

TEXT = "The lamp is red. The door is blue. The cat is called Ann, and it sleeps on the sofa."
QUERIES: list[Any] = [
    [{"role": "user", "content": f"{word} {number}?"}]
    for number, word in enumerate(["lamp", "door", "cat", "sofa", "red", "blue", "Ann"])
]
CONFIG = DistillConfig(top_k=8, answer_tokens=5, answer_batch=3, held_out=0.25, on_policy=0.4)
TRAIN = TrainConfig(num_steps=5, batch_size=4, learning_rate=0.02, eval_every=2, save_every=1)


def distilled(dtype: torch.dtype, folder: Path, **options: Any) -> dict[str, Any]:
    """Distil on a tiny model, going on with what is in the folder; return what came of it."""
    torch.set_num_threads(1)
    tokenizer = tiny_tokenizer()
    model = tiny_models.build("llama", dtype=dtype, vocab_size=len(tokenizer))
    backbone, config = Backbone(model, tokenizer), replace(CONFIG, **options)
    lesson = prepare(backbone, TEXT, QUERIES, 8, config, folder=folder)
    events = list(distill(backbone, lesson, TRAIN, checkpoint=folder, resume=True))
    prompt = events[-1].prompt
    assert prompt is not None
    values = torch.cat([tensor.flatten().double() for tensor in prompt.tensors])
    return {
        "num_processes": join().size,
        "hash": prompt.content_hash,
        "values": values.tolist(),
        "losses": [event.loss for event in events],
        "files": sorted(path.name for path in (folder / "teacher").iterdir()),
    }


def live(folder: Path, death: Callable[[], None] | None = None) -> bool:
    """Distil in a child process; return whether it came to the end."""
    child = os.fork()
    if child == 0:
        if death is not None:
            death()
        found = distilled(torch.float32, folder)
        (folder / "found.json").write_text(json.dumps(found))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), f"the child ended with {status}"
    return status == 0


def main(folder: Path) -> None:
    """Run every scenario and print what each came to."""
    found: dict[str, Any] = {}
    for name, size, options in (
        ("one", 1, {"on_policy": 0.0}),
        ("two", 2, {"on_policy": 0.0}),
        ("two of their own", 2, {}),
        ("two of their own again", 2, {}),
    ):
        place = folder / name.replace(" ", "-")
        found[name] = together(
            lambda rank, o=options, p=place: distilled(torch.float64, p / "run", **o), place, size
        )
    chance = random.Random(0)
    deaths: dict[str, Callable[[], None] | None] = {
        "calm": None,
        "before an answer is there": lambda: die_at_call("replace", 2, False),
        "after an answer is there": lambda: die_at_call("replace", 1, True),
        "among the states": lambda: die_at_call("replace", 7, False),
    }
    for low, high in ((4.0, 5.0), (5.0, 6.0)):
        moment = int(10 ** chance.uniform(low, high))
        deaths[f"at the {moment}th event"] = lambda n=moment: die_at_event(n)  # type: ignore[misc]
    for index, (name, death) in enumerate(deaths.items()):
        place = folder / f"killed-{index}"
        num_deaths = 0 if death is None else int(not live(place, death))
        assert live(place)
        one = json.loads((place / "found.json").read_text())
        found[f"killed: {name}"] = one | {"num_deaths": num_deaths}
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
