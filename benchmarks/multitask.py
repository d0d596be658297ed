"""One multitask run on three tasks, beside three runs of prompt tuning on one task each.

    python benchmarks/multitask.py [--model smollm2-135m] [--steps 20] [--rates 5e-3 1.5e-2 5e-2]

Everybody takes `steps` times 8 rows of each task: a multitask run takes three times the steps, over
mixed rows. Loss on each task's validation rows; test rows are not touched.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from defaults import judged, quiet
from quality_data import TASKS, Task
from quality_systems import ROWS

from foreword import Backbone, SoftPrompt, TrainConfig, train

NAMES = ("topics", "intents", "question types")
TEXT = "Read the text and answer with the one label that fits it, and nothing else."


def main() -> None:
    """Print a line for each way and rate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rates", nargs="+", type=float, default=[5e-3, 1.5e-2, 5e-2])
    arguments = parser.parse_args()
    quiet()
    backbone = Backbone.load(arguments.model)
    tasks = {name: TASKS[name]() for name in NAMES}
    alone = {
        name: trained(backbone, {name: task}, "prompt-tuning", None, arguments.steps)[""]
        for name, task in tasks.items()
    }
    show("prompt-tuning on each alone", backbone, tasks, alone)
    for rate in arguments.rates:
        num_steps = len(tasks) * arguments.steps
        found = trained(backbone, tasks, "multitask", rate, num_steps)
        show(f"multitask {rate:g}", backbone, tasks, found)


def trained(
    backbone: Backbone,
    tasks: Mapping[str, Task],
    method: Any,
    rate: float | None,
    num_steps: int,
) -> Mapping[str, SoftPrompt]:
    """Train on as many rows of each task as 8 a step come to; return each task's prompt, or ""."""
    count = num_steps * 8 // len(tasks)
    rows = [replace(e, task=name) for name, task in tasks.items() for e in task.train[:count]]
    config = TrainConfig(
        method=method, learning_rate=rate, init_text=TEXT, num_virtual_tokens=32, batch_size=8,
        num_steps=num_steps, eval_every=0,
    )  # fmt: skip
    *_, last = train(backbone, rows, config, encoding_config=ROWS)
    assert last.prompt is not None
    return last.task_prompts or {"": last.prompt}


def show(
    label: str,
    backbone: Backbone,
    tasks: Mapping[str, Task],
    prompts: Mapping[str, SoftPrompt],
) -> None:
    """Print loss and score on every task's validation rows."""
    cells = []
    for name, task in tasks.items():
        loss, score = judged(backbone, prompts[name], task)
        cells.append(f"{name} {loss:.3f} ({score:.0%})")
    print(f"{label}: {', '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
