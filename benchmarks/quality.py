"""Seven real tasks: the bare model, text, PEFT and foreword, over three seeds.

    python benchmarks/quality.py [--tasks NAME ...] [--systems PART ...] [--seeds 0 1 2]
    python benchmarks/quality.py --budgets 20 80 320 [--model BASE] [--seeds 0]
    python docs/make_results.py   # writes docs/results.md from what was measured

One model, one processor thread, the same rows for everybody. Each result is one line of
benchmarks/results/quality.jsonl, of budgets.jsonl where numbers of steps are given, and what is
there is not measured again: a run that is stopped goes on, and lines that are removed are measured
afresh. Validation rows choose instructions and rates, with the first seed and at each budget; test
rows choose nothing. Foreword takes its own rates and chooses nothing.
"""

import argparse
import gc
import time
import warnings
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import stock
import torch
from quality_data import TASKS, Task
from quality_systems import CURVES, ROWS, SYSTEMS, System, Trained
from recorded import FOLDER, measured, name_of, write
from transformers.utils import logging

from foreword import Backbone, Example
from foreword.config import EvalConfig
from foreword.evaluation.evaluation import Subject, evaluate
from foreword.evaluation.metrics import METRICS, Outcome

MODEL = "smollm2-135m"
POINTS, BUDGETS = FOLDER / "quality.jsonl", FOLDER / "budgets.jsonl"
CURVE_TASKS = ("topics", "intents", "question types", "home commands")
CLASSES = ("topics", "intents", "question types", "physics", "sarcasm")  # tasks of labels
NUM_COMPARED = 8  # test rows that stock PEFT answers, too
LEFT_PADDED = 32  # rows of the batches that PEFT pads


def score(
    trained: Trained, task: Task, examples: Sequence[Example], metric: Any, *, chooses: bool = False
) -> tuple[float, list[str]]:
    """Answer examples greedily, or by the likeliest label; return the share that the metric gives,
    and the answers.
    """
    config = EvalConfig(batch_size=16, max_new_tokens=task.max_new_tokens)
    subject = Subject("", trained.prompt, encoding=trained.encoding)
    labels = sorted({row.completion for row in task.train}) if chooses else ()
    result = evaluate(trained.backbone, subject, examples, (metric,), config, choices=labels)
    return result.scores[metric.name].value, [answer.text for answer in result.answers]


def validated(system: System, trained: Trained, task: Task) -> float:
    """Return how well a variant does on validation rows; more is better."""
    if not system.is_seeded:  # text is judged by its answers, as a person would
        return score(trained, task, task.validation, task.metric, chooses=system.chooses)[0]
    first = [Example(e.prompt, e.completion.splitlines()[0]) for e in task.validation]
    return -score(trained, task, first, METRICS["loss"])[0]


def choose(
    backbone: Backbone, task: Task, system: System, seed: int, num_steps: int
) -> tuple[Any, Trained, Any]:
    """Return the variant that validation rows like best, what it made, and all their values."""
    made = {}
    values: dict[Any, float] = {}
    for variant in system.variants:
        made[variant] = system.run(backbone, task, seed, variant, num_steps)
        values[variant] = validated(system, made[variant], task)
        if values[variant] < max(values.values()):
            del made[variant]  # a merged model is large
    best = max(values, key=lambda variant: values[variant])
    return best, made[best], values


def run(
    backbone: Backbone, task: Task, system: System, seed: int, num_steps: int, done: Any
) -> dict[str, Any]:
    """Measure one system on one task with one seed; `done` are its earlier seeds."""
    started = time.process_time()
    first = next(iter(done), None)
    if len(system.variants) > 1 and first is None:
        variant, trained, values = choose(backbone, task, system, seed, num_steps)
    else:
        variant = system.variants[0] if first is None else first["variant"]
        trained, values = system.run(backbone, task, seed, variant, num_steps), {}
    value, answers = score(trained, task, task.test, task.metric, chooses=system.chooses)
    result = {
        "task": task.name, "system": system.name, "seed": seed, "variant": variant,
        "validation": values, "score": value, "seconds": round(trained.seconds, 1),
        "parameters": trained.num_parameters, "bytes": trained.num_bytes,
    }  # fmt: skip
    if trained.peft is not None:
        result |= compared(trained, task, answers, system.is_padded and seed == 0)
    return result | {"whole_seconds": round(time.process_time() - started, 1)}


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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, help="default: all; four of budgets")
    parser.add_argument("--systems", nargs="+", default=[""], help="parts of their names")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 0 1 2; of budgets: 0")
    parser.add_argument("--budgets", nargs="+", type=int, help="steps, instead of the table's own")
    parser.add_argument("--model", default=MODEL, help="of budgets")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    points(arguments) if arguments.budgets is None else curves(arguments)


def points(arguments: Any) -> None:
    """Measure the table: every system at its own number of steps."""
    systems = chosen(SYSTEMS, arguments)
    wanted = [
        (seed, name, system)
        for seed in arguments.seeds or (0, 1, 2)
        for name in arguments.tasks or TASKS
        for system in systems
        if (system.is_seeded or not seed) and (name in CLASSES or not system.chooses)
    ]
    done = {(d["seed"], d["task"], d["system"]) for d in measured(POINTS)}
    missing = [(*rest, system) for *rest, system in wanted if (*rest, system.name) not in done]
    say(len(wanted), len(missing), POINTS)
    for seed, name, system in missing:
        earlier = [d for d in measured(POINTS) if (d["task"], d["system"]) == (name, system.name)]
        result = run(base(MODEL), task_of(name), system, seed, system.num_steps, earlier)
        write(POINTS, result)
        gc.collect()


def curves(arguments: Any) -> None:
    """Measure scores against processor seconds: some systems at several numbers of steps."""
    systems = chosen([s for s in SYSTEMS if s.name in CURVES], arguments)
    model = name_of(arguments.model)
    fields = ("model", "task", "system", "steps", "seed")
    wanted = [
        (model, name, system, num_steps, seed)
        for seed in arguments.seeds or (0,)
        for num_steps in arguments.budgets
        for name in arguments.tasks or CURVE_TASKS
        for system in systems
    ]
    done = {tuple(d[field] for field in fields) for d in measured(BUDGETS)}
    missing = [w for w in wanted if (*w[:2], w[2].name, *w[3:]) not in done]
    say(len(wanted), len(missing), BUDGETS)
    for _, name, system, num_steps, seed in missing:
        key = [model, name, system.name, num_steps]
        earlier = [d for d in measured(BUDGETS) if [d[field] for field in fields[:4]] == key]
        result = run(base(arguments.model), task_of(name), system, seed, num_steps, earlier)
        write(BUDGETS, {"model": model, "steps": num_steps} | result)
        gc.collect()


def chosen(systems: Iterable[System], arguments: Any) -> list[System]:
    """Return the systems that are asked for."""
    return [s for s in systems if any(part in s.name for part in arguments.systems)]


def say(num_wanted: int, num_missing: int, file: Path) -> None:
    """Say what is there already."""
    place = f"benchmarks/results/{file.name}"
    print(
        f"{num_wanted - num_missing} of {num_wanted} results are in {place}"
        + ("; remove their lines to measure them afresh" if not num_missing else ""),
        flush=True,
    )


@cache
def base(model: str) -> Backbone:
    """Return the frozen model."""
    return Backbone.load(model)


@cache
def task_of(name: str) -> Task:
    """Return a task's rows."""
    return TASKS[name]()


if __name__ == "__main__":
    main()
