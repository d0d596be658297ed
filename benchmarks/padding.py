"""What left padding costs a soft prompt: one prompt, through stock PEFT and through foreword.

    python benchmarks/padding.py [--steps 160] [--prompt DIRECTORY] [--systems NAME ...]
        [--commands 96]
    python docs/make_picture.py   # draws docs/picture.svg from what was measured

Trains an embedding prompt on the demo's home commands (or takes one that was), and answers the same
held-out commands greedily: bare, and behind the prompt row by row and in left-padded batches of 32,
with stock PEFT and with foreword. Both read the same file. Each is one line of
benchmarks/results/padding.jsonl, with the share of exact calls and of right intents, the answers to
the first commands, and the installed releases.
"""

import argparse
import copy
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import stock
from peft import PeftModel
from recorded import FOLDER, write
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import home_commands as demo

from foreword import Backbone, Prefix, SoftPrompt, TrainConfig, train
from foreword.chat import answers
from foreword.cli.progress import run
from foreword.demo.home_commands import FEW_INTENTS, exact, home_commands, same_intent

RESULTS = FOLDER / "padding.jsonl"
NUM_SHOWN = 12


def main() -> None:
    """Measure every system, one line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--prompt", default=None)
    parser.add_argument("--systems", nargs="+", default=["bare", "PEFT", "foreword"])
    parser.add_argument("--commands", type=int, default=96, help="held out, to answer")
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
    test = commands.test[: arguments.commands]
    texts = [command.text for command in test]
    systems: dict[str, Callable[[int], Iterator[str]]] = {
        "PEFT": lambda size: stock.answers(backbone, peft, texts, demo.ROWS, size, 64),
        "foreword": lambda size: said(backbone, prefix, texts, size),
    }
    runs = [("bare", 32, said(backbone, None, texts, 32))]
    runs += [(name, size, answer(size)) for name, answer in systems.items() for size in (1, 32)]
    for name, batch_size, answer in runs:
        if name not in arguments.systems:
            continue
        pairs = list(zip(answer, test, strict=True))
        exact_share, intent_share = (
            sum(metric(text, command.call) for text, command in pairs) / len(pairs)
            for metric in (exact, same_intent)
        )
        write(
            RESULTS,
            {
                "system": name,
                "batch_size": batch_size,
                "commands": len(pairs),
                "exact": exact_share,
                "intent": intent_share,
                "peft": version("peft"),
                "transformers": version("transformers"),
                "first": [[c.text, c.call, text] for text, c in pairs[:NUM_SHOWN]],
            },  # fmt: skip
        )


def said(backbone: Backbone, prefix: Prefix | None, texts: list[str], size: int) -> Iterator[str]:
    """Answer texts with foreword, in batches."""
    found = answers(backbone, prefix, texts, demo.ROWS, batch_size=size, max_new_tokens=64)
    return (answer.text for answer in found)


if __name__ == "__main__":
    main()
