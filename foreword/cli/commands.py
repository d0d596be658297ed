"""Application: all commands in one, and errors as one line and an exit code.

In: arguments. Out: an exit code. Does not know what a command does.
"""

import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

import foreword
from foreword.cli import (
    chat,
    compare,
    distill,
    doctor,
    evaluate,
    export,
    generate,
    lm_eval,
    options,
    prompts,
    reward,
    run_file,
    serve,
    show,
    train,
)
from foreword.cli.console import one_line, warnings_on
from foreword.compat import pydantic_errors
from foreword.errors import ForewordError, StorageError

# typer brings click, or a copy of it, and this class of it under no name of its own.
CLICK_ERROR: Any = next(
    one for one in typer.BadParameter.__mro__ if one.__name__ == "ClickException"
)

app = typer.Typer(
    name="foreword",
    help="Train soft prompts on a frozen language model and generate with them, exactly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("train")(run_file.with_run_file("train", options.checked(train.command)))
app.command("distill")(run_file.with_run_file("distill", options.checked(distill.command)))
app.command("reward")(run_file.with_run_file("reward", options.checked(reward.command)))
app.command("generate")(run_file.with_run_file("generate", options.checked(generate.command)))
app.command("chat")(options.checked(chat.command))
app.command("eval")(run_file.with_run_file("eval", options.checked(evaluate.command)))
app.command("compare")(run_file.with_run_file("compare", options.checked(compare.command)))
app.command("lm-eval", context_settings=lm_eval.PASS_ON)(lm_eval.command)
app.command("show")(options.checked(show.command))
app.command("doctor")(options.checked(doctor.command))
app.command("export")(options.checked(export.command))
app.command("serve")(run_file.with_run_file("serve", options.checked(serve.command)))
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
        with warnings_on(options.errors):
            sys.exit(app(standalone_mode=False) or 0)
    except ForewordError as error:
        _say(str(error))
        sys.exit(error.exit_code)
    except CLICK_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
        else:
            # Behind some errors of typer stand pydantic's.
            found: Any = getattr(error.__cause__, "errors", list)()
            if found and isinstance(found[0], Mapping):
                error.message = pydantic_errors.said(found[0])
            context = getattr(error, "ctx", None)
            more = f"; see {context.command_path} --help" if context else ""
            _say(" ".join(error.format_message().split()).rstrip(".") + more)
        sys.exit(error.exit_code)
    except typer.Abort:
        _say("aborted")
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        where = error.filename or "the output cannot be written"
        _say(f"{where} ({error.strerror or error})")
        sys.exit(StorageError.exit_code)


def _say(message: str) -> None:
    options.errors.print(one_line(f"error: {message}"))
