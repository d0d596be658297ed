"""Lm-eval command: `foreword lm-eval`, EleutherAI's harness with prompts among its models.

In: the harness's own arguments. Out: what the harness prints. Knows none of its options but the
name of the model.
"""

import contextlib
import importlib
import importlib.util
import io
import sys
import traceback
from pathlib import Path

import typer

from foreword.errors import DependencyError, InputError

SEE = "see foreword lm-eval --help and lm-eval run --help"
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def command(context: typer.Context) -> None:
    """Run lm-evaluation-harness with `--model foreword`; every option is its own.

    Example: foreword lm-eval --model_args base=MODEL,prompt=my-prompt --tasks arc_easy

    The arguments of the model: base, prompt, encoding (raw or own: texts as the prompt's rows
    were), dtype, max_gen_toks. `lm_eval` itself loads no models of other packages.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise DependencyError("the harness is an extra: pip install 'foreword[lm-eval]'")
    given = list(context.args)
    is_named = any(word == "--model" or word.startswith("--model=") for word in given)
    sys.argv = ["lm-eval", "run", *([] if is_named else ["--model", "foreword"]), *given]
    _check_options()
    importlib.import_module("foreword.evaluation.lm_eval")  # registers the model
    try:
        importlib.import_module("lm_eval.__main__").cli_evaluate()
    except (ValueError, TypeError, OSError) as error:
        place = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if place.parts[-3:-1] != ("lm_eval", "config"):  # where the harness reads its options
            raise
        raise InputError(f"lm-eval: {error}; {SEE}") from error


def _check_options() -> None:
    """Refuse what the harness's parser does not take, and a call that names no task.

    Raises:
        InputError: what the parser says, in one line.
    """
    harness, said = importlib.import_module("lm_eval._cli").HarnessCLI(), io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed = harness.parse_args()
    except SystemExit as stopped:
        if not stopped.code:  # after --help
            raise
        last = said.getvalue().strip().rpartition("\n")[2]
        raise InputError(f"lm-eval: {last.partition('error: ')[2] or last}; {SEE}") from None
    if not (parsed.tasks or parsed.config):
        raise InputError(f"lm-eval: which tasks? give --tasks, as --tasks arc_easy; {SEE}")
