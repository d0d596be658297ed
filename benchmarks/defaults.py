"""Which method and which start should be the default: the same jobs on several models.

    python benchmarks/defaults.py [MODEL ...] [--tasks NAME ...] [--steps 40]

For each model and task, every method at its own rate: loss and score on validation rows, seconds of
training. Test rows are not touched.
"""

import argparse
import time
import warnings
from typing import Any

import torch
from quality_data import TASKS, Task
from quality_systems import ROWS
from transformers.utils import logging

from foreword import Backbone, SoftPrompt, TrainConfig, train
from foreword.config import NUM_DEMONSTRATED, EvalConfig
from foreword.evaluation.evaluation import Subject, evaluate
from foreword.evaluation.metrics import METRICS


def starts(task: Task) -> dict[str, dict[str, Any]]:
    """Return what is compared, by name."""
    text = task.instructions[0]
    return {
        "prompt-tuning from a sentence": {"method": "prompt-tuning", "init_text": text},
        "prefix-tuning from a sentence": {"method": "prefix-tuning", "init_text": text},
        "prefix-tuning from vocabulary": {"method": "prefix-tuning", "init": "vocabulary"},
        "context-tuning from rows": {
            "method": "context-tuning",
            "num_virtual_tokens": NUM_DEMONSTRATED,
        },
    }


def start_of(task: Task, method: str) -> dict[str, Any]:
    """Return a method's first start."""
    return next(start for start in starts(task).values() if start["method"] == method)


def quiet() -> None:
    """Take one thread, and let nobody but the benchmark speak."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")


def main() -> None:
    """Print one line for each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["smollm2-135m"])
    parser.add_argument("--tasks", nargs="+", default=["topics", "intents"], choices=TASKS)
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    quiet()
    for model in arguments.models:
        backbone = Backbone.load(model)
        for name in arguments.tasks:
            task = TASKS[name]()
            print(f"\n{backbone.capabilities.model_type}, {name}", flush=True)
            for label, start in starts(task).items():
                print(f"  {label}: {trained(backbone, task, start, arguments.steps)}", flush=True)


def trained(backbone: Backbone, task: Task, start: dict[str, Any], num_steps: int) -> str:
    """Train from one start; say what it came to."""
    config = TrainConfig(**start, batch_size=8, num_steps=num_steps, eval_every=0)
    started = time.process_time()
    *_, last = train(backbone, list(task.train), config, encoding_config=ROWS)
    seconds = time.process_time() - started
    loss, score = judged(backbone, last.prompt, task)
    return f"loss {loss:.3f}, {100 * score:.1f} %, {seconds:.0f} s"


def judged(backbone: Backbone, prompt: SoftPrompt | None, task: Task) -> tuple[float, float]:
    """Return a prompt's loss and score on validation rows."""
    metrics = (METRICS["loss"], task.metric)
    asked = EvalConfig(batch_size=16, max_new_tokens=task.max_new_tokens)
    found = evaluate(backbone, Subject("", prompt), list(task.validation), metrics, asked)
    return found.scores["loss"].value, found.scores[task.metric.name].value


if __name__ == "__main__":
    main()
