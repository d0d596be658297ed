"""Eval command: `foreword eval`, a prompt's score beside the bare model and an instruction.

In: a prompt, a data file. Out: tables or JSON, and where asked for a file of predictions. Computes
no score itself.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from foreword.cli import comparison, distill, options
from foreword.cli.console import strict_json
from foreword.config import DataConfig, EvalConfig, ResamplingConfig
from foreword.errors import InputError

if TYPE_CHECKING:
    from foreword.evaluation.evaluation import Evaluation
    from foreword.evaluation.forgetting import Forgetting
    from foreword.evaluation.metrics import MetricChoice


@options.from_configs(DataConfig, EvalConfig, ResamplingConfig)
def command(
    columns: DataConfig,
    config: EvalConfig,
    resampling: ResamplingConfig,
    data: options.Data,
    prompt: options.PromptDirectory = None,
    model: options.Model = None,
    instruction: options.Instruction = None,
    context: distill.Context = None,
    unrelated: Annotated[
        str | None,
        typer.Option(
            help="text file for the forgetting check, or 'none'; default: a text of foreword's own"
        ),
    ] = None,
    predictions: options.Predictions = None,
    as_json: options.AsJson = False,
) -> None:
    """Score the bare model, an instruction and the prompt on the same examples, greedily.

    Example: foreword eval --prompt my-prompt --data test.jsonl --instruction "Answer in JSON."
    """
    from foreword.data.examples import read_examples
    from foreword.data.readers import check_held_out
    from foreword.evaluation.evaluation import Subject
    from foreword.evaluation.forgetting import forgetting, unrelated_text
    from foreword.evaluation.metrics import choose
    from foreword.named_text import text_prompt

    if unrelated not in (None, "none") and prompt is None:
        raise InputError("--unrelated says what a prompt forgets: give --prompt, or leave it out")
    check_held_out(data)
    examples = read_examples(data, columns, say=options.note)[: config.limit]
    has_calls = any((example.answer or {}).get("tool_calls") for example in examples)
    choice = choose(config.metrics, [example.completion for example in examples], has_calls)
    if predictions:
        read = (data, options.file_of(instruction), unrelated)
        comparison.check_predictions(predictions, choice.metrics, *read)
    written = options.text_of(instruction, "--instruction") if instruction else None
    text = None if unrelated == "none" else unrelated_text()
    if unrelated not in (None, "none"):
        text = options.text_of(f"@{unrelated}", "--unrelated")
    backbone, soft_prompt = options.load(model, prompt)
    rows = comparison.rows_of_bare(soft_prompt, examples)
    asked = [Subject("bare model", encoding=rows)]
    if written is not None:
        asked.append(Subject("instruction", instruction=written, encoding=rows))
    if context is not None:
        whole = distill.text_given(context, None)
        asked.append(Subject("whole text", prompt=text_prompt(backbone, whole)))
    if soft_prompt is not None:
        asked.append(Subject("soft prompt", prompt=soft_prompt))
    forgot = None  # first, since it is short: a text that cannot be read costs nothing then
    is_wished = unrelated is not None or not backbone.reads_apart
    if soft_prompt is not None and text is not None and is_wished:
        forgot = forgetting(backbone, soft_prompt, text, config, resampling)
    results = comparison.ask(backbone, asked, examples, choice, config, resampling)
    try:
        if predictions:
            comparison.write_predictions(predictions, examples, results, choice.metrics)
    finally:  # the scores are shown, whatever becomes of the file
        _show(results, choice, resampling, forgot, as_json)


def _show(
    results: "list[Evaluation]",
    choice: "MetricChoice",
    resampling: ResamplingConfig,
    forgot: "Forgetting | None",
    as_json: bool,
) -> None:
    if as_json:
        found = [comparison.as_dict(result, results[0], resampling) for result in results]
        options.output.print(strict_json({"results": found, "forgetting": _as_dict(forgot)}))
        return
    options.output.print(comparison.scores_table(results, choice.metrics, resampling))
    if len(results) > 1:
        options.output.print(comparison.differences_table(results, choice.metrics, resampling))
    if forgot is not None:
        options.output.print(say(forgot))


def say(forgot: "Forgetting") -> str:
    """Return in words what the prompt does to unrelated text."""
    from foreword.evaluation.metrics import METRICS

    loss = METRICS["loss"]
    change = comparison.shown(forgot.change, loss, is_difference=True)
    return (
        "unrelated text, mean loss of a token: "
        f"bare model {comparison.shown(forgot.without, loss)}, "
        f"soft prompt {comparison.shown(forgot.behind, loss)}; change {change}"
        + (" *" if forgot.change.excludes_zero else "")
    )


def _as_dict(forgot: "Forgetting | None") -> dict[str, object] | None:
    if forgot is None:
        return None
    return {
        "without": forgot.without.as_dict(),
        "behind": forgot.behind.as_dict(),
        "change": forgot.change.as_dict(),
    }
