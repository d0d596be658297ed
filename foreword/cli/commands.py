"""Application: all commands in one, and errors as one line and an exit code.

In: arguments. Out: an exit code. Does not know what a command does.
"""

import sys
from typing import Annotated

import typer

import foreword
from foreword.cli import (
    chat,
    compare,
    doctor,
    evaluate,
    generate,
    lm_eval,
    options,
    prompts,
    serve,
    show,
    train,
)
from foreword.cli.console import one_line
from foreword.errors import ForewordError

app = typer.Typer(
    name="foreword",
    help="Train soft prompts on a frozen language model and generate with them, exactly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("train")(train.command)
app.command("generate")(generate.command)
app.command("chat")(chat.command)
app.command("eval")(evaluate.command)
app.command("compare")(compare.command)
app.command("lm-eval", context_settings=lm_eval.PASS_ON)(lm_eval.command)
app.command("show")(show.command)
app.command("doctor")(doctor.command)
app.command("serve")(serve.command)
app.add_typer(prompts.app, name="prompts")


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"foreword {foreword.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="print the version", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; the exit code is the error's own."""
    try:
        app()
    except ForewordError as error:
        options.errors.print(one_line(f"error: {error}"))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(0)
