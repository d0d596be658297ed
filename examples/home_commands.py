"""The demo: teach a small model to turn spoken home commands into structured calls.

    set the kitchen brightness to 40 percent
    {"intent": "HassLightSet", "area": "kitchen", "brightness": 40}

Rows and truth come from Home Assistant's own English grammar and parser, split by sentence
template: the test's wordings are unseen. The soft prompt starts as the model's own state after
reading an instruction, and is trained from there; the model itself does not change.
"""

import json
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers.utils import logging

from foreword import (
    Backbone,
    EncodingConfig,
    Example,
    SoftPrompt,
    TrainConfig,
    TrainEvent,
    train,
)
from foreword.chat import answers
from foreword.cli.progress import Stop, run
from foreword.config import EvalConfig
from foreword.demo.home_commands import (
    FEW_INTENTS,
    SHORT_INSTRUCTION,
    Command,
    exact,
    home_commands,
    instruction,
    same_intent,
)
from foreword.errors import InputError
from foreword.evaluation.evaluation import Evaluation, Subject, evaluate
from foreword.evaluation.metrics import row_metric
from foreword.loading import hub
from foreword.training.folders import STATE_FILE

MODEL = "smollm2-135m"
FOLDER = Path("runs/home-commands")
STATE = FOLDER / "state" / STATE_FILE
SYSTEM_TURN = "<|im_start|>system\n{}<|im_end|>\n"
# A row is the user's turn alone: the soft prompt stands where the system turn stood.
ROWS = EncodingConfig(row_template="<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n")
START = (
    f"{SHORT_INSTRUCTION} Intents: {', '.join(FEW_INTENTS)}. Slots: name, area, floor, domain, "
    "device_class, brightness, color, temperature, item, volume_level."
)
CONFIG = TrainConfig(
    form="key_values",
    num_virtual_tokens=112,
    init_text=SYSTEM_TURN.format(START),
    batch_size=8,
    num_steps=200,
    eval_every=50,
    save_every=10,
)
METRICS = (row_metric("exact", exact), row_metric("intent", same_intent))
console = Console(soft_wrap=True)


def main(num_steps: int = CONFIG.num_steps or 0, num_test: int = 96) -> None:
    """Train, compare, generate, and say what to type next."""
    started = time.perf_counter()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if not console.is_terminal:
        console.print("fetching the model; the first time takes a minute")
    with console.status("fetching the model; the first time takes a minute") as status:
        hub.resolve(MODEL, progress=status.update)
        backbone = Backbone.load(MODEL)
        status.update("expanding the grammar of home commands")
        commands = home_commands(1200, min(48, num_test), num_test, intents=FEW_INTENTS)
    examples = {
        "train": [as_example(command) for command in commands.train],
        "validation": [as_example(command) for command in commands.validation],
        "test": [as_example(command) for command in commands.test],
    }
    for name, rows in examples.items():
        write_rows(FOLDER / f"{name}.jsonl", rows)

    config = TrainConfig(**{**CONFIG.__dict__, "num_steps": num_steps})
    console.print(f"the weights of {MODEL} are {backbone.weights}", markup=False)
    console.print(
        f"training {config.num_virtual_tokens} virtual tokens of {MODEL}, which is frozen"
    )
    stop = Stop()
    if run(begin(backbone, examples, config), str(FOLDER / "prompt"), stop) is None or stop.signal:
        console.print("stopped; make demo goes on from here")
        sys.exit(128 + (stop.signal or 0))
    prompt = SoftPrompt.load(FOLDER / "prompt")

    results = compare(backbone, prompt, examples["test"])
    console.print(table(results, len(examples["test"])))
    show_examples(backbone, prompt, examples["test"][: max(1, min(3, num_test // 8))])
    console.print(
        f"\ndone in {time.perf_counter() - started:.0f} s. Next:\n"
        f"  .venv/bin/foreword chat --prompt {FOLDER}/prompt\n"
        f"  .venv/bin/foreword show --prompt {FOLDER}/prompt\n"
        f"  .venv/bin/foreword doctor --prompt {FOLDER}/prompt\n"
        f"  .venv/bin/foreword train --data YOUR.jsonl --output runs/yours",
        markup=False,
    )


def begin(
    backbone: Backbone, examples: dict[str, list[Example]], config: TrainConfig
) -> Iterator[TrainEvent]:
    """Return the events of the run: it goes on where it was interrupted, however it was."""

    def events(resume: bool) -> Iterator[TrainEvent]:
        return train(
            backbone,
            examples["train"],
            config,
            validation=examples["validation"],
            encoding_config=ROWS,
            checkpoint=STATE.parent,
            resume=resume,
            clear=None if resume else partial(STATE.unlink, missing_ok=True),
        )

    try:
        return events(resume=True)
    except InputError as error:  # of another run, or damaged
        console.print(f"begins anew: {error}", markup=False)
        return events(resume=False)


def as_example(command: Command) -> Example:
    """Return a command as a training example."""
    return Example(command.text, command.call, "home commands")


def write_rows(path: Path, rows: list[Example]) -> None:
    """Write examples as JSONL, in the columns that `foreword train` and `eval` read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"prompt": r.prompt, "completion": r.completion}) + "\n" for r in rows]
    path.write_text("".join(lines))


def compare(backbone: Backbone, prompt: SoftPrompt, test: list[Example]) -> list[Evaluation]:
    """Score the bare model, the hand-written instruction and the soft prompt on unseen wordings."""
    # A text is a prompt too: its prefix is computed once, and equals the model fed that text.
    text = SYSTEM_TURN.format(instruction(FEW_INTENTS))
    ids = backbone.tokenizer(text, return_tensors="pt").input_ids[0]
    written = SoftPrompt.from_embeddings(backbone.embed(ids))
    subjects = [
        Subject("bare model", encoding=ROWS),
        Subject("hand-written instruction", written, encoding=ROWS),
        Subject("soft prompt", prompt),
    ]
    config = EvalConfig(max_new_tokens=64)
    results = []
    with Progress(console=console, transient=True) as progress:
        for subject in subjects:
            task = progress.add_task(subject.name, total=len(test))
            advance = partial(progress.advance, task)
            results.append(evaluate(backbone, subject, test, METRICS, config, on_answer=advance))
            if not console.is_terminal:
                console.print(f"{subject.name}: {len(test)} commands, {results[-1].seconds:.0f} s")
    return results


def table(results: list[Evaluation], num_test: int) -> Table:
    """Return the comparison as a table."""
    shown = Table("", "exact", "right intent", "s", title=f"{num_test} commands, unseen wordings")
    for result in results:
        scores = [f"{result.scores[metric.name].value:.1%}" for metric in METRICS]
        shown.add_row(result.subject.name, *scores, f"{result.seconds:.0f}")
    return shown


def show_examples(backbone: Backbone, prompt: SoftPrompt, examples: list[Example]) -> None:
    """Answer three commands with the cache and without it, and time both."""
    prefix = backbone.compile(prompt)
    for example in examples:
        said, seconds = [], []
        for use_cache in (True, False):
            started = time.perf_counter()
            found = answers(
                backbone, prefix, [example.prompt], max_new_tokens=64, use_cache=use_cache
            )
            said.append(next(iter(found)).text)
            seconds.append(time.perf_counter() - started)
        same = "the same" if said[0] == said[1] else f"DIFFERENT: {said[1]}"
        console.print(
            f"\n{example.prompt}\n  {said[0]}\n  {seconds[0]:.1f} s with the cache, "
            f"{seconds[1]:.1f} s without, {same}",
            markup=False,
            highlight=False,
        )


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
