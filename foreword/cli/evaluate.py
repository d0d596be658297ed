"""Eval command: `foreword eval`, a prompt's score beside the bare model and an instruction.

In: a prompt, a data file. Out: tables or JSON, and where asked for a file of predictions. Computes
no score itself.
"""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli import agreement, comparison, distill, early, options, unused_options
from foreword.cli.console import strict_json
from foreword.cli.counted import counted
from foreword.config import (
    DataConfig,
    DistillConfig,
    EncodingConfig,
    EvalConfig,
    ResamplingConfig,
)
from foreword.errors import InputError

if TYPE_CHECKING:
    from foreword.backbone import Backbone
    from foreword.distillation.agreement import Comparison
    from foreword.evaluation.evaluation import Evaluation, Subject
    from foreword.evaluation.forgetting import Forgetting
    from foreword.evaluation.metrics import MetricChoice
    from foreword.prompt.soft_prompt import SoftPrompt
    from foreword.prompt.stored_prompt import StoredPrompt


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
    """Score the bare model, an instruction and the prompt on the same examples, greedily; with
    --context also how close each comes to the model behind the whole text, answers or none.

    Example: foreword eval --prompt my-prompt --data test.jsonl --instruction "Answer in JSON."
    """
    if unrelated not in (None, "none") and prompt is None:
        raise InputError("--unrelated says what a prompt forgets: give --prompt, or leave it out")
    early.check(data=[data], prompts=[prompt], model=model)
    from foreword.data.examples import read_examples
    from foreword.data.readers import check_held_out
    from foreword.distillation.queries import read_queries

    check_held_out(data)
    whole = distill.context_given(context, None) if context is not None else None
    given = read_queries(data, columns, options.note)[: config.limit] if context is not None else []
    queries = [query.asked for query in given]
    try:
        every = read_examples(data, columns, say=options.note)
    except InputError as error:
        if not queries or predictions:
            raise
        unused_options.check_without_answers(config)
        options.note(f"no task score, only agreement with the whole text: {error}")
        every = []
    choices, examples = comparison.choices_in(config, every), every[: config.limit]
    choice = comparison.metrics_of(config, examples, choices)
    if predictions:
        read = (data, options.file_of(instruction), unrelated)
        comparison.check_predictions(predictions, choice.metrics, *read)
    written = options.text_of(instruction, "--instruction") if instruction else None
    is_given = unrelated not in (None, "none")
    text = options.text_of(f"@{unrelated}", "--unrelated") if is_given else None
    from foreword import chat
    from foreword.distillation.agreement import WHOLE
    from foreword.evaluation.evaluation import Subject
    from foreword.evaluation.forgetting import forgetting, unrelated_text

    backbone, soft_prompt = options.load(model, prompt)
    rows = comparison.rows_of_bare(soft_prompt, examples)
    asked = [Subject("bare model", encoding=rows)]
    if written is not None:
        asked.append(Subject("instruction", instruction=written, encoding=rows))
    text_before = _whole(backbone, whole, soft_prompt)
    chat.check_template(backbone, text_before)
    if text_before is not None:
        asked.append(Subject(WHOLE, prompt=text_before))
    if soft_prompt is not None:
        asked.append(Subject("soft prompt", prompt=soft_prompt))
    if unrelated is None:
        text = unrelated_text()
    comparison.check_rows(backbone, asked, examples, choice, config, choices)
    forgot = None  # first, since it is short: a text that cannot be read costs nothing then
    is_wished = unrelated is not None or not backbone.reads_apart
    if soft_prompt is not None and text is not None and is_wished:
        forgot = forgetting(backbone, soft_prompt, text, config, resampling)
    beside = None
    if text_before is not None:
        others = [subject for subject in asked if subject.name != WHOLE]
        beside = _beside(backbone, text_before, queries, others, config, resampling)
    results = []
    if examples:
        results = comparison.ask(backbone, asked, examples, choice, config, resampling, choices)
    try:
        if predictions:
            comparison.write_predictions(predictions, examples, results, choice.metrics)
    finally:  # the scores are shown, whatever becomes of the file
        _show(results, choice, resampling, forgot, as_json, beside, len(queries))


def _whole(
    backbone: "Backbone", context: "str | StoredPrompt | None", prompt: "SoftPrompt | None"
) -> "SoftPrompt | None":
    """Return a context as a prompt, on the day of the prompt that it is compared with, where the
    chat template prints one.
    """
    from foreword import chat
    from foreword.data.template_dates import prints_day
    from foreword.named_text import text_prompt
    from foreword.prompt.soft_prompt import SoftPrompt

    if context is None:
        return None
    if not isinstance(context, str):
        return SoftPrompt.from_stored(context)
    day = chat.encoding_of(prompt).date
    is_printed = prints_day(backbone.tokenizer, backbone.processor)
    told = EncodingConfig.saved({"date": day}) if day and is_printed else None
    return text_prompt(backbone, context, told)


def _beside(
    backbone: "Backbone",
    text: "SoftPrompt",
    queries: "list[Any]",
    subjects: "list[Subject]",
    config: EvalConfig,
    resampling: ResamplingConfig,
) -> "Comparison":
    """Lay subjects beside the model behind the whole text."""
    from foreword.distillation.agreement import compare

    kept = DistillConfig(answer_tokens=config.max_new_tokens, answer_batch=config.batch_size)
    with counted("the whole text answers", len(queries)) as count:
        return compare(backbone, text, queries, subjects, kept, resampling, on_answer=count)


def _show(
    results: "list[Evaluation]",
    choice: "MetricChoice",
    resampling: ResamplingConfig,
    forgot: "Forgetting | None",
    as_json: bool,
    beside: "Comparison | None" = None,
    num_queries: int = 0,
) -> None:
    if as_json:
        said = comparison.as_dict(results, resampling) | {"forgetting": _as_dict(forgot)}
        if beside is not None:
            said["agreement"] = agreement.as_dict(beside)
        options.output.print(strict_json(said))
        return
    if beside is not None:
        options.output.print(agreement.table(beside, num_queries, resampling))
    if results:
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
