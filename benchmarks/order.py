"""Whether the rows of a step should be of like length, or drawn at random as they are.

    python benchmarks/order.py [--tasks NAME ...] [--methods NAME ...] [--seeds 0 1]

Steps of rows of like length pad less. For each task, method and seed the loss on validation rows
after the same number of steps, in both orders; test rows are not touched.
"""

import argparse
import random
from collections.abc import Sequence
from typing import Any

from defaults import quiet, start_of
from quality_data import TASKS
from quality_systems import ROWS

from foreword import Backbone, Row, TrainConfig, train
from foreword.data.batches import epoch_order
from foreword.training import run

NUM_SORTED = 50  # batches whose rows are sorted by length together


def by_length(rows: Sequence[Row], batch_size: int, seed: int, epoch: int) -> list[list[Row]]:
    """Return an epoch's batches, each of rows of like length, in random order."""
    chance = random.Random(f"{seed}/{epoch}")
    shuffled, size = chance.sample(rows, len(rows)), NUM_SORTED * batch_size
    batches = []
    for start in range(0, len(rows), size):
        part = sorted(shuffled[start : start + size], key=lambda row: len(row.input_ids))
        batches += [part[cut : cut + batch_size] for cut in range(0, len(part), batch_size)]
    chance.shuffle(batches)
    return batches


def main() -> None:
    """Print a line for each task, method and seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=["home commands", "intents"], choices=TASKS)
    parser.add_argument("--methods", nargs="+", default=["prefix-tuning", "context-tuning"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    quiet()
    backbone = Backbone.load("smollm2-135m")
    for name in arguments.tasks:
        task = TASKS[name]()
        for method in arguments.methods:
            for seed in arguments.seeds:
                config = TrainConfig(
                    **start_of(task, method),
                    batch_size=8,
                    num_steps=arguments.steps,
                    eval_every=0,
                    seed=seed,
                )
                losses = [loss(backbone, task, config, order) for order in (by_length, epoch_order)]
                shown = f"{losses[0]:.3f} by length, {losses[1]:.3f} at random"
                print(f"{name}, {method}, seed {seed}: {shown}", flush=True)


def loss(backbone: Backbone, task: Any, config: TrainConfig, order: Any) -> float:
    """Train with an order of rows; return the loss on validation rows."""
    run.epoch_order = order  # type: ignore[attr-defined]
    rows, held_out = list(task.train), list(task.validation)
    *_, last = train(backbone, rows, config, validation=held_out, encoding_config=ROWS)
    assert last.validation is not None
    return last.validation.loss


if __name__ == "__main__":
    main()
