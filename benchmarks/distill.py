"""A context of some hundred tokens as a small prompt: what is lost, and at what cost.

    python benchmarks/distill.py [--model smollm2-135m] [--tasks NAME ...] [--systems PART ...]
        [--sizes 32 64] [--seeds 0] [--queries 240] [--steps 160]
    python benchmarks/distill.py --first-token [--model ...] [--tasks ...] [--sizes ...]
    python docs/make_distill.py   # writes docs/results-distill.md from what was measured

One processor thread. Each result is one line of benchmarks/results/distill.jsonl, and what is there
is not measured again: a run that is stopped goes on. The teacher's answers to the test queries are
what agreement is counted against; test queries are trained on by nobody. Seconds are those of the
processor: of the teacher's answers to the training queries, and of what comes after them.
"""

import argparse
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from distill_data import CONTEXTS, Distilled
from distill_peft import cartridge
from recorded import FOLDER, measured, write
from transformers.utils import logging

from foreword import Backbone, SoftPrompt, chat
from foreword.config import DistillConfig, TrainConfig
from foreword.distillation import distill
from foreword.distillation.agreement import first_tokens
from foreword.distillation.rows import taught_row
from foreword.distillation.teacher import teach
from foreword.distillation.unrelated import told_rows
from foreword.loading.hub import cache_folder
from foreword.named_text import text_prompt
from foreword.training.loop import train
from foreword.training.validation import score_rows

RESULTS, FIRST_TOKENS = FOLDER / "distill.jsonl", FOLDER / "distill-first-token.jsonl"
RATE, BATCH = 5e-3, 8
WHOLE, BARE, OURS = "whole context", "bare model", "divergence (default)"
START = "one start token"
"""What any prefix does: unrelated text no longer begins at nothing."""
UNTRAINED: dict[str, dict[str, Any]] = {
    "first P tokens, untrained": "first",
    "tokens at even distances, untrained": "even",
    "attention matching, untrained": "attention",
    "sampled vocabulary, untrained": "vocabulary",
}
TRAINED: dict[str, dict[str, Any]] = {
    OURS: {},
    "divergence from the first P tokens": {"start": "first"},
    "own last tenth (on-policy)": {"on_policy": 0.1},
    "divergence and answers, half each": {"answer_weight": 0.5},
    "hard labels": {},
}
PEFT = "PEFT CARTRIDGE example, as many seconds"
SYSTEMS = (WHOLE, BARE, START, *UNTRAINED, *TRAINED, PEFT)


PLAIN_TURNS = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}"
    "Answer:\n{{ message.content }}{{ eos_token }}{% else %}"
    "{{ message.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Answer:\n{% endif %}"
)
"""How turns are written for a base that has no chat template; a blank line ends each answer."""


@cache
def base(model: str) -> Backbone:
    """Return the frozen model."""
    backbone = Backbone.load(model)
    if backbone.tokenizer.chat_template is None:
        backbone.tokenizer.chat_template = PLAIN_TURNS
        backbone.tokenizer.eos_token = "\n\n"
    return backbone


def asked(queries: Sequence[str]) -> list[Any]:
    """Return queries as turns."""
    return [[{"role": "user", "content": query}] for query in queries]


def lesson_of(arguments: Any, task: Distilled, size: int, seed: int, **options: Any) -> Any:
    """Return what is taught, and the processor seconds that the teacher took.

    The teacher's answers are kept and asked for once; what they took then counts each time.
    """
    folder = cache_folder() / "data" / "learned" / named(arguments.model) / arguments.task
    cost = folder / f"seconds-{arguments.queries}"
    started = answered = time.process_time()

    def on_answer() -> None:
        nonlocal answered
        answered = time.process_time()

    config = DistillConfig(answer_tokens=task.max_new_tokens, **options)
    queries = asked(task.train[: arguments.queries])
    found = distill.prepare(
        base(arguments.model), list(task.context), queries, size, config,
        seed=seed, folder=folder, on_answer=on_answer,
    )  # fmt: skip
    seconds = time.process_time() - started
    if not cost.exists():
        cost.write_text(str(answered - started), encoding="utf-8")
        return found, seconds
    return found, seconds - (answered - started) + float(cost.read_text(encoding="utf-8"))


def made(arguments: Any, task: Distilled, system: str, size: int, seed: int) -> dict[str, Any]:
    """Return the prompt that a system makes, how rows stand behind it, and what it cost."""
    backbone = base(arguments.model)
    text = text_prompt(backbone, list(task.context))
    if system in (WHOLE, BARE):
        prompt = text if system == WHOLE else None
        return {"prompt": prompt, "encoding": chat.encoding_of(prompt)}
    if system == START:
        ids = torch.tensor([backbone.tokenizer.bos_token_id])
        return {
            "prompt": SoftPrompt.from_embeddings(backbone.embed(ids)),
            "encoding": chat.encoding_of(None),
        }
    options: dict[str, Any] = TRAINED.get(system, {"start": UNTRAINED.get(system, "first")})
    lesson, teaching = lesson_of(arguments, task, size, seed, **options)
    found = {"encoding": lesson.encoding, "teacher_seconds": teaching}
    if system in UNTRAINED:
        return found | {"prompt": lesson.start}
    started = time.process_time()
    if system == PEFT:
        done = [d for d in measured(RESULTS) if (d["system"], d["size"]) == (OURS, size)]
        own = (named(arguments.model), arguments.task)
        limit = [d["seconds"] for d in done if key(d)[:2] == own]
        prompt = cartridge(backbone, text, lesson, size, seed, limit[0])
    else:
        prompt = trained(backbone, lesson, arguments.steps, seed, is_hard=system == "hard labels")
    return found | {"prompt": prompt, "train_seconds": time.process_time() - started}


def trained(
    backbone: Backbone, lesson: distill.Lesson, num_steps: int, seed: int, *, is_hard: bool
) -> SoftPrompt:
    """Train by the divergence, or on the same answers as labels, at the same rate."""
    config = TrainConfig(
        learning_rate=RATE, batch_size=BATCH, num_steps=num_steps, eval_every=0, seed=seed
    )
    if is_hard:
        answers = [replace(row, target=None) for row in lesson.rows if row.source.startswith("q")]
        events = train(backbone, answers, config, encoding_config=lesson.encoding,
                       initial=lesson.start)  # fmt: skip
    else:
        events = distill.distill(backbone, lesson, config)
    *_, last = events
    assert last.prompt is not None
    return last.prompt


def run(arguments: Any, name: str, system: str, size: int, seed: int) -> dict[str, Any]:
    """Measure one system on test queries."""
    arguments.task = name
    backbone, task = base(arguments.model), CONTEXTS[name]()
    queries = asked([query for query, _ in task.test])
    config = DistillConfig(answer_tokens=task.max_new_tokens)
    text = text_prompt(backbone, list(task.context))
    taught = list(
        teach(
            backbone,
            text,
            queries,
            config,
            cache_folder() / "data" / "taught" / named(arguments.model) / name,
        )
    )
    found = made(arguments, task, system, size, seed)
    prompt, encoding = found["prompt"], found["encoding"]
    rows = [
        taught_row(backbone, *pair, encoding, "test") for pair in zip(queries, taught, strict=True)
    ]
    whole = score_rows(backbone, prompt, rows).whole()
    unrelated = told_rows(backbone, config)
    answers = chat.answers(
        backbone, prompt, queries, encoding, batch_size=16, max_new_tokens=task.max_new_tokens
    )
    scores = [
        task.score(answer.text, expected)
        for answer, (_, expected) in zip(answers, task.test, strict=True)
    ]
    prefix = backbone.compile(prompt) if prompt is not None else None
    if "train_seconds" in found:  # to be looked at again
        slug = f"{system}-{size}-{seed}".replace(" ", "-")
        prompt.save(cache_folder() / "data" / "distilled" / named(arguments.model) / name / slug)
    teaching, training = found.get("teacher_seconds", 0.0), found.get("train_seconds", 0.0)
    return {
        "model": named(arguments.model), "task": name, "system": system, "size": size, "seed": seed,
        "steps": arguments.steps if training and system != PEFT else 0,
        "context": text.num_virtual_tokens,
        "agreement": whole.agreement, "exact": whole.exact, "divergence": whole.loss,
        "score": sum(scores) / len(scores), "tests": len(scores),
        "unrelated": score_rows(backbone, prompt, unrelated).whole().loss,
        "bytes": prefix.num_bytes if prefix is not None else 0,
        "teacher_seconds": round(teaching, 1), "seconds": round(teaching + training, 1),
    }  # fmt: skip


def first_token(arguments: Any, name: str, size: int) -> dict[str, Any]:
    """Measure the time to the first token: side by side, of queries alone. Whatever a prompt of P
    virtual tokens was trained to say, it takes the same time, so these are the context's first P.
    """
    backbone, task = base(arguments.model), CONTEXTS[name]()
    text = text_prompt(backbone, list(task.context))
    prompt = SoftPrompt.from_embeddings(text.embeddings[:size], facts=text.facts)
    queries = asked([query for query, _ in task.test])
    times = first_tokens(backbone, text, prompt, queries)
    found = dict(zip(("read", "kept", "prompt"), times, strict=True))
    return {
        "model": named(arguments.model), "task": name, "size": size,
        "context": text.num_virtual_tokens, **found,
    }  # fmt: skip


def named(model: str) -> str:
    """Return what a model is called in the results: of a file, its name."""
    return Path(model).name


def key(result: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells one measurement from another."""
    return tuple(result[name] for name in ("model", "task", "system", "size", "seed"))


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tasks", nargs="+", default=list(CONTEXTS), choices=CONTEXTS)
    parser.add_argument("--systems", nargs="+", default=[""], help="parts of their names")
    parser.add_argument("--sizes", nargs="+", type=int, default=[32, 64])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--first-token", action="store_true", help="measure that alone")
    parser.add_argument("--queries", type=int, default=240, help="to learn from")
    parser.add_argument("--steps", type=int, default=160, help=f"of {BATCH} rows")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    if arguments.first_token:
        for name in arguments.tasks:
            for size in arguments.sizes:
                known = [(d["model"], d["task"], d["size"]) for d in measured(FIRST_TOKENS)]
                if (named(arguments.model), name, size) not in known:
                    write(FIRST_TOKENS, first_token(arguments, name, size))
        return
    systems = [s for s in SYSTEMS if any(part in s for part in arguments.systems)]
    for seed in arguments.seeds:
        for size in arguments.sizes:
            for name in arguments.tasks:
                for system in systems:
                    is_text = system in (WHOLE, BARE, START)
                    own = (0, 0) if is_text else (size, seed)
                    known = {key(result) for result in measured(RESULTS)}
                    model = named(arguments.model)
                    has_ours = (model, name, OURS, size, 0) in known
                    if (model, name, system, *own) in known:
                        continue
                    if system == PEFT and not has_ours:
                        continue  # it takes as many seconds as ours took
                    write(RESULTS, run(arguments, name, system, *own))


if __name__ == "__main__":
    main()
