"""Time to first token and decoding speed: bare model, foreword, stock PEFT, in one process run.

    python benchmarks/generation.py [--model smollm2-135m] [--repeats 3]

The same ids through the same model; a run of each in turn, so that a noisy machine is noisy for
all. The figures are medians. The bare model has no prompt: a prompt should cost nothing over it.
Foreword's prefix is compiled once before, as in use; PEFT reads its prompt on every call.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from transformers.utils import logging

from foreword import Backbone, SoftPrompt

NUM_PROMPT, NUM_NEW = 64, 32


def seconds(run: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(systems: dict[str, Callable[..., Any]], repeats: int) -> dict[str, tuple[float, float]]:
    """Return each system's seconds to the first token and per token after it, medians."""
    first: dict[str, list[float]] = {name: [] for name in systems}
    more: dict[str, list[float]] = {name: [] for name in systems}
    for repeat in range(repeats + 1):
        for name, generate in systems.items():
            start = seconds(lambda g=generate: g(1))
            whole = seconds(lambda g=generate: g(1 + NUM_NEW))
            if repeat:  # the first round warms up
                first[name].append(start)
                more[name].append((whole - start) / NUM_NEW)
    return {n: (statistics.median(first[n]), statistics.median(more[n])) for n in systems}


def systems_for(
    backbone: Backbone, peft_base: Any, num_virtual: int, batch_size: int
) -> dict[str, Callable[..., Any]]:
    """Return what is compared: each a function of the number of new tokens."""
    generator = torch.Generator().manual_seed(0)
    size = backbone.capabilities.vocab_size
    ids = torch.randint(3, size, (batch_size, NUM_PROMPT), generator=generator)
    ids = ids.to(backbone.device)
    chosen = torch.randint(3, size, (num_virtual,), generator=generator)
    prompt = SoftPrompt.from_embeddings(backbone.embed(chosen).float())
    prefix = backbone.compile(prompt)
    with tempfile.TemporaryDirectory() as directory:
        prompt.save(directory)
        peft = PeftModel.from_pretrained(peft_base, directory)
    mask = torch.ones_like(ids)

    def options(num_new: int) -> dict[str, Any]:
        return {
            "max_new_tokens": num_new,
            "min_new_tokens": num_new,
            "do_sample": False,
            "pad_token_id": 0,
        }

    return {
        "bare": lambda n: backbone.model.generate(input_ids=ids, attention_mask=mask, **options(n)),
        "foreword": lambda n: backbone.generate(prefix, ids, mask, **options(n)),
        "PEFT": lambda n: peft.generate(input_ids=ids, attention_mask=mask, **options(n)),
    }


def main() -> None:
    """Print one line for every setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--virtual-tokens", type=int, nargs="+", default=[20, 100])
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    backbone = Backbone.load(arguments.model)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(
        f"{arguments.model}, {backbone.dtype}, {where}, {torch.get_num_threads()} threads, "
        f"{NUM_PROMPT} prompt tokens, {NUM_NEW} new tokens, median of {arguments.repeats}\n"
    )
    print(
        "| P | batch | first token, s: bare | foreword | PEFT | tokens/s: bare | foreword | PEFT |"
    )
    print("|---|---|---|---|---|---|---|---|")
    peft_base = copy.deepcopy(backbone.model)
    for num_virtual in arguments.virtual_tokens:
        for batch_size in arguments.batch_sizes:
            found = measure(
                systems_for(backbone, peft_base, num_virtual, batch_size), arguments.repeats
            )
            bare_first, bare_more = found["bare"]
            cells = [f"{bare_first:.3f}"]
            cells += [
                f"{found[n][0]:.3f} ({found[n][0] / bare_first:.2f}×)" for n in ("foreword", "PEFT")
            ]
            cells += [f"{batch_size / bare_more:.1f}"]
            cells += [
                f"{batch_size / found[n][1]:.1f} ({bare_more / found[n][1]:.2f}×)"
                for n in ("foreword", "PEFT")
            ]
            print(f"| {num_virtual} | {batch_size} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
