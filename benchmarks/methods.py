"""Every method at a few rates for a few steps: the loss that each comes to on held-out rows.

    python benchmarks/methods.py [STEPS]

Home commands on the embedded model, one seed, one line for each run.
"""

import sys
import time
from typing import Any

import torch
from quality_systems import ROWS
from transformers.utils import logging

from foreword import Backbone, Example, TrainConfig, train
from foreword.demo.home_commands import FEW_INTENTS, Command, home_commands

TEXT = "Turn a home command into a JSON call with intent and slots."
RATES = {
    "prompt-tuning": (5e-3,),
    "p-tuning": (3e-4, 1e-3, 3e-3),
    "residual": (5e-3, 1.5e-2),
    "prefix-tuning": (3e-2,),
    "prefix-projection": (3e-4, 1e-3, 3e-3),
    "context-tuning": (1e-3, 1e-2, 3e-2),
}


def examples(commands: tuple[Command, ...]) -> list[Example]:
    """Return commands as rows."""
    return [Example(command.text, command.call) for command in commands]


def main(num_steps: int = 20) -> None:
    """Train every method at every rate."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    commands = home_commands(600, 24, 10, intents=FEW_INTENTS)
    backbone = Backbone.load("smollm2-135m")
    for method, rates in RATES.items():
        start: dict[str, Any] = {"init_text": TEXT, "num_virtual_tokens": 32}
        if method == "context-tuning":
            start = {"num_virtual_tokens": 96}
        for rate in rates:
            config = TrainConfig(
                method=method,  # type: ignore[arg-type]
                learning_rate=rate,
                batch_size=8,
                num_steps=num_steps,
                eval_every=0,
                **start,
            )
            started = time.perf_counter()
            rows, held_out = examples(commands.train), examples(commands.validation)
            *_, last = train(backbone, rows, config, validation=held_out, encoding_config=ROWS)
            assert last.validation is not None
            seconds = time.perf_counter() - started
            print(
                f"{method} {rate:g}: loss {last.validation.loss:.3f}, {seconds:.0f} s", flush=True
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
