"""Rewards instead of labels: home commands by Home Assistant's parser, and valid JSON by a schema.

    OMP_NUM_THREADS=1 python benchmarks/reward.py json [--steps 20] [--group 8] [--rate 1e-2]
    OMP_NUM_THREADS=1 python benchmarks/reward.py home [--labelled-steps 24]

`json`: sentences about a person; the reward is 1 for one JSON object with a name, an age and a
city of the right types and nothing else, and less for less. The prompt starts as a system turn that
asks for it and four answered examples, of which two are answered in prose, so that the model does
this or that. `home`: spoken home commands; the parser says which call it makes of the command, and
the reward is 1 for that call; for another JSON object it is 0.1, 0.2 more for the same intent, and
as much of 0.5 as slots are right. A few steps of the default on labelled rows come first; no label
is seen after that. Questions, and held-out ones, are of the sentence templates that training has
seen; others are of templates that it has not. A line for each step, and the share of right greedy
answers before and after.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from typing import Any

from defaults import quiet

from foreword import Backbone, EncodingConfig, Example, SoftPrompt, TrainConfig, train
from foreword.chat import answers
from foreword.config import RewardConfig
from foreword.demo.home_commands import (
    FEW_INTENTS,
    exact,
    home_commands,
    parser,
)
from foreword.named_text import text_prompt
from foreword.training.rewarded import reward
from foreword.training.rewards import RewardFunction

ROWS = EncodingConfig(row_template="<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n")
ASKED = "Answer with one JSON object that has name, age and city."
NAMES = "Anna Ben Clara David Emma Felix Greta Hugo Ida Jonas Karla Leo Mia Noah Olga Paul"
CITIES = "Rome Paris Berlin Madrid Vienna Oslo Lisbon Prague Dublin Athens Warsaw Cairo"
SENTENCES = (
    "{name} is {age} years old and lives in {city}.",
    "{name}, {age}, is from {city}.",
    "In {city} lives {name}, who is {age}.",
    "My friend {name} from {city} turned {age} last week.",
    "{age} years ago {name} was born in {city}.",
)
PROSE = "The name is {name}, the age is {age}, and the city is {city}."
TOKENS = 40  # of the longest answer
NUM_LABELLED = 320
OF_TASK = {
    "json": {"steps": 20, "batch": 4, "rate": 1e-2, "held_out": 48},
    "home": {"steps": 70, "batch": 8, "rate": 2e-3, "held_out": 96},
}
"""What an option is where it is not given."""
SHAPE = {"name": str, "age": int, "city": str}


def of_schema(completions: list[str]) -> list[float]:
    """Return how near each answer is to a JSON object of the schema."""
    return [_of_schema(text) for text in completions]


def _of_schema(text: str) -> float:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return 0.1 * text.strip().startswith("{")
    if not isinstance(value, dict):
        return 0.0
    right = sum(type(value.get(key)) is kind for key, kind in SHAPE.items())
    return 1.0 if right == len(SHAPE) == len(value) else 0.3 + 0.1 * right


def of_parser() -> Callable[..., list[float]]:
    """Return the reward of home commands."""
    understood = parser()

    def rewards(prompts: list[str], completions: list[str]) -> list[float]:
        return [
            _of_call(text, understood(said) or "{}")
            for said, text in zip(prompts, completions, strict=True)
        ]

    return rewards


def _of_call(text: str, call: str) -> float:
    if exact(text, call):
        return 1.0
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return 0.0
    if not isinstance(said, dict):
        return 0.0
    meant = json.loads(call)
    slots = (said.keys() | meant.keys()) - {"intent"}
    right = sum(said.get(name) == meant.get(name) for name in slots)
    has_intent = said.get("intent") == meant.get("intent")
    return 0.1 + 0.2 * has_intent + 0.5 * right / max(len(slots), 1)


def people(count: int) -> list[dict[str, str]]:
    """Return sentences about people, all different, each with its JSON."""
    rng, found = random.Random(0), dict[str, str]()
    while len(found) < count:
        name, city, age = rng.choice(NAMES.split()), rng.choice(CITIES.split()), rng.randint(18, 90)
        said = rng.choice(SENTENCES).format(name=name, city=city, age=age)
        found[said] = json.dumps({"name": name, "age": age, "city": city})
    return [{"prompt": said, "completion": answer} for said, answer in found.items()]


def main() -> None:
    """Print what a prompt does before, at each step, and after."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("task", choices=["json", "home"])
    options.add_argument("--steps", type=int)
    options.add_argument("--group", type=int, default=8)
    options.add_argument("--batch", type=int)
    options.add_argument("--rate", type=float)
    options.add_argument("--kl", type=float, default=0.0)
    options.add_argument("--algorithm", default="rloo")
    options.add_argument("--labelled-steps", type=int, default=24, help="of home, before rewards")
    options.add_argument("--held-out", type=int)
    given = options.parse_args()
    for name, value in OF_TASK[given.task].items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    quiet()
    backbone, began = Backbone.load("smollm2-135m"), time.process_time()
    if given.task == "json":
        start, questions, held_out, function = json_task(backbone, given)
    else:
        start, questions, held_out, function = home_task(backbone, given)
    print(f"before: {shown(backbone, start, held_out, function)}", flush=True)
    config = RewardConfig(
        algorithm=given.algorithm, group=given.group, kl=given.kl, answer_tokens=TOKENS
    )
    training = TrainConfig(
        form="key_values", batch_size=given.batch, num_steps=given.steps, eval_every=0,
        learning_rate=given.rate,
    )  # fmt: skip
    events = reward(
        backbone, start, RewardFunction(given.task, function), questions, config, training
    )
    for event in events:
        print(f"step {event.step}: reward {event.reward:.3f}", flush=True)
    assert event.prompt is not None
    print(f"after: {shown(backbone, event.prompt, held_out, function)}", flush=True)
    print(f"{time.process_time() - began:.0f} processor seconds in all", flush=True)


def json_task(backbone: Backbone, given: Any) -> tuple[SoftPrompt, Any, Any, Any]:
    """Return a prompt of contradicting examples, sentences alone, held-out ones, the reward."""
    rows = people(given.held_out + 320)
    held_out, shown, questions = (
        rows[: given.held_out], rows[given.held_out :][:4], rows[given.held_out + 4 :]
    )  # fmt: skip
    for index in (1, 2):
        value = json.loads(shown[index]["completion"])
        shown[index] = shown[index] | {"completion": PROSE.format(**value)}
    turns: list[Any] = [{"role": "system", "content": ASKED}]
    for row in shown:
        turns += [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"]},
        ]
    asked, others = ([{"prompt": row["prompt"]} for row in part] for part in (questions, held_out))
    return text_prompt(backbone, turns), asked, {"held out": others}, of_schema


def home_task(backbone: Backbone, given: Any) -> tuple[SoftPrompt, Any, Any, Any]:
    """Return a prompt of few labelled steps, commands alone, held-out ones, the reward."""
    commands = home_commands(1200, 48, given.held_out, intents=FEW_INTENTS)
    labelled = [
        Example(one.text, one.call, "home commands") for one in commands.train[:NUM_LABELLED]
    ]
    config = TrainConfig(batch_size=8, num_steps=given.labelled_steps, eval_every=0)
    *_, last = train(backbone, labelled, config, encoding_config=ROWS)
    assert last.prompt is not None
    asked = [{"prompt": one.text} for one in commands.train[NUM_LABELLED:]]
    held_out = {
        "of known templates": asked[: given.held_out],
        "of others": [{"prompt": one.text} for one in commands.test],
    }
    return last.prompt, asked[given.held_out :], held_out, of_parser()


def shown(backbone: Backbone, prompt: SoftPrompt, held_out: Any, function: Any) -> str:
    """Return the share of greedy answers that are right, and their mean reward, for each set."""
    lines = []
    for name, rows in held_out.items():
        asked = [row["prompt"] for row in rows]
        found = [one.text for one in answers(backbone, prompt, asked, max_new_tokens=TOKENS)]
        values = RewardFunction("held out", function)(asked, found, [{} for _ in found])
        right = sum(value == 1 for value in values) / len(values)
        mean = sum(values) / len(values)
        lines.append(f"{right:.1%} right, mean reward {mean:.3f} on {len(rows)} questions {name}")
    return "; ".join(lines)


if __name__ == "__main__":
    main()
