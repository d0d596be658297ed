"""Options: derived from the config classes, with what the commands share to load and print.

In: dataclasses of `foreword.config`. Out: typer options with the same names, defaults and help; a
loaded model and prompt. Knows no option of a config class by name.
"""

import functools
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli.console import TextConsole
from foreword.errors import InputError

if TYPE_CHECKING:
    from foreword.backbone import Backbone
    from foreword.prompt.soft_prompt import SoftPrompt

errors = TextConsole(stderr=True)
output = TextConsole()

Model = Annotated[
    str | None,
    typer.Option(
        help="'smollm2-135m', a Hub id, a directory or a .gguf file; default: the prompt's own base"
    ),
]
PromptDirectory = Annotated[
    str | None, typer.Option(help="directory or Hub id of a soft prompt, foreword's or PEFT's")
]
Instruction = Annotated[
    str | None, typer.Option(help="a hand-written instruction to compare with, or @FILE")
]
Data = Annotated[str, typer.Option(help="rows that the prompt was not trained on, as for train")]
Predictions = Annotated[
    str | None, typer.Option(help="write every answer, and whether it is right, to this JSONL file")
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of tables")]


def text_of(value: str, option: str) -> str:
    """Return a text, or the text of the file that is named after an @."""
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{option}: cannot read {value[1:]} as text ({error})") from error


def note(text: str) -> None:
    """Print what a person should know, beside what a command prints."""
    errors.print(f"note: {text}")


def from_configs(*configs: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option for every field of the config classes.

    The command takes the finished configs first, by position, in the order given here.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        names = {config: [f.name for f in fields(config)] for config in configs}
        own = list(inspect.signature(command).parameters.values())[len(configs) :]

        @functools.wraps(command)
        def wrapper(**values: Any) -> None:
            for field in (field for config in configs for field in fields(config)):
                if isinstance(values[field.name], str):
                    values[field.name] = _text_option(field, values[field.name])
            built = [
                config(**{name: values.pop(name) for name in names[config]}) for config in configs
            ]
            command(*built, **values)

        derived = [_parameter(field) for config in configs for field in fields(config)]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + derived
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


def _text_option(field: Any, value: str) -> str:
    """Return an option that is text as the config takes it: the text of a file that it names; and
    say where a shell has passed a line break on as two characters.
    """
    option = f"--{field.name.replace('_', '-')}"
    if field.metadata.get("is_file"):
        return text_of(f"@{value.removeprefix('@')}", option)
    if "\\n" in value and "\n" not in value:
        note(f"{option} holds \\n as two characters; a shell writes a line break as $'\\n'")
    return value


def _parameter(field: Any) -> inspect.Parameter:
    assert field.default is not MISSING
    help = field.metadata["help"]
    names, parser = field.metadata.get("names", ()), field.metadata.get("parser")
    annotation = field.type if parser is None else str | None
    option = typer.Option(*names, help=help, parser=parser)
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=field.default,
        annotation=Annotated[annotation, option],
    )


def speak(is_main: bool) -> None:
    """Let only the main one of several processes print."""
    errors.quiet = output.quiet = not is_main


def end_at_once(code: int) -> None:
    """End the process without the interpreter's shutdown, in which gloo's threads may abort it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def load(
    model: str | None, prompt_directory: str | None, device: str = "auto"
) -> "tuple[Backbone, SoftPrompt | None]":
    """Load the prompt, if any, and its base model, and show what takes long."""
    from transformers.utils import logging

    from foreword.backbone import Backbone
    from foreword.loading import hub
    from foreword.prompt.soft_prompt import SoftPrompt

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    prompt = SoftPrompt.load(prompt_directory) if prompt_directory else None
    base = (prompt.facts.get("base") or {}) if prompt else {}
    name = model or base.get("name")
    if not name:
        raise InputError("which model? give --model; the prompt's file does not name its base")
    with errors.status(f"loading {name}") as status:
        hub.resolve(name, progress=status.update)
        backbone = Backbone.load(
            name, device=device, revision=None if model else base.get("revision")
        )
    if prompt and "fingerprint" not in base:
        errors.print(
            "note: the prompt does not record its base; that it is this model is unchecked"
        )
    return backbone, prompt
