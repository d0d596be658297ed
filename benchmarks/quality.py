"""Seven real tasks: the bare model, text, PEFT and foreword, over three seeds.

    python benchmarks/quality.py [--tasks NAME ...] [--systems PART ...] [--seeds 0 1 2]
    python docs/make_results.py   # writes docs/results.md from what was measured

One model, one processor thread, the same rows for everybody. Each result is one line of
benchmarks/results/quality.jsonl, and what is there is not measured again: a run that is stopped
goes on. Validation rows choose instructions and rates, with the first seed; test rows choose
nothing. Foreword takes its own rates and chooses nothing.
"""

import argparse
import gc
import json
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import stock
import torch
from quality_data import TASKS, Task
from quality_systems import ROWS, SYSTEMS, System, Trained
from transformers.utils import logging

from foreword import Backbone, Example
from foreword.config import EvalConfig
from foreword.evaluation.evaluation import Subject, evaluate
from foreword.evaluation.metrics import METRICS, Outcome

MODEL = "smollm2-135m"
RESULTS = Path(__file__).parent / "results" / "quality.jsonl"
NUM_COMPARED = 8  # test rows that stock PEFT answers, too
LEFT_PADDED = 32  # rows of the batches that PEFT pads


def measured() -> list[dict[str, Any]]:
    """Return every result so far."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return [json.loads(line) for line in lines]


def write(result: dict[str, Any]) -> None:
    """Add one result, in one write."""
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(result) + "\n")
    print(json.dumps(result), flush=True)


def score(
    trained: Trained, task: Task, examples: Sequence[Example], metric: Any
) -> tuple[float, list[str]]:
    """Answer examples greedily; return the share that the metric gives, and the answers."""
    config = EvalConfig(batch_size=16, max_new_tokens=task.max_new_tokens)
    subject = Subject("", trained.prompt, encoding=trained.encoding)
    result = evaluate(trained.backbone, subject, examples, (metric,), config)
    return result.scores[metric.name].value, [answer.text for answer in result.answers]


def validated(system: System, trained: Trained, task: Task) -> float:
    """Return how well a variant does on validation rows; more is better."""
    if not system.is_seeded:  # text is judged by its answers, as a person would
        return score(trained, task, task.validation, task.metric)[0]
    first = [Example(e.prompt, e.completion.splitlines()[0]) for e in task.validation]
    return -score(trained, task, first, METRICS["loss"])[0]


def choose(backbone: Backbone, task: Task, system: System, seed: int) -> tuple[Any, Trained, Any]:
    """Return the variant that validation rows like best, what it made, and all their values."""
    made = {}
    values: dict[Any, float] = {}
    for variant in system.variants:
        made[variant] = system.run(backbone, task, seed, variant)
        values[variant] = validated(system, made[variant], task)
        if values[variant] < max(values.values()):
            del made[variant]  # a merged model is large
    best = max(values, key=lambda variant: values[variant])
    return best, made[best], values


def run(backbone: Backbone, task: Task, system: System, seed: int, done: Any) -> None:
    """Measure one system on one task with one seed."""
    started = time.process_time()
    first = next((d for d in done if d["task"] == task.name and d["system"] == system.name), None)
    if len(system.variants) > 1 and first is None:
        variant, trained, values = choose(backbone, task, system, seed)
    else:
        variant = system.variants[0] if first is None else first["variant"]
        trained, values = system.run(backbone, task, seed, variant), {}
    value, answers = score(trained, task, task.test, task.metric)
    result = {
        "task": task.name, "system": system.name, "seed": seed, "variant": variant,
        "validation": values, "score": value, "seconds": round(trained.seconds, 1),
        "parameters": trained.num_parameters, "bytes": trained.num_bytes,
    }  # fmt: skip
    if trained.peft is not None:
        result |= compared(trained, task, answers, system.is_padded and seed == 0)
    write(result | {"whole_seconds": round(time.process_time() - started, 1)})


def compared(trained: Trained, task: Task, answers: list[str], is_padded: bool) -> dict[str, Any]:
    """Let stock PEFT answer: some rows one by one, to see the same answers, and all rows in
    batches padded on the left.
    """
    texts = [str(example.prompt) for example in task.test]

    def ask(part: list[str], size: int) -> Any:
        return stock.answers(trained.backbone, trained.peft, part, ROWS, size, task.max_new_tokens)

    alone = ask(texts[:NUM_COMPARED], 1)
    same = sum(a == b for a, b in zip(alone, answers, strict=False))
    found: dict[str, Any] = {"same_as_stock": f"{same}/{NUM_COMPARED}"}
    if is_padded:
        padded = list(ask(texts, LEFT_PADDED))
        scores = [
            float(task.metric.of_row(Outcome(example.completion, answer)))  # type: ignore[misc]
            for answer, example in zip(padded, task.test, strict=True)
        ]
        found["left_padded_score"] = sum(scores) / len(scores)
    return found


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--systems", nargs="+", default=[""], help="parts of their names")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    backbone = Backbone.load(MODEL)
    systems = [s for s in SYSTEMS if any(part in s.name for part in arguments.systems)]
    for seed in arguments.seeds:
        for name in arguments.tasks:
            task = TASKS[name]()
            for system in systems:
                done = measured()
                keys = {(d["task"], d["system"], d["seed"]) for d in done}
                if (name, system.name, seed) in keys or (seed and not system.is_seeded):
                    continue
                run(backbone, task, system, seed, done)
                gc.collect()


if __name__ == "__main__":
    main()
