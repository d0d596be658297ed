"""Training: foreword against stock PEFT with transformers' Trainer, in one process run.

    python benchmarks/training.py [--model smollm2-135m] [--rounds 3] [--steps 3] [--mixed]
        [--cpu-time]  # counts the processor's seconds: where others use the machine, too
        [--packing]   # instead of PEFT, foreword's own padded micro-batches stand beside it

The same rows and the same base; a few steps of each in turn, so that a noisy machine is noisy for
both. Rows per second are medians over the rounds, the first step of each round not counted. Memory
is the peak above the process with the model, before a round. The limit beside a ratio is what
arithmetic alone allows: tokens times the parameters that they must pass, in PEFT's way and here.
"""

import argparse
import copy
import ctypes
import gc
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stock
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import TrainerCallback
from transformers.utils import logging

from foreword import Backbone, EncodingConfig, Example, Row, TrainConfig, train
from foreword.data.encoding import encode_examples
from foreword.training.packing import packed_decoder

SETTINGS = ("16,20,64", "8,100,64", "8,200,64", "32,100,32")
NUM_LABELS = 8
clock: Callable[[], float] = time.perf_counter
FORMS = {"prompt tuning": "embeddings", "prefix tuning": "key_values"}


@dataclass(frozen=True)
class Case:
    """B rows per step, P virtual tokens, the rows, and the steps that pass all of them once, where
    their lengths differ.
    """

    name: str
    batch_size: int
    num_virtual: int
    rows: list[Row]
    num_steps: int | None = None


@dataclass(frozen=True)
class Measured:
    """What some steps of one system took."""

    rows_per_second: float
    peak_bytes: int


def synthetic(backbone: Backbone, setting: str) -> Case:
    """Return random rows of T tokens, the last eight of them labels."""
    batch_size, num_virtual, length = (int(part) for part in setting.split(","))
    chance = torch.Generator().manual_seed(0)
    size = (8 * batch_size, length)
    ids = torch.randint(3, backbone.capabilities.vocab_size, size, generator=chance).tolist()
    rows = [Row.from_ids(row[:-NUM_LABELS], row[-NUM_LABELS:]) for row in ids]
    return Case(f"B={batch_size} P={num_virtual} T={length}", batch_size, num_virtual, rows)


def mixed(backbone: Backbone) -> Case:
    """Return rows of naturally mixed length: this documentation's paragraphs as turns."""
    text = "\n\n".join(path.read_text() for path in sorted(Path("docs").glob("*.md")))
    parts = [part.strip() for part in text.split("\n\n") if len(part.strip()) > 20][:64]
    examples = [Example([{"role": "user", "content": part[:600]}], "a paragraph") for part in parts]
    rows, _ = encode_examples(examples, backbone.tokenizer, EncodingConfig(), 2048)
    return Case("mixed lengths, B=8 P=100", 8, 100, rows, len(rows) // 8)


def foreword_steps(backbone: Backbone, case: Case, form: str, num_steps: int) -> list[float]:
    """Train; return when each step ended."""
    config = TrainConfig(
        form=form, num_virtual_tokens=case.num_virtual, batch_size=case.batch_size,
        num_steps=num_steps, eval_every=0,
    )  # type: ignore[arg-type]  # fmt: skip
    return [clock() for _ in train(backbone, case.rows, config)]


def padded_steps(backbone: Backbone, case: Case, form: str, num_steps: int) -> list[float]:
    """Train on padded micro-batches; return when each step ended."""
    packed = packed_decoder.packed
    packed_decoder.packed = lambda backbone: backbone
    try:
        return foreword_steps(backbone, case, form, num_steps)
    finally:
        packed_decoder.packed = packed


class Clock(TrainerCallback):
    """Remembers when each of a Trainer's steps ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(clock())


def peft_steps(base: Any, tokenizer: Any, case: Case, form: str, num_steps: int) -> list[float]:
    """Train with PEFT and Trainer; return when each step ended."""
    kind = PromptTuningConfig if form == "embeddings" else PrefixTuningConfig
    config = kind(task_type="CAUSAL_LM", num_virtual_tokens=case.num_virtual)
    model = get_peft_model(base, config)
    watch = Clock()
    trainer = stock.trainer(
        model, tokenizer, case.rows, "/tmp/foreword-benchmark", [watch],
        per_device_train_batch_size=case.batch_size, max_steps=num_steps, learning_rate=5e-3,
    )  # fmt: skip
    trainer.train()
    return watch.ends


@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """Yield a function that tells the peak above the memory at the start, in bytes."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield lambda: torch.cuda.max_memory_allocated() - before
        return
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the kernel counts the peak anew
    resident = status("VmRSS")
    yield lambda: status("VmHWM") - resident


def status(name: str) -> int:
    """Return a number of this process from the kernel, in bytes."""
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if name in one)
    return int(line.split()[1]) * 1024


def measure(
    systems: dict[str, Callable[[int], list[float]]], case: Case, rounds: int, steps: int
) -> dict[str, Measured]:
    """Let the systems take steps in turn; return medians."""
    speeds: dict[str, list[float]] = {name: [] for name in systems}
    peaks: dict[str, list[int]] = {name: [] for name in systems}
    for _ in range(rounds):
        for name, run in systems.items():
            with peak_memory() as peak:
                ends = run(steps + 1)
                peaks[name].append(peak())
            speeds[name].append(steps * case.batch_size / (ends[-1] - ends[0]))
    return {n: Measured(statistics.median(speeds[n]), max(peaks[n])) for n in systems}


def limit(backbone: Backbone, case: Case, form: str) -> float:
    """Return PEFT's tokens times parameters over foreword's, from the numbers of tokens alone.

    PEFT passes B(P+T) tokens through layers and head, or BT of them for keys and values; foreword
    passes P + BT through the layers, or BT, and the labels alone through the head.
    """
    head = backbone.capabilities.hidden_size * backbone.capabilities.vocab_size
    body = sum(p.numel() for p in backbone.decoder.layers.parameters())
    size, virtual = case.batch_size, case.num_virtual if form == "embeddings" else 0
    longest = [
        max(len(row.input_ids) for row in case.rows[start : start + size])
        for start in range(0, len(case.rows), size)
    ]
    theirs = sum(size * (virtual + length) for length in longest) * (body + head)
    tokens = sum(len(row.input_ids) for row in case.rows)
    labels = sum(row.num_labels for row in case.rows)
    ours = (virtual * len(longest) + tokens) * body + labels * head
    return theirs / ours


def phases(backbone: Backbone, case: Case, form: str) -> str:
    """Return the shares of a step that its phases take."""
    seconds = dict.fromkeys(("prefix", "rows", "head", "backward"), 0.0)
    inside = [0]

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = clock()
            inside[0] += 1
            result = function(*args, **kwargs)
            inside[0] -= 1
            if not inside[0]:  # a phase inside another one is part of it
                seconds[name] += clock() - started
            return result

        return call

    places = [
        (Backbone, "prefill", "prefix"),
        (Backbone, "label_states", "rows"),
        (Backbone, "head", "head"),
        (torch.autograd, "backward", "backward"),
    ]
    before = [getattr(owner, attribute) for owner, attribute, _ in places]
    for (owner, attribute, name), function in zip(places, before, strict=True):
        setattr(owner, attribute, timed(name, function))
    try:
        config = TrainConfig(
            form=form, num_virtual_tokens=case.num_virtual, batch_size=case.batch_size,
            num_steps=2, eval_every=0,
        )  # type: ignore[arg-type]  # fmt: skip
        events = train(backbone, case.rows, config)
        seconds.update(dict.fromkeys(seconds, 0.0))  # what was before the first step
        started = clock()
        for _ in events:
            pass
        whole = clock() - started
    finally:
        for (owner, attribute, _), function in zip(places, before, strict=True):
            setattr(owner, attribute, function)
    shares = {name: value / whole for name, value in seconds.items()}
    shares["optimizer and rest"] = 1 - sum(shares.values())
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items())


def main() -> None:
    """Print one line for every setting and form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="that are measured in each round")
    parser.add_argument("--settings", nargs="*", default=SETTINGS, help="B,P,T")
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--cpu-time", action="store_true", help="not the wall clock's")
    parser.add_argument("--mixed", action="store_true", help="also rows of mixed length")
    parser.add_argument("--packing", action="store_true", help="beside padded micro-batches")
    arguments = parser.parse_args()
    global clock
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")  # PEFT asks transformers for names that it gives up
    backbone = Backbone.load(arguments.model)
    base = copy.deepcopy(backbone.model)
    other = "padded" if arguments.packing else "PEFT"
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(
        f"{arguments.model}, {backbone.dtype}, {where}, {torch.get_num_threads()} threads, median "
        f"of {arguments.rounds} rounds of {arguments.steps} steps, "
        f"{'processor' if arguments.cpu_time else 'wall clock'} seconds\n\n"
        f"| rows | form | rows/s: foreword | {other} | ratio | limit | peak: foreword | {other} "
        "| ratio |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    cases = [synthetic(backbone, setting) for setting in arguments.settings]
    cases += [mixed(backbone)] if arguments.mixed else []
    notes = []
    for name in arguments.forms:
        for case in cases:
            form = FORMS[name]
            systems: dict[str, Callable[[int], list[float]]] = {
                "foreword": lambda n, c=case, f=form: foreword_steps(backbone, c, f, n),
                "PEFT": lambda n, c=case, f=form: peft_steps(base, backbone.tokenizer, c, f, n),
                "padded": lambda n, c=case, f=form: padded_steps(backbone, c, f, n),
            }
            systems = {name: run for name, run in systems.items() if name in ("foreword", other)}
            found = measure(systems, case, arguments.rounds, case.num_steps or arguments.steps)
            ours, theirs = found["foreword"], found[other]
            print(
                f"| {case.name} | {name} | {ours.rows_per_second:.2f} | "
                f"{theirs.rows_per_second:.2f} | "
                f"**{ours.rows_per_second / theirs.rows_per_second:.2f}** | "
                f"{limit(backbone, case, form):.2f} | {ours.peak_bytes / 1e6:.0f} MB | "
                f"{theirs.peak_bytes / 1e6:.0f} MB | {ours.peak_bytes / theirs.peak_bytes:.2f} |",
                flush=True,
            )
            shares = phases(backbone, case, form)
            notes.append(f"- {case.name}, {name}: {shares}")
    print("\nshares of foreword's step:\n" + "\n".join(notes))


if __name__ == "__main__":
    main()
