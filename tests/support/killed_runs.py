"""Runs that are killed, for the tests of resuming: a process that forks one child for each life.

    python tests/support/killed_runs.py FOLDER

Prints one JSON object: the hashes of a run that nothing happened to, and of each scenario's run
after its kills and resumes. A child dies by SIGKILL: before or after the k-th call of a function of
the write path, or at the n-th call of any function at all.
"""

import json
import os
import random
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import tiny_models
import torch

from foreword import Backbone, Row, SoftPrompt, TrainConfig, train
from foreword.cli import options
from foreword.cli.progress import run
from foreword.prompt import artifact
from foreword.training import state
from foreword.training.checkpoint import STATE_FILE, read_state

ROWS = [
    Row.from_ids(tiny_models.ids(length, seed=length).tolist(), [5 + length, 7])
    for length in (3, 4, 5, 6, 7, 8, 9)
]
CONFIG = TrainConfig(
    num_virtual_tokens=4, batch_size=4, micro_batch_size=3, num_steps=9, eval_every=3,
    save_every=2, learning_rate=0.05,
)  # fmt: skip
WRITING = {
    "mkstemp": (tempfile, "mkstemp"),
    "state": (state, "save_file"),
    "prompt": (artifact, "save_file"),
    "fsync": (os, "fsync"),
    "replace": (os, "replace"),
}


def die() -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_call(name: str, number: int, is_after: bool) -> None:
    """Die before or after the `number`-th call of a function of the write path."""
    module, attribute = WRITING[name]
    original, calls = getattr(module, attribute), [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == number and not is_after:
            die()
        result = original(*args, **kwargs)
        if calls[0] == number:
            die()
        return result

    setattr(module, attribute, counted)


def die_at_event(number: int) -> None:
    """Die at the `number`-th call or return of any function."""
    count = [0]

    def seen(frame: Any, event: str, argument: Any) -> None:
        count[0] += 1
        if count[0] == number:
            die()

    sys.setprofile(seen)


def live(backbone: Backbone, folder: Path, form: str, death: Any = None) -> bool:
    """Train in a child process, resuming whatever is there; return whether it came to the end."""
    child = os.fork()
    if child == 0:
        options.errors.quiet = True
        config = TrainConfig(**{**CONFIG.__dict__, "form": form})
        events = train(backbone, ROWS, config, validation=ROWS[:3], checkpoint=folder, resume=True)
        if death is not None:
            death()
        run(events, str(folder))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), f"the child ended with {status}"
    return status == 0


def hashes(folder: Path) -> list[str]:
    """Return what a run came to: the best prompt, the newest values and moments, the curves."""
    assert not list(folder.glob(".*")), "a write that was cut off leaves nothing behind"
    stored = read_state(folder / STATE_FILE)
    everything = [value for _, value in sorted((stored.part("now") | stored.part("good")).items())]
    history = stored.history()
    curves = json.dumps([history.losses, history.rates, history.validations])
    return [SoftPrompt.load(folder).content_hash, artifact.content_hash(everything), curves]


def main(folder: Path) -> None:
    """Run every scenario and print what each came to."""
    torch.set_num_threads(1)
    backbone = Backbone(tiny_models.build("llama", dtype=torch.float32))
    backbone.fingerprint()
    chance = random.Random(0)
    deaths: dict[str, list[Any]] = {
        f"{'after' if is_after else 'before'} {name} {number}": [
            lambda n=name, k=number, a=is_after: die_at_call(n, k, a)
        ]
        for name in WRITING
        for number, is_after in ((1, False), (2, True), (3, False))
    }
    for index in range(12):
        # Three lives that end at any moment, then one that is left alone.
        moments = [int(10 ** chance.uniform(2, 4.9)) for _ in range(3)]
        deaths[f"moments {index} {moments}"] = [lambda n=n: die_at_event(n) for n in moments]
    found: dict[str, Any] = {}
    for form in ("embeddings", "key_values"):
        calm = folder / f"calm-{form}"
        assert live(backbone, calm, form)
        found[f"{form}: calm"] = {"hashes": hashes(calm), "num_deaths": 0}
    for index, (name, lives) in enumerate(deaths.items()):
        form = ("embeddings", "key_values")[index % 2]
        place = folder / str(index)
        num_deaths = sum(not live(backbone, place, form, death) for death in lives)
        assert live(backbone, place, form)
        found[f"{form}: {name}"] = {"hashes": hashes(place), "num_deaths": num_deaths}
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
