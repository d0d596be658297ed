"""Options: derived from the config classes, with what the commands share to load and print.

In: dataclasses of `foreword.config`. Out: typer options with the same names, defaults and help; a
loaded model and prompt. Knows no option of a config class by name.
"""

import errno
import functools
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from foreword.cli import early
from foreword.cli.console import TextConsole, one_line
from foreword.config import extensions
from foreword.errors import InputError

if TYPE_CHECKING:
    from foreword.backbone import Backbone
    from foreword.prompt.soft_prompt import SoftPrompt

errors = TextConsole(stderr=True)
output = TextConsole()

OF_A_PATH = (
    errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR,
    errno.EPERM, errno.EROFS,
)  # fmt: skip
HALF_SURROGATE = re.compile("[\ud800-\udfff]")  # bytes of the command line that are not UTF-8
MAY_BE_EMPTY = ("texts",)
MOST_CHARS = 100_000_000  # of a text in a file
WHICH_MODEL = "which model? give --model, or a --prompt, whose base is taken"

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
    """Return a text, or the text of the file that is named after an @.

    Raises:
        InputError: no such file, or one that is no text, blank or too large.
    """
    if not value.startswith("@"):
        return value
    text = file_text(value[1:], option)
    if not text.strip():
        raise InputError(f"{option}: {value[1:]} is blank: write a text into it, or leave it out")
    return text


def file_text(path: str, option: str) -> str:
    """Return the text of a file, without a mark of its byte order.

    Raises:
        InputError: no such file, or one that is no text or too large.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(MOST_CHARS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{option}: cannot read {path} as text ({error})") from error
    if "\0" in text:
        raise InputError(f"{option}: cannot read {path} as text (it holds a zero byte)")
    if len(text) > MOST_CHARS:
        raise InputError(f"{option}: {path} has more than {MOST_CHARS:,} characters of text")
    return text


def json_of(path: str, option: str) -> Any:
    """Return what a JSON file holds."""
    text = file_text(path.removeprefix("@"), option)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{option}: {path} is no JSON ({error})") from None


def note(text: str) -> None:
    """Print what a person should know, beside what a command prints."""
    errors.print(f"note: {one_line(text)}")


def checked(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command refuse text that no option can mean, and say in one line what the system says
    of a path.
    """

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        for parameter in inspect.signature(command).parameters.values():
            given = values.get(parameter.name)
            for one in given if isinstance(given, list) else [given]:
                if isinstance(one, str):
                    _check_text(one, parameter)
        try:
            command(**values)
        except OSError as error:
            if (said := of_a_path(error)) is None:
                raise
            raise said from error

    return wrapper


def of_a_path(error: BaseException) -> InputError | None:
    """Return what the system says of a path as an error in one line; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in OF_A_PATH:
        return None
    return InputError(f"{error.filename or 'a path'!s:.200}: {error.strerror}")


def _check_text(value: str, parameter: inspect.Parameter) -> None:
    """Refuse text that is empty, or that the system could not have meant.

    Raises:
        InputError: names the option.
    """
    declared = next(
        (one for one in getattr(parameter.annotation, "__metadata__", ())), typer.Option()
    )
    is_option = isinstance(declared, type(typer.Option()))
    plain = parameter.name.replace("_", "-")
    decls = (declared.default, *(declared.param_decls or ()))  # typer keeps the first one there
    names = [one for one in decls if isinstance(one, str) and one.startswith("--")]
    name = names[0] if names else f"--{plain}" if is_option else plain.upper()
    if value or parameter.name not in MAY_BE_EMPTY:
        check_text(value, name)


def check_text(value: str, name: str) -> None:
    """Refuse the text of an option that is empty, or that the system could not have meant.

    Raises:
        InputError: names the option.
    """
    if not value:
        raise InputError(f"{name} is empty: give it a value, or leave it out")
    if "\0" in value:
        raise InputError(f"{name} holds a null byte: {value!r:.80}")
    if HALF_SURROGATE.search(value):
        raise InputError(f"{name} is not Unicode text: {value!r:.80}")


def file_of(value: str | None) -> str | None:
    """Return the file that is named after an @, if one is."""
    return value[1:] if value and value.startswith("@") else None


def from_configs(
    *configs: type, told: Mapping[str, str] | None = None, hidden: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option for every field of the config classes.

    The command takes the finished configs first, by position, in the order given here.

    Args:
        configs: the classes.
        told: what the help of this command says of fields, by name, in place of their own help.
        hidden: names of fields that its help leaves out, since they have no effect in it.
    """
    told = told or {}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        names = {config: [field.name for field in options_of(config)] for config in configs}
        own = list(inspect.signature(command).parameters.values())[len(configs) :]

        @functools.wraps(command)
        def wrapper(**values: Any) -> None:
            for field in (field for config in configs for field in options_of(config)):
                if isinstance(values[field.name], str):
                    values[field.name] = _text_option(field, values[field.name])
            built = [
                config(**{name: values.pop(name) for name in names[config]}) for config in configs
            ]
            command(*built, **values)

        known = [field for config in configs for field in options_of(config)]
        assert {*told, *hidden} <= {field.name for field in known}
        derived = [
            _parameter(field, told.get(field.name), is_hidden=field.name in hidden)
            for field in known
        ]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + derived
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


def options_of(config: type) -> list[Any]:
    """Return the fields of a config class that are options."""
    return [field for field in fields(config) if not field.metadata.get("is_fact")]


def _text_option(field: Any, value: str) -> str:
    """Return an option that is text as the config takes it: the text of a file that it names; and
    say where a shell has passed a line break on as two characters.
    """
    option = f"--{field.name.replace('_', '-')}"
    if field.metadata.get("is_file"):
        return text_of(f"@{value.removeprefix('@')}", option)
    if field.metadata.get("is_text") and value.startswith("@"):
        return text_of(value, option)
    if "\\n" in value and "\n" not in value:
        note(f"{option} holds \\n as two characters; a shell writes a line break as $'\\n'")
    return value


def _parameter(field: Any, told: str | None, *, is_hidden: bool) -> inspect.Parameter:
    assert field.default is not MISSING
    help = told or field.metadata["help"]
    names, parser = field.metadata.get("names", ()), field.metadata.get("parser")
    annotation = field.type if parser is None else str | None
    if more := extensions.names(field.name):  # beside its own
        own = [one for kind in get_args(annotation) for one in get_args(kind) or [kind]]
        annotation = Literal[(*(one for one in own if isinstance(one, str)), *more)] | None
    option = typer.Option(*names, help=help, parser=parser, hidden=is_hidden)
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
    model: str | None,
    prompt_directory: str | None,
    device: str = "auto",
    revision: str | None = None,
) -> "tuple[Backbone, SoftPrompt | None]":
    """Load the prompt, if any, and its base model, and show what takes long."""
    early.check(model=model)
    if not model and not prompt_directory:
        raise InputError(WHICH_MODEL)
    from foreword.loading import hub
    from foreword.prompt import stored_prompt

    stored = stored_prompt.read(prompt_directory) if prompt_directory else None
    base = (stored.facts.get("base") or {}) if stored else {}
    name = model or base.get("name")
    if not name:
        raise InputError(f"{WHICH_MODEL}; the prompt's file does not name its base")
    early.check(model=name)
    if stored is not None and model:
        early.check_hidden_size(stored, name)
    with errors.status(f"loading {name}") as status:
        quiet()
        resolved = hub.resolve(name, progress=status.update)
        if stored is not None and model:  # of a GGUF file once it is converted
            early.check_hidden_size(stored, name, resolved)
        from foreword import chat
        from foreword.backbone import Backbone
        from foreword.model.fingerprint import identifies
        from foreword.prompt.soft_prompt import SoftPrompt

        backbone = Backbone.load(
            name, device=device, revision=revision if model else base.get("revision")
        )
    if stored is None:
        return backbone, None
    if not identifies(base.get("fingerprint")):
        errors.print(_unchecked(base.get("name"), name), markup=False)
    if "encoding" not in stored.facts:
        errors.print(
            "note: the prompt does not say how its rows were written; a text is asked as the bare "
            "model is"
        )
    prompt = SoftPrompt.from_stored(stored)
    chat.check_template(backbone, prompt)
    return backbone, prompt


def _unchecked(recorded: str | None, name: str) -> str:
    """Say that no more than the name of a prompt's base, if that, tells whether it is this one."""
    if recorded is None:
        return "note: the prompt does not record its base; that it is this model is unchecked"
    other = "" if recorded == name else f", and is used with {name!r}"
    return (
        f"note: the prompt names its base, {recorded!r}{other}; it records no fingerprint, so that "
        "it is this model is unchecked"
    )


def quiet() -> None:
    """Let transformers say only what is wrong."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
