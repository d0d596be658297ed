"""`foreword compare`: prompts, an instruction and the bare model in one table and one picture."""

import json
from typing import Annotated

import typer

from foreword.cli import options, subjects
from foreword.config import DataConfig, EvalConfig, ResamplingConfig
from foreword.errors import InputError


@options.from_configs(DataConfig, EvalConfig, ResamplingConfig)
def command(
    columns: DataConfig,
    config: EvalConfig,
    resampling: ResamplingConfig,
    prompts: Annotated[
        list[str], typer.Argument(help="directories of soft prompts; the first is compared with")
    ],
    data: options.Data,
    model: options.Model = None,
    instruction: options.Instruction = None,
    png: Annotated[str | None, typer.Option(help="draw the scores into this PNG file")] = None,
    predictions: options.Predictions = None,
    as_json: options.AsJson = False,
) -> None:
    """Compare prompts with each other, the bare model and an instruction on the same examples.

    Example: foreword compare first-prompt second-prompt --data test.jsonl --png scores.png
    """
    from foreword.data import read_examples
    from foreword.evaluation import Subject
    from foreword.metrics import choose
    from foreword.prompt import SoftPrompt

    if len(set(prompts)) < len(prompts):
        raise InputError("a prompt was given twice; give each directory once")
    if png:
        from foreword import plots

        plots.check(png)
    examples = read_examples(data, columns)[: config.limit]
    choice = choose(config.metrics, [example.completion for example in examples])
    written = options.text_of(instruction, "--instruction") if instruction else None
    loaded = {name: SoftPrompt.load(name) for name in prompts}
    backbone, _ = options.load(model, prompts[0])
    for prompt in loaded.values():
        backbone.compile(prompt)  # refuses a wrong base by name, before anything runs
    asked = [Subject(name, prompt=prompt) for name, prompt in loaded.items()]
    if written is not None:
        asked.append(Subject("instruction", instruction=written))
    asked.append(Subject("bare model"))
    results = subjects.ask(backbone, asked, examples, choice, config, resampling)
    if predictions:
        subjects.write_predictions(predictions, examples, results, choice.metrics)
    if png:
        plots.draw_scores(png, results, choice.metrics)
    if as_json:
        found = [subjects.as_dict(result, results[0], resampling) for result in results]
        options.output.print(json.dumps({"results": found}))
        return
    options.output.print(subjects.scores_table(results, choice.metrics, resampling))
    options.output.print(subjects.differences_table(results, choice.metrics, resampling))
