"""Lm-eval command: `foreword lm-eval`, EleutherAI's harness with prompts among its models.

In: the harness's own arguments. Out: what the harness prints. Knows none of its options but the
name of the model.
"""

import importlib
import importlib.util
import sys

import typer

from foreword.errors import DependencyError

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def command(context: typer.Context) -> None:
    """Run lm-evaluation-harness with `--model foreword`; every option is its own.

    Example: foreword lm-eval --model_args base=MODEL,prompt=my-prompt --tasks arc_easy

    The arguments of the model: base, prompt, encoding (raw or own: texts as the prompt's rows
    were), dtype, max_gen_toks. `lm_eval` itself loads no models of other packages.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise DependencyError("the harness is an extra: pip install 'foreword[lm-eval]'")
    importlib.import_module("foreword.evaluation.lm_eval")  # registers the model
    given = list(context.args)
    is_named = any(word == "--model" or word.startswith("--model=") for word in given)
    sys.argv = ["lm-eval", "run", *([] if is_named else ["--model", "foreword"]), *given]
    importlib.import_module("lm_eval.__main__").cli_evaluate()
