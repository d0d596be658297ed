"""What left padding costs a soft prompt: one prompt, through stock PEFT and through foreword.

    python benchmarks/padding.py [--steps 160] [--prompt DIRECTORY]

Trains an embedding prompt on the demo's home commands (or takes one that was), and answers the same
held-out commands greedily: row by row, and in left-padded batches of 32, each with stock PEFT and
with foreword. Both read the same file. Prints the share of exact calls and of right intents.
"""

import argparse
import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import stock
from peft import PeftModel
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import home_commands as demo

from foreword import Backbone, SoftPrompt, TrainConfig, train
from foreword.chat import answers
from foreword.cli.progress import run
from foreword.demo.home_commands import FEW_INTENTS, exact, home_commands, same_intent


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--prompt", default=None)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    backbone = Backbone.load(demo.MODEL)
    commands = home_commands(1200, 48, 96, intents=FEW_INTENTS)
    directory = arguments.prompt or "runs/padding/prompt"
    if arguments.prompt is None:
        config = TrainConfig(
            form="embeddings",
            num_virtual_tokens=demo.CONFIG.num_virtual_tokens,
            init_text=demo.CONFIG.init_text,
            learning_rate=1.5e-2,
            batch_size=8,
            num_steps=arguments.steps,
            eval_every=40,
        )
        train_rows = [demo.as_example(command) for command in commands.train]
        held_out = [demo.as_example(command) for command in commands.validation]
        events = train(backbone, train_rows, config, validation=held_out, encoding_config=demo.ROWS)
        run(events, directory)
    prompt = SoftPrompt.load(directory)
    peft = PeftModel.from_pretrained(copy.deepcopy(backbone.model), directory).eval()
    prefix = backbone.compile(prompt)
    texts = [command.text for command in commands.test]
    systems: dict[str, Callable[[int], Iterator[str]]] = {
        "PEFT": lambda size: stock.answers(backbone, peft, texts, demo.ROWS, size, 64),
        "foreword": lambda size: (
            answer.text
            for answer in answers(
                backbone, prefix, texts, demo.ROWS, batch_size=size, max_new_tokens=64
            )
        ),
    }
    print(f"{prompt}, {len(texts)} held-out commands, greedy\n")
    print("| | batch | exact | right intent |\n|---|---|---|---|")
    for name, answer in systems.items():
        for batch_size in (1, 32):
            pairs = list(zip(answer(batch_size), commands.test, strict=True))
            shares = [
                sum(metric(text, command.call) for text, command in pairs) / len(pairs)
                for metric in (exact, same_intent)
            ]
            print(f"| {name} | {batch_size} | {shares[0]:.1%} | {shares[1]:.1%} |", flush=True)


if __name__ == "__main__":
    main()
