"""Tool calls: teach a small model to call tools, serve it, and ask it with the `openai` client.

    set the kitchen brightness to 40 percent
    HassLightSet({"area": "kitchen", "brightness": 40})

SmolLM2's chat template knows no tools: `tool_calls.jinja` beside this file does, and the prompt
keeps it. The rows are spoken home commands of Home Assistant's own grammar; the test's wordings are
unseen. A call is right when its tool and all of its arguments are.
"""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import openai
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from foreword import Backbone, EncodingConfig, SoftPrompt, TrainConfig, train
from foreword.cli.progress import run
from foreword.config import DataConfig, EvalConfig, ServeConfig
from foreword.data.examples import read_examples
from foreword.demo.home_commands import FEW_INTENTS, SLOTS, Command, home_commands
from foreword.evaluation.evaluation import Subject, evaluate
from foreword.evaluation.metrics import METRICS
from foreword.loading import hub
from foreword.prompt.store import Store
from foreword.server.server import Server

MODEL = "smollm2-135m"
FOLDER = Path("runs/tool-calls")
TEMPLATE = (Path(__file__).parent / "tool_calls.jinja").read_text()
ROWS = EncodingConfig(chat_template=TEMPLATE)
NUMBERS = ("brightness", "temperature", "volume_level")
CONFIG = TrainConfig(
    form="key_values",
    num_virtual_tokens=96,
    init_text="Call the one tool that the spoken smart home command asks for. Its arguments are "
    "what was spoken: name, area, floor, domain, device_class, brightness, color, temperature, "
    "item, volume_level.",
    batch_size=8,
    num_steps=80,
    eval_every=40,
)
console = Console(soft_wrap=True)


def tool(name: str) -> dict[str, Any]:
    """Describe an intent as a tool: any of the slots that these commands have."""
    slots = [slot for slot in SLOTS if slot in (CONFIG.init_text or "")]
    kinds = {slot: {"type": "number" if slot in NUMBERS else "string"} for slot in slots}
    parameters = {"type": "object", "properties": kinds, "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [tool(name) for name in FEW_INTENTS]


def as_row(command: Command) -> dict[str, Any]:
    """Return a command as a row: a question, the call that answers it, and the tools."""
    arguments = json.loads(command.call)
    name = arguments.pop("intent")
    call = {"type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    question = {"role": "user", "content": command.text}
    return {"messages": [question, {"role": "assistant", "tool_calls": [call]}], "tools": TOOLS}


def main(num_steps: int = CONFIG.num_steps or 0, num_test: int = 48) -> None:
    """Train, measure, serve, and ask."""
    started = time.perf_counter()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with console.status("fetching the model; the first time takes a minute") as status:
        hub.resolve(MODEL, progress=status.update)
        backbone = Backbone.load(MODEL)
        status.update("expanding the grammar of home commands")
        num_train = min(1200, CONFIG.batch_size * num_steps)
        commands = home_commands(num_train, min(48, num_test), num_test, intents=FEW_INTENTS)
    splits = {"train": commands.train, "validation": commands.validation, "test": commands.test}
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        text = "".join(json.dumps(as_row(command)) + "\n" for command in rows)
        (FOLDER / f"{name}.jsonl").write_text(text)
    data = {name: read_examples(FOLDER / f"{name}.jsonl", DataConfig()) for name in splits}

    config = TrainConfig(**{**CONFIG.__dict__, "num_steps": num_steps})
    console.print(
        f"training {config.num_virtual_tokens} virtual tokens of {MODEL}, which is frozen"
    )
    events = train(
        backbone, data["train"], config, validation=data["validation"], encoding_config=ROWS
    )
    run(events, str(FOLDER / "prompt"))
    prompt = SoftPrompt.load(FOLDER / "prompt")

    store = Store(FOLDER / "store")
    store.add("home", FOLDER / "prompt")
    asked = [row["messages"] for row in map(as_row, commands.test)]
    with console.status("answering the test rows, bare, in a batch, and through the server"):
        subjects = (Subject("bare model", encoding=ROWS), Subject("prompt", prompt))
        scores = {
            subject.name: evaluate(
                backbone,
                subject,
                data["test"],
                (METRICS["calls"],),
                EvalConfig(max_new_tokens=64),
            )
            .scores["calls"]
            .value
            for subject in subjects
        }
        server = Server(backbone, store, ServeConfig(port=0))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="any", max_retries=0)
        scores["prompt, served"] = share_right(client, asked, "auto")
        scores["prompt, served, a call required"] = share_right(client, asked, "required")
        show_turns(client, asked[0])
        server.end()
        thread.join()
    table = Table("", "right calls", title=f"{num_test} commands, unseen wordings")
    for name, value in scores.items():
        table.add_row(name, f"{value:.1%}")
    console.print(table)
    console.print(
        f"\ndone in {time.perf_counter() - started:.0f} s. Next:\n"
        f"  foreword eval --prompt {FOLDER}/prompt --data {FOLDER}/test.jsonl\n"
        f"  foreword serve {MODEL} --prompts {FOLDER}/store",
        markup=False,
    )


def share_right(client: openai.OpenAI, asked: list[list[Any]], choice: Any) -> float:
    """Return the share of conversations whose last turn the server answers with the same call."""
    num_right = 0
    for *question, expected in asked:
        message = ask(client, question, choice).choices[0].message
        wanted = [call["function"] for call in expected["tool_calls"]]
        found = [call.function for call in message.tool_calls or []]
        num_right += [(one.name, json.loads(one.arguments)) for one in found] == [
            (one["name"], json.loads(one["arguments"])) for one in wanted
        ]
    return num_right / len(asked)


def ask(client: openai.OpenAI, messages: list[Any], choice: Any = "auto") -> Any:
    """Ask the prompt, which may call one tool."""
    return client.chat.completions.create(
        model="home",
        messages=messages,
        tools=TOOLS,  # type: ignore[arg-type]
        tool_choice=choice,
        parallel_tool_calls=False,
        temperature=0,
        max_tokens=64,
    )


def show_turns(client: openai.OpenAI, turns: list[Any]) -> None:
    """Print a question and its call, as a client sees them."""
    message = ask(client, turns[:1], "required").choices[0].message
    called = [
        f"{call.function.name}({call.function.arguments})" for call in message.tool_calls or []
    ]
    console.print(f"{turns[0]['content']}\n  {', '.join(called)}", markup=False, highlight=False)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
