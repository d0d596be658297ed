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
from typing import Any

import torch
from peft import PeftModel
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import home_commands as demo

from foreword import Backbone, SoftPrompt, TrainConfig, train
from foreword.chat import encode
from foreword.cli.train import run
from foreword.encoding import decode
from foreword.home_commands import exact, home_commands, same_intent

Generate = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def answers(
    backbone: Backbone, generate: Generate, texts: list[str], batch_size: int
) -> Iterator[str]:
    """Answer texts in left-padded batches of one size."""
    pad = backbone.tokenizer.pad_token_id
    for start in range(0, len(texts), batch_size):
        rows = [encode(backbone, text, demo.ROWS) for text in texts[start : start + batch_size]]
        length = max(len(row) for row in rows)
        ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
        for row in generate(ids, mask)[:, -64:].tolist():
            yield decode(row[: row.index(pad)] if pad in row else row, backbone.tokenizer)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--prompt", default=None)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    backbone = Backbone.load(demo.MODEL)
    commands = home_commands(1200, 48, 96, intents=demo.INTENTS)
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
    end = backbone.tokenizer.eos_token_id
    options: dict[str, Any] = {
        "max_new_tokens": 64, "min_new_tokens": 0, "do_sample": False, "pad_token_id": end,
        "eos_token_id": end,
    }  # fmt: skip

    def padded_to(width: int, output: torch.Tensor) -> torch.Tensor:
        missing = width + 64 - output.shape[1]
        return torch.nn.functional.pad(output, (0, missing), value=end)

    systems: dict[str, Generate] = {
        "PEFT": lambda ids, mask: padded_to(
            ids.shape[1], peft.generate(input_ids=ids, attention_mask=mask, **options)
        ),
        "foreword": lambda ids, mask: padded_to(
            ids.shape[1], backbone.generate(prefix, ids, mask, **options)
        ),
    }
    texts = [command.text for command in commands.test]
    print(f"{prompt}, {len(texts)} held-out commands, greedy\n")
    print("| | batch | exact | right intent |\n|---|---|---|---|")
    for name, generate in systems.items():
        for batch_size in (1, 32):
            found = list(answers(backbone, generate, texts, batch_size))
            pairs = list(zip(found, commands.test, strict=True))
            shares = [
                sum(metric(text, command.call) for text, command in pairs) / len(pairs)
                for metric in (exact, same_intent)
            ]
            print(f"| {name} | {batch_size} | {shares[0]:.1%} | {shares[1]:.1%} |", flush=True)


if __name__ == "__main__":
    main()
