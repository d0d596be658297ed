"""Preference optimization on made pairs: terse answers are chosen, verbose ones rejected.

    OMP_NUM_THREADS=1 python benchmarks/preferences.py [--objectives dpo dpo-norm] [--rates ...]
        [--chosen-weights 0 1]

The questions are made here, and so are both answers, which say the same. The prompt starts as a
plain system turn. For the start and for each run: the share of greedy answers to questions that
were not trained on that are terse (at most 8 words) and that are right, their mean length in
tokens, the share of held-out pairs whose terse answer is ahead, and what the prompt changes on
unrelated text: the Kullback-Leibler divergence of the model behind it from the model behind the
start, in nats a token, over the whole vocabulary.
"""

import argparse
import random
import time
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from defaults import quiet

from foreword import Backbone, EncodingConfig, SoftPrompt, TrainConfig, train
from foreword.chat import answers
from foreword.config import ObjectiveConfig
from foreword.data.batches import collate
from foreword.evaluation.forgetting import unrelated_text, windows
from foreword.prompt.prefix import same_prefix
from foreword.training.preference import objective_of

START = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
ROWS = EncodingConfig(row_template="<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n")
TERSE_WORDS = 8
NUM_HELD_OUT = 48
CAPITALS = (
    "France Paris, Germany Berlin, Italy Rome, Spain Madrid, Portugal Lisbon, Greece Athens, "
    "Austria Vienna, Poland Warsaw, Sweden Stockholm, Norway Oslo, Finland Helsinki, Denmark "
    "Copenhagen, Ireland Dublin, Hungary Budapest, Egypt Cairo, Japan Tokyo, China Beijing, "
    "Russia Moscow, Canada Ottawa, Cuba Havana, Peru Lima, Chile Santiago, Kenya Nairobi, "
    "Thailand Bangkok, Turkey Ankara, Iran Tehran, Iraq Baghdad, Vietnam Hanoi"
)
OPPOSITES = (
    "hot cold, big small, fast slow, up down, left right, day night, happy sad, old young, "
    "wet dry, light dark, hard soft, early late, rich poor, full empty, open closed, high low, "
    "long short, strong weak, loud quiet, good bad, clean dirty, near far, thick thin, first last"
)
VERBOSE = (
    "That is a very good question, and I am glad that you asked it! {said} I hope that this helps "
    "you. If you have any other questions, please do not hesitate to ask me.",
    "Thank you for your question. Let me think about it step by step and explain it in detail. "
    "{said} Please let me know if you would like to learn more about this topic.",
    "Of course! I would be happy to help you with that. {said} This is a well known fact, and "
    "there is much more to say about it, so feel free to ask me about anything else.",
)


def pairs() -> list[dict[str, str]]:
    """Return rows of a question, its terse and its verbose answer, and what is right."""
    rng, rows = random.Random(0), []
    for country, city in (one.split() for one in CAPITALS.split(", ")):
        said = f"The capital of {country} is {city}."
        rows.append((f"What is the capital of {country}?", city, said))
    for word, other in (one.split() for one in OPPOSITES.split(", ")):
        rows.append(
            (f"What is the opposite of {word}?", other, f"The opposite of {word} is {other}.")
        )
    for first in range(2, 14):
        for second in rng.sample(range(2, 14), 8):
            said = f"The sum of {first} and {second} is {first + second}."
            rows.append((f"What is {first} plus {second}?", str(first + second), said))
    rng.shuffle(rows)
    return [
        {
            "prompt": question,
            "chosen": f"{right[0].upper()}{right[1:]}.",
            "rejected": rng.choice(VERBOSE).format(said=said),
            "right": right,
        }
        for question, right, said in rows
    ]


def main() -> None:
    """Print a line for the start and for each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objectives", nargs="+", default=["dpo", "dpo-norm"])
    parser.add_argument("--rates", nargs="+", type=float, default=[3e-3, 1e-2, 3e-2])
    parser.add_argument("--chosen-weights", nargs="+", type=float, default=[0.0])
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    quiet()
    backbone = Backbone.load("smollm2-135m")
    rows = pairs()
    held_out, rows = rows[:NUM_HELD_OUT], rows[NUM_HELD_OUT:]
    ids = backbone.tokenizer(START, return_tensors="pt").input_ids[0]
    embeddings = SoftPrompt.from_embeddings(backbone.embed(ids).float())
    start = SoftPrompt.from_states(backbone.compile(embeddings).states)
    print(f"{len(rows)} pairs, {len(held_out)} held out; {len(ids)} virtual tokens", flush=True)
    print("start:", measured(backbone, start, start, held_out), flush=True)
    lists = (arguments.objectives, arguments.rates, arguments.chosen_weights)
    for name, rate, weight in product(*lists):
        began = time.process_time()
        config = TrainConfig(
            batch_size=8, num_steps=arguments.steps, eval_every=0, learning_rate=rate
        )
        *_, last = train(
            backbone,
            [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows],
            config,
            validation=held_out,
            encoding_config=ROWS,
            initial=start,
            objective=objective_of(ObjectiveConfig(name, chosen_weight=weight)),
        )
        seconds = time.process_time() - began
        assert last.prompt is not None and last.validation is not None
        found = measured(backbone, last.prompt, start, held_out)
        ahead = f"{last.validation.preferred:.0%} ahead"
        print(f"{name}, {rate:g}, {weight:g}: {found}, {ahead}, {seconds:.0f} s", flush=True)


def measured(
    backbone: Backbone, prompt: SoftPrompt, start: SoftPrompt, rows: list[dict[str, str]]
) -> str:
    """Return what greedy answers behind a prompt are like, and what it changes elsewhere."""
    asked = [row["prompt"] for row in rows]
    found = list(answers(backbone, prompt, asked, ROWS, max_new_tokens=64))
    is_terse = [len(one.text.split()) <= TERSE_WORDS and one.is_finished for one in found]
    is_right = [
        row["right"].lower() in one.text.lower() for one, row in zip(found, rows, strict=True)
    ]
    length = sum(one.num_tokens for one in found) / len(found)
    return (
        f"{mean(is_terse):.1%} terse, {mean(is_right):.1%} right, {length:.1f} tokens, "
        f"KL {divergence(backbone, prompt, start):.3f}"
    )


def mean(values: list[bool]) -> float:
    """Return the share of values that are true."""
    return sum(values) / len(values)


def divergence(backbone: Backbone, prompt: SoftPrompt, start: SoftPrompt) -> float:
    """Return the mean divergence KL(prompt || start) at a token of unrelated text, in nats."""
    total = torch.cat(
        [
            (p.exp() * (p - q)).sum(-1)
            for p, q in zip(*(said(backbone, one) for one in (prompt, start)), strict=True)
        ]
    )
    return total.mean().item()


def said(backbone: Backbone, prompt: SoftPrompt) -> Iterator[Any]:
    """Yield log probabilities of the whole vocabulary at the tokens of windows of the text."""
    prefix = backbone.compile(prompt.detached())
    for row in windows(backbone, unrelated_text(), 64)[:16]:
        with torch.no_grad():
            batch = collate([row], backbone.padding_id)
            states, _, _ = backbone.label_states(same_prefix(prefix, 1), batch)
            found = backbone.head(states).float().log_softmax(-1)
        yield found


if __name__ == "__main__":
    main()
