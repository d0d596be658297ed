"""One long row: what 31 short rows of a batch keep of their speed beside it.

    OMP_NUM_THREADS=1 python benchmarks/long_row.py [--model NAME] [--long 4000] [--repeats 2]

New tokens of a full batch by this process's seconds of processor, once all 32 rows decode: 32 rows
of 60 tokens, and the same with one of them long.
"""

import argparse
import time

import torch
from transformers.utils import logging

from foreword import Backbone
from foreword.engine.engine import Engine
from foreword.engine.limits import EngineLimits
from foreword.engine.request import Request

NUM_ROWS, NUM_SHORT, NUM_STEPS = 32, 60, 8  # rows, tokens of a short one, steps that are timed


def speed(backbone: Backbone, first: int) -> float:
    """Return new tokens per second, with so many tokens in the first row."""
    engine = Engine(backbone, EngineLimits(max_rows=NUM_ROWS, max_slots=1 << 20))
    generator, size = torch.Generator().manual_seed(0), backbone.capabilities.vocab_size
    for length in (first, *[NUM_SHORT] * (NUM_ROWS - 1)):
        ids = torch.randint(3, size, (length,), generator=generator)
        engine.submit(Request(tuple(ids.tolist()), max_new_tokens=64))
    while engine.num_decoding < NUM_ROWS:
        engine.step()
    begun, before = time.process_time(), engine.num_new_tokens
    for _ in range(NUM_STEPS):
        engine.step()
    return (engine.num_new_tokens - before) / (time.process_time() - begun)


def main() -> None:
    """Print a line for each round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--long", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    backbone = Backbone.load(given.model)
    for _ in range(given.repeats):
        alone, beside = speed(backbone, NUM_SHORT), speed(backbone, given.long)
        print(f"{alone:.1f} tokens/s, {beside:.1f} beside {given.long}: {beside / alone:.2f}")


if __name__ == "__main__":
    main()
