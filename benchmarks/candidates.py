"""What might make the default better: one change at a time, judged by validation rows.

    python benchmarks/candidates.py [--tasks NAME ...] [--changes PART ...] [--seeds 0] [--steps 80]
                                    [--model BASE]

Each result is one line of benchmarks/results/candidates.jsonl, and what is there is not measured
again. Everything trains on the same rows in the same order with foreword's default, but for its one
change. The validation rows are 150 that nobody trains on; those of home commands are of sentence
templates that are not in training. Test rows are not touched.
"""

import argparse
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from defaults import quiet
from quality import CURVE_TASKS, MODEL
from quality_data import TASKS, Task
from quality_systems import ROWS
from recorded import FOLDER, measured, name_of, write

from foreword import Backbone, Example, SoftPrompt, TrainConfig, train
from foreword.config import DistillConfig, EvalConfig, MethodName
from foreword.data.encoding import encode_examples
from foreword.data.target import certain
from foreword.demo.home_commands import FEW_INTENTS, home_commands
from foreword.distillation.starts import start_of
from foreword.distillation.unrelated import written_rows
from foreword.evaluation.evaluation import Subject, evaluate
from foreword.evaluation.metrics import METRICS
from foreword.training.methods.context import Context
from foreword.training.state import TrainState

RESULTS = FOLDER / "candidates.jsonl"
NUM_VALIDATION, BATCH_SIZE, MAX_LENGTH = 150, 8, 2048
NUM_VIRTUAL = 96  # what a change is laid beside; 192 have become the default since
Trained = Callable[[Backbone, Sequence[Example], TrainConfig], SoftPrompt]


def plain(backbone: Backbone, rows: Sequence[Any], config: TrainConfig) -> SoftPrompt:
    """Train as foreword does by itself."""
    *_, last = train(backbone, list(rows), config, encoding_config=ROWS)
    return last.prompt  # type: ignore[return-value]


def wide(num_virtual: int, run: Trained = plain) -> Trained:
    """Start from more demonstrations."""
    return lambda backbone, rows, config: run(
        backbone, rows, replace(config, num_virtual_tokens=num_virtual)
    )


def at_rate(rate: float) -> Trained:
    """Train 192 virtual tokens at another rate than 3e-2."""
    return wide(
        192,
        lambda backbone, rows, config: plain(backbone, rows, replace(config, learning_rate=rate)),
    )


def covering(backbone: Backbone, rows: Sequence[Example], config: TrainConfig) -> SoftPrompt:
    """Start from rows whose answers hold as many different tokens as fit, not from the first."""
    encoded, _ = encode_examples(list(rows), backbone.tokenizer, ROWS, MAX_LENGTH)
    seen, left, chosen = set[int](), config.num_virtual, list[int]()
    while True:
        gains = {
            index: len({*row.input_ids[-row.num_labels :]} - seen) / len(row.input_ids)
            for index, row in enumerate(encoded)
            if len(row.input_ids) <= left and index not in chosen
        }
        if not gains:
            break
        best = max(gains, key=lambda index: gains[index])
        seen |= {*encoded[best].input_ids[-encoded[best].num_labels :]}
        left -= len(encoded[best].input_ids)
        chosen.append(best)
    rest = [row for index, row in enumerate(rows) if index not in chosen]
    return plain(backbone, [*(rows[index] for index in chosen), *rest], config)


def matched(backbone: Backbone, rows: Sequence[Example], config: TrainConfig) -> SoftPrompt:
    """Start from eight times as many demonstrations, by attention matching; they do not train."""
    encoded, _ = encode_examples(list(rows), backbone.tokenizer, ROWS, MAX_LENGTH)
    ids, count = list[int](), 0
    while len(ids) + len(encoded[count].input_ids) <= 8 * NUM_VIRTUAL:
        ids += encoded[count].input_ids
        count += 1
    text = SoftPrompt.from_embeddings(backbone.embed(torch.tensor(ids)))
    rest = encoded[count:]
    start = start_of(backbone, text, NUM_VIRTUAL, "attention", rest)
    *_, last = train(backbone, rest, config, initial=start)
    return last.prompt  # type: ignore[return-value]


def leaving_out(backbone: Backbone, rows: Sequence[Example], config: TrainConfig) -> SoftPrompt:
    """Add each question once more without a tenth of its words: wordings that nobody wrote."""
    chance = random.Random(config.seed)
    shorter = []
    for row in rows:
        words = str(row.prompt).split(" ")
        kept = [word for word in words if chance.random() >= 0.1] or words
        shorter.append(Example(" ".join(kept), row.completion))
    return plain(backbone, [*rows, *shorter], config)


def averaged(backbone: Backbone, rows: Sequence[Example], config: TrainConfig) -> SoftPrompt:
    """Take the mean of the prompts after each of the last fifth of the steps."""
    config = replace(config, eval_every=1)
    events = train(backbone, list(rows), config, encoding_config=ROWS)
    count, total = config.num_steps // 5, None  # type: ignore[operator]
    for event in events:
        if event.step > event.num_steps - count:
            assert event.prompt is not None
            parts = [tensor.detach().clone() for tensor in event.prompt.tensors]
            total = parts if total is None else [a + b for a, b in zip(total, parts, strict=True)]
            last = event.prompt
    return last.replaced([tensor / count for tensor in total])  # type: ignore[union-attr]


def unrelated(backbone: Backbone, rows: Sequence[Example], config: TrainConfig) -> SoftPrompt:
    """Let one row in nine be text at which the prompt is to change nothing."""
    encoded, _ = encode_examples(list(rows), backbone.tokenizer, ROWS, MAX_LENGTH)
    written = written_rows(backbone, 60, DistillConfig(), config.seed)
    repeated = [written[index % 60] for index in range(len(rows) // BATCH_SIZE)]
    told = [replace(row, target=certain(row.input_ids[-row.num_labels :])) for row in encoded]
    return plain(backbone, [*told, *repeated], replace(config, batch_size=BATCH_SIZE + 1))


def hiding(draw: Callable[[Context, random.Random], set[int]]) -> Trained:
    """Hide virtual tokens that are drawn for each row and step from that row."""

    def run(backbone: Backbone, rows: Sequence[Example], config: TrainConfig) -> SoftPrompt:
        own, chance = Context.unseen, random.Random(config.seed)

        def unseen(self: Context, batch: Any) -> Any:
            found = own(self, batch)
            if found is None:
                found = torch.zeros(len(batch.input_ids), self.shape["num_virtual_tokens"]).bool()
            for row in found:
                row[[*draw(self, chance)]] = True
            return found

        with patch.object(Context, "unseen", unseen):
            return plain(backbone, rows, config)

    return run


KEYS, VALUES = 2.13, 0.69  # root mean squares of SmolLM2-135M's, the median of its layers


def scaled(backbone: Backbone, rows: Sequence[Example], config: TrainConfig) -> SoftPrompt:
    """Train each layer's keys, and its values, at a rate that is a share of their own scale."""
    seen = set[int]()

    def set_rate(self: TrainState, rate: float) -> None:
        if id(self) not in seen:
            seen.add(id(self))
            (group,) = self.optimizer.param_groups
            self.optimizer.param_groups = [
                {**group, "params": [tensor], "share": tensor.detach().pow(2).mean().sqrt().item()}
                for tensor in group["params"]
            ]
        for index, group in enumerate(self.optimizer.param_groups):
            group["lr"] = rate * group["share"] / (VALUES if index % 2 else KEYS)

    with patch.object(TrainState, "set_rate", set_rate):
        return plain(backbone, rows, config)


def tokens(share: float) -> Callable[[Context, random.Random], set[int]]:
    """Draw tokens one by one, never the first."""

    def draw(method: Context, chance: random.Random) -> set[int]:
        return {
            slot for slot in range(1, method.shape["num_virtual_tokens"]) if chance.random() < share
        }

    return draw


def whole_rows(share: float) -> Callable[[Context, random.Random], set[int]]:
    """Draw whole demonstrations, never the first token."""

    def draw(method: Context, chance: random.Random) -> set[int]:
        drawn = [slots for slots in method.own.values() if chance.random() < share]
        return {slot for slots in drawn for slot in slots if slot}

    return draw


CHANGES: dict[str, Trained] = {
    "none": plain,
    "covering demonstrations": covering,
    "192 virtual tokens": wide(192),
    "384 virtual tokens": wide(384),
    "192 virtual tokens at a rate of 1.5e-2": at_rate(1.5e-2),
    "192 virtual tokens at a rate of 6e-2": at_rate(6e-2),
    "192 virtual tokens, covering demonstrations": wide(192, covering),
    "192 tokens, each layer's rate by its scale": wide(192, scaled),
    "8 times the demonstrations, matched": matched,
    "questions with words left out": leaving_out,
    "dropout of tokens, 0.05": hiding(tokens(0.05)),
    "dropout of tokens, 0.1": hiding(tokens(0.1)),
    "dropout of demonstrations, 0.2": hiding(whole_rows(0.2)),
    "mean of the last fifth of the steps": averaged,
    "unrelated text as the bare model": unrelated,
    "prefix tuning from a text": plain,
    "prefix tuning from a text, the first token kept": plain,
}
# Beside each other, with 32 tokens; context tuning that starts from a text hides nothing, and keeps
# the first token.
FROM_TEXT: dict[str, MethodName] = {
    "prefix tuning from a text": "prefix-tuning",
    "prefix tuning from a text, the first token kept": "context-tuning",
}


@cache
def rows_of(name: str) -> tuple[Task, tuple[Example, ...], tuple[Example, ...]]:
    """Return a task, the rows that train, and the rows that judge."""
    task = TASKS[name]()
    if name == "home commands":
        found = home_commands(1200, NUM_VALIDATION, 0, intents=FEW_INTENTS)
        held_out = tuple(Example(one.text, one.call) for one in found.validation)
        return task, task.train, held_out
    count = NUM_VALIDATION - len(task.validation)
    return task, task.train[:-count], (*task.validation, *task.train[-count:])


def run(backbone: Backbone, name: str, change: str, num_steps: int, seed: int) -> dict[str, Any]:
    """Train with one change; return what it came to."""
    task, rows, held_out = rows_of(name)
    config = TrainConfig(
        method="context-tuning", num_virtual_tokens=NUM_VIRTUAL, batch_size=BATCH_SIZE,
        num_steps=num_steps, eval_every=0, seed=seed,
    )  # fmt: skip
    if change in FROM_TEXT:
        text, method = task.instructions[0], FROM_TEXT[change]
        config = replace(config, method=method, init_text=text, num_virtual_tokens=32)
    started = time.process_time()
    prompt = CHANGES[change](backbone, rows, config)
    seconds = time.process_time() - started
    asked = EvalConfig(batch_size=16, max_new_tokens=task.max_new_tokens)
    metrics = (METRICS["loss"], task.metric)
    found = evaluate(backbone, Subject("", prompt, encoding=ROWS), held_out, metrics, asked)
    loss, score = (found.scores[metric.name].value for metric in metrics)
    return {
        "task": name, "change": change, "steps": num_steps, "seed": seed,
        "loss": loss, "score": score, "seconds": round(seconds, 1),
    }  # fmt: skip


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", default=CURVE_TASKS, choices=TASKS)
    parser.add_argument("--changes", nargs="+", default=[""], help="parts of their names")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", nargs="+", type=int, default=[80])
    parser.add_argument("--model", default=MODEL)
    arguments = parser.parse_args()
    quiet()
    backbone = Backbone.load(arguments.model)
    model = name_of(arguments.model)
    fields = ("model", "task", "change", "steps", "seed")
    for seed in arguments.seeds:
        for num_steps in arguments.steps:
            for change in CHANGES:
                for name in arguments.tasks:
                    is_wanted = any(part in change for part in arguments.changes)
                    known = [
                        tuple(({"model": MODEL} | one)[field] for field in fields)
                        for one in measured(RESULTS)
                    ]
                    if is_wanted and (model, name, change, num_steps, seed) not in known:
                        result = run(backbone, name, change, num_steps, seed)
                        write(RESULTS, {"model": model} | result)


if __name__ == "__main__":
    main()
