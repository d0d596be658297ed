"""`foreword eval`: a prompt's score on a data file, beside the bare model and an instruction."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from foreword.cli import options
from foreword.config import DataConfig


@options.from_configs(DataConfig)
def command(
    columns: DataConfig,
    data: Annotated[str, typer.Option(help="examples that the prompt was not trained on")],
    prompt: options.PromptDirectory = None,
    model: options.Model = None,
    instruction: Annotated[
        str | None, typer.Option(help="a hand-written instruction to compare with, or @FILE")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="evaluate the first N examples")] = None,
    batch_size: Annotated[int, typer.Option(help="rows answered at once")] = 32,
    max_new_tokens: Annotated[int, typer.Option(help="longest answer in tokens")] = 128,
    predictions: Annotated[
        str | None, typer.Option(help="write every answer to this JSONL file")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Score the bare model, an instruction and the prompt on the same examples, greedily.

    Example: foreword eval --prompt my-prompt --data test.jsonl --instruction "Answer in JSON."
    """
    from foreword.data import read_examples
    from foreword.evaluation import System, evaluate

    examples = read_examples(data, columns)[:limit]
    backbone, soft_prompt = options.load(model, prompt)
    systems = [System("bare model")]
    if instruction:
        text = Path(instruction[1:]).read_text() if instruction.startswith("@") else instruction
        systems.append(System("instruction", instruction=text))
    if soft_prompt is not None:
        systems.append(System("soft prompt", prompt=soft_prompt))
    results = []
    with Progress(console=options.errors, transient=True) as progress:
        for system in systems:
            task = progress.add_task(system.name, total=len(examples))
            results.append(
                evaluate(
                    backbone,
                    system,
                    examples,
                    on_answer=partial(progress.advance, task),
                    batch_size=batch_size,
                    max_new_tokens=max_new_tokens,
                )
            )
    if predictions:
        lines = [
            {"prompt": example.prompt, "expected": example.completion}
            | {result.system.name: result.answers[index].text for result in results}
            for index, example in enumerate(examples)
        ]
        Path(predictions).write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = [{"system": r.system.name} | dict(r.scores) | {"seconds": r.seconds} for r in results]
    if as_json:
        options.output.print(json.dumps(rows))
        return
    table = Table("system", *results[0].scores, "seconds", title=f"{len(examples)} examples")
    for result in results:
        scores = [f"{score:.1%}" for score in result.scores.values()]
        table.add_row(result.system.name, *scores, f"{result.seconds:.1f}")
    options.output.print(table)
