"""What every example here does with its rows: train a prompt, say what it learned, prove it.

`run` takes the model's name from the command line; "tiny" is its architecture in miniature.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import tiny

from foreword import Backbone, TrainConfig, chat, train

Rows = Sequence[dict[str, Any]]


def run(doc: str, kind: str, rows: Rows, question: list[dict[str, Any]], **options: Any) -> None:
    """Train on rows, answer one question, and compare the answer with an uncached one.

    Args:
        doc: the example's docstring: its help.
        kind: of the tiny checkpoint.
        rows: in any form that `foreword train` reads.
        question: messages that are not among the rows.
        **options: of `TrainConfig`.
    """
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("model", help='a Hub id or a directory; "tiny" for random weights')
    parser.add_argument("--output", help="directory for the trained prompt")
    parser.add_argument("--num-steps", type=int, default=options.pop("num_steps", 60))
    given = parser.parse_args()
    backbone = Backbone.load(tiny.checkpoint(kind) if given.model == "tiny" else given.model)
    config = TrainConfig(num_steps=given.num_steps, batch_size=4, eval_every=0, **options)
    events = list(train(backbone, rows, config))
    prompt = events[-1].prompt
    print(f"{backbone}: loss {events[0].loss:.2f} -> {events[-1].loss:.2f}, {prompt}")
    answers = [
        next(chat.answers(backbone, prompt, [question], max_new_tokens=24, use_cache=is_cached))
        for is_cached in (True, False)
    ]
    print(f"answer: {answers[0].text!r}")
    assert answers[0].text == answers[1].text, "cached and uncached answers differ"
    print("cached and uncached: the same")
    if given.output:
        prompt.save(given.output)
        print(f"saved in {given.output}")
