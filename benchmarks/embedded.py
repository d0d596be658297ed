"""Keys and values that become embeddings: what the change of form loses, for how many tokens.

    python benchmarks/embedded.py [--model smollm2-135m] [--task cards] [--size 32] [--sizes 32 64]
        [--queries 96] [--steps 60 120] [--seed 0]

One processor thread. A context is distilled into keys and values of --size virtual tokens, with
--queries and the first of --steps; that prompt then teaches embeddings of each of --sizes, by the
same queries. Agreement, exact answers and divergence are counted on test queries, which nobody
trains on, beside the prompt of keys and values; the score is the task's own. Prints a JSON line for
each.
"""

import argparse
import json
import time
import warnings
from typing import Any

import torch
from distill import BATCH, asked, base
from distill_data import CONTEXTS, Distilled
from transformers.utils import logging

from foreword import Backbone, SoftPrompt, TrainConfig, chat
from foreword.config import DistillConfig
from foreword.distillation import distill
from foreword.distillation.rows import taught_row
from foreword.distillation.teacher import teach
from foreword.training.validation import score_rows


def trained(
    backbone: Backbone, lesson: distill.Lesson, num_steps: int, seed: int, rate: float | None
) -> SoftPrompt:
    """Train a lesson to its end, at a rate or at the method's own."""
    config = TrainConfig(
        learning_rate=rate, batch_size=BATCH, num_steps=num_steps, eval_every=0, seed=seed
    )
    *_, last = distill.distill(backbone, lesson, config)
    assert last.prompt is not None
    return last.prompt


def said(backbone: Backbone, task: Distilled, teacher: SoftPrompt, prompt: SoftPrompt | None,
         encoding: Any) -> dict[str, float]:  # fmt: skip
    """Return how close a prompt comes to its teacher on test queries, and its score."""
    queries = asked([query for query, _ in task.test])
    config = DistillConfig(answer_tokens=task.max_new_tokens)
    taught = list(teach(backbone, teacher, queries, config))
    rows = [
        taught_row(backbone, query, one, encoding, "test")
        for query, one in zip(queries, taught, strict=True)
    ]
    found = score_rows(backbone, prompt, rows).whole()
    answers = chat.answers(
        backbone, prompt, queries, encoding, batch_size=16, max_new_tokens=task.max_new_tokens
    )
    scores = [
        task.score(answer.text, expected)
        for answer, (_, expected) in zip(answers, task.test, strict=True)
    ]
    return {
        "agreement": found.agreement, "exact": found.exact, "divergence": found.loss,
        "score": sum(scores) / len(scores),
    }  # fmt: skip


def main() -> None:
    """Measure, and print a line for each prompt."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--task", default="cards", choices=CONTEXTS)
    parser.add_argument("--size", type=int, default=32, help="of the keys and values")
    parser.add_argument("--sizes", nargs="+", type=int, default=[32, 64])
    parser.add_argument("--queries", type=int, default=96)
    parser.add_argument("--steps", nargs=2, type=int, default=[60, 120])
    parser.add_argument("--rate", type=float, default=None, help="of the embeddings")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    backbone, task = base(given.model), CONTEXTS[given.task]()
    queries = asked(task.train[: given.queries])
    config = DistillConfig(answer_tokens=task.max_new_tokens)

    def show(name: str, num_virtual: int, started: float, found: dict[str, float]) -> None:
        rounded = {key: round(value, 4) for key, value in found.items()}
        seconds = round(time.process_time() - started, 1)
        line = {"prompt": name, "size": num_virtual, "seconds": seconds, **rounded}
        print(json.dumps(line), flush=True)

    started = time.process_time()
    lesson = distill.prepare(
        backbone, list(task.context), queries, given.size, config, seed=given.seed
    )
    cached = trained(backbone, lesson, given.steps[0], given.seed, 2e-2)
    show("keys and values", given.size, started,
         said(backbone, task, cached, cached, lesson.encoding))  # fmt: skip
    show("bare model", 0, time.process_time(),
         said(backbone, task, cached, None, chat.encoding_of(None)))  # fmt: skip
    for size in given.sizes:
        started = time.process_time()
        lesson = distill.prepare(
            backbone, cached, queries, size, config, form="embeddings", seed=given.seed
        )
        before = said(backbone, task, cached, lesson.start, lesson.encoding)
        show("embeddings, untrained", size, started, before)
        embedded = trained(backbone, lesson, given.steps[1], given.seed, given.rate)
        show("embeddings", size, started, said(backbone, task, cached, embedded, lesson.encoding))


if __name__ == "__main__":
    main()
