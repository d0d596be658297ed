"""Compare command: `foreword compare`, prompts, an instruction and the bare model in one table.

In: directories of prompts, a data file. Out: tables or JSON, and where asked for a picture and a
file of predictions. Computes no score itself.
"""

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from foreword.cli import comparison, early, options
from foreword.cli.console import strict_json
from foreword.config import DataConfig, EvalConfig, ResamplingConfig
from foreword.errors import InputError

if TYPE_CHECKING:
    from foreword.evaluation.evaluation import Evaluation
    from foreword.evaluation.metrics import MetricChoice

Ensemble = Literal["vote", "average"]


@options.from_configs(DataConfig, EvalConfig, ResamplingConfig)
def command(
    columns: DataConfig,
    config: EvalConfig,
    resampling: ResamplingConfig,
    prompts: Annotated[
        list[str],
        typer.Argument(
            help="directories or Hub ids of soft prompts; the others are compared with the first"
        ),
    ],
    data: options.Data,
    model: options.Model = None,
    instruction: options.Instruction = None,
    ensemble: Annotated[
        Ensemble | None,
        typer.Option(
            help="also let the prompts answer together: the answer that most give, or one decoded "
            "from the mean of their probabilities"
        ),
    ] = None,
    png: Annotated[str | None, typer.Option(help="draw the scores into this PNG file")] = None,
    predictions: options.Predictions = None,
    as_json: options.AsJson = False,
) -> None:
    """Compare prompts with each other, the bare model and an instruction on the same examples.

    Example: foreword compare first-prompt second-prompt --data test.jsonl --png scores.png
    """
    if len(set(prompts)) < len(prompts):
        raise InputError("a prompt was given twice; give each directory once")
    if ensemble and len(prompts) < 2:
        raise InputError(f"--ensemble {ensemble} needs two prompts or more, got {prompts[0]} alone")
    early.check(data=[data], prompts=prompts, model=model)
    from foreword.data.examples import read_examples
    from foreword.data.readers import check_held_out
    from foreword.evaluation.metrics import check_vote

    if png:
        from foreword.evaluation import plots

        plots.check(png)
    check_held_out(data)
    every = read_examples(data, columns, say=options.note)
    choices, examples = comparison.choices_in(config, every), every[: config.limit]
    choice = comparison.metrics_of(config, examples, choices)
    if ensemble == "vote":
        check_vote(choice.metrics)
    if predictions:
        read = (data, options.file_of(instruction))
        comparison.check_predictions(predictions, choice.metrics, *read)
    written = options.text_of(instruction, "--instruction") if instruction else None
    from foreword.evaluation.ensembles import check_alike
    from foreword.evaluation.evaluation import Subject, voted
    from foreword.prompt.soft_prompt import SoftPrompt

    loaded = {name: SoftPrompt.load(name) for name in prompts}
    backbone, _ = options.load(model, prompts[0])
    for prompt in loaded.values():
        backbone.compile(prompt)  # refuses a wrong base by name, before anything runs
    rows = comparison.rows_of_bare(loaded[prompts[0]], examples)
    asked = [Subject(name, prompt=prompt) for name, prompt in loaded.items()]
    together, told, bare = (
        comparison.unused(name, loaded)
        for name in (f"{ensemble} of {len(prompts)}", "instruction", "bare model")
    )
    if ensemble == "average":
        check_alike(list(loaded.values()))
        asked.append(Subject(together, members=tuple(loaded.values())))
    if written is not None:
        asked.append(Subject(told, instruction=written, encoding=rows))
    asked.append(Subject(bare, encoding=rows))
    comparison.check_rows(backbone, asked, examples, choice, config, choices)
    results = comparison.ask(backbone, asked, examples, choice, config, resampling, choices)
    if ensemble == "vote":
        members = results[: len(prompts)]
        results.insert(len(prompts), voted(together, members, choice.metrics, resampling))
    with ExitStack() as outputs:  # last first, and all of them, whatever becomes of the others
        outputs.callback(_show, results, choice, resampling, as_json)
        if png:
            outputs.callback(plots.draw_scores, png, results, choice.metrics)
        if predictions:
            comparison.write_predictions(predictions, examples, results, choice.metrics)


def _show(
    results: "list[Evaluation]", choice: "MetricChoice", resampling: ResamplingConfig, as_json: bool
) -> None:
    if as_json:
        options.output.print(strict_json(comparison.as_dict(results, resampling)))
        return
    options.output.print(comparison.scores_table(results, choice.metrics, resampling))
    options.output.print(comparison.differences_table(results, choice.metrics, resampling))
