"""`foreword train`: from a data file to a soft prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from foreword.cli import early, options
from foreword.cli.conclusion import end
from foreword.cli.console import one_line
from foreword.cli.progress import Stop, check_trackers, folder_name
from foreword.cli.run_output import check_apart, claimed
from foreword.cli.seed_runs import Given, check_validation, folders_of, follow, share_of
from foreword.config import DataConfig, EncodingConfig, ObjectiveConfig, TrainConfig

if TYPE_CHECKING:
    from foreword.backbone import Backbone
    from foreword.data.encoding import Row
    from foreword.data.examples import Example
    from foreword.prompt.soft_prompt import SoftPrompt
    from foreword.training.distributed import Ranks


@options.from_configs(DataConfig, EncodingConfig, TrainConfig, ObjectiveConfig)
def command(
    columns: DataConfig,
    encoding: EncodingConfig,
    config: TrainConfig,
    goal: ObjectiveConfig,
    data: Annotated[str, typer.Option(help="file of rows, directory of them, or Hub id")],
    output: Annotated[str, typer.Option(help="directory that the prompt is written to")],
    model: Annotated[
        str, typer.Option(help="'smollm2-135m', a Hub id, a directory or a .gguf file")
    ] = "smollm2-135m",
    validation: Annotated[
        str, typer.Option(help="rows as for --data, or the share of --data to hold out")
    ] = "0.1",
    init_prompt: Annotated[
        str | None,
        typer.Option(
            "--init-prompt",
            "--init-from",
            help="directory or Hub id of a soft prompt to start from",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on where a run into --output stopped, bit for bit")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="begin anew in an --output that holds a run or an adapter"
        ),
    ] = False,
    seeds: Annotated[
        int, typer.Option(help="runs, each from the next seed; the best by validation is kept")
    ] = 1,
    curves: Annotated[
        str | None, typer.Option(help="draw loss, validation and learning rate into this PNG")
    ] = None,
    track: Annotated[
        str | None,
        typer.Option(
            help="trackers that Accelerate knows, as tensorboard or wandb; a comma between"
        ),
    ] = None,
) -> None:
    """Train a soft prompt on a data file; Ctrl-C keeps the best so far, --resume goes on.

    Example: foreword train --data rows.jsonl --output my-prompt
    Many devices: accelerate launch -m foreword train ... (the same options)
    """
    check_validation(validation, config, seeds, curves)
    goal.check(config, has_start=init_prompt is not None)
    encoding.check_given()
    config.check_step()
    folders = folders_of(output, config, seeds)
    held_out = validation if share_of(validation) is None else None
    early.check(data=[data, held_out], prompts=[init_prompt], model=model)
    reads = {"--data": data, "--validation": held_out, "--init-prompt": init_prompt}
    check_apart(output, reads | {"--model": model})
    from foreword.evaluation import plots
    from foreword.training import launch

    options.speak(launch.is_main())
    stop = Stop()
    with claimed(output, folders, resume=resume, overwrite=overwrite, is_main=launch.is_main()):
        if curves:
            plots.check(curves, "--curves")
        examples = read(data, validation, columns, config, goal)
        every = (example for part in examples for example in part)
        encoding.check_given(has_turns=any(not isinstance(one.prompt, str) for one in every))
        for task in {example.task for part in examples for example in part}:
            folder_name(task)  # before hours of training, not at the first save
        if track:
            check_trackers(track)
        from foreword.training import distributed

        ranks = distributed.join()
        asked = TrainCall(model, config, encoding, goal, init_prompt)
        given = Given(output, resume, overwrite, seeds, curves, track, columns)
        run_all(asked, given, examples, stop, ranks)
    end(stop, ranks)


@dataclass(frozen=True)
class TrainCall:
    """What `foreword train` is to learn, its rows apart."""

    model: str
    config: TrainConfig
    encoding: EncodingConfig
    goal: ObjectiveConfig
    init_prompt: str | None


def run_all(
    asked: TrainCall,
    given: Given,
    examples: "tuple[Sequence[Example], Sequence[Example]]",
    stop: Stop,
    ranks: "Ranks",
) -> None:
    """Run every seed in turn, and keep the best of several; examples are to train on, held out."""
    from foreword.training import launch, start, start_rows
    from foreword.training.preference import objective_of
    from foreword.training.seeds import stored_of, train_seeds

    # What is spread over the processes is loaded beside them first, and moved layer by layer.
    place = "cpu" if launch.is_fsdp_asked_for() else "auto"
    backbone, _ = options.load(asked.model, None, device=place)
    if backbone.weights:
        options.note(f"the weights of {backbone.name} are {backbone.weights}")
    initial = _initial(asked.init_prompt)
    if initial is not None:
        backbone.check(initial)
    settled, _ = start.settled(asked.config, initial)  # the prompt's P leaves room, and its form
    stored = stored_of(given.output, asked.config, given.seeds) if given.resume else None
    objective = objective_of(asked.goal)
    encoding = start_rows.written(backbone, asked.encoding, initial, objective, stored)
    rows, held_out = (
        encode(backbone, part, settled, encoding, name)
        for part, name in zip(examples, ("training", "validation"), strict=True)
    )
    runs = train_seeds(
        backbone,
        rows,
        asked.config,
        given.seeds,
        validation=held_out,
        encoding_config=encoding,
        initial=initial,
        folder=given.output,
        resume=given.resume,
        objective=objective,
        clear=given.clear,
    )
    results = follow(runs, given, stop, ranks)
    if ranks.is_main and results and asked.goal.objective == "likelihood":
        metrics = [event.prompt.facts["metrics"] for event in results.values() if event.prompt]
        exact = max(one.get("validation", {}).get("exact", 1.0) for one in metrics)
        if (said := no_better([one.completion for one in examples[1]], exact)) is not None:
            options.note(said)


def no_better(answers: Sequence[str], exact: float) -> str | None:
    """Say that one answer, given every time, would be right for as many held-out rows as a prompt;
    None where it would not, or where answers name no classes.

    Args:
        answers: of the held-out rows.
        exact: the share of them that the prompt answers.
    """
    from foreword.data.class_names import commonest

    found = commonest(answers)
    if found is None or exact > found[1]:
        return None
    return (
        f"who always answers {found[0]!r} is right for {found[1]:.0%} of the held-out rows, and "
        f"the prompt for {exact:.0%}: it has not learned to tell the classes apart; train longer "
        "(--num-steps) or on more rows, or read its answers (foreword eval --predictions FILE)"
    )


def read(
    data: str,
    validation: str,
    columns: DataConfig,
    config: TrainConfig,
    goal: ObjectiveConfig,
) -> "tuple[Sequence[Example], Sequence[Example]]":
    """Read the training examples and the held-out ones, from a file or as a share."""
    from foreword.data.examples import read_examples
    from foreword.data.readers import check_held_out
    from foreword.data.validation_split import split_examples

    share = share_of(validation)
    if share is None:
        check_held_out(validation)
    reading = partial(
        read_examples,
        config=columns,
        task_column=config.task_column,
        say=options.note,
        are_pairs=goal.objective != "likelihood",
    )
    examples = reading(data)
    if share is None:
        return examples, reading(validation)
    return split_examples(examples, share, config.seed) if share else (examples, [])


def encode(
    backbone: "Backbone",
    examples: "Sequence[Example]",
    config: TrainConfig,
    encoding: EncodingConfig,
    name: str,
) -> "list[Row]":
    """Encode examples, and say what they came to."""
    from foreword.data.marked_row import marked
    from foreword.training.guards import truncation
    from foreword.training.rows import encode_texts

    if not examples:
        return []
    rows, report = encode_texts(backbone, examples, config, encoding)
    options.output.print(f"{name}: {report}")
    for said in filter(None, [*report.notes, truncation(report)]):
        options.note(f"{name}: {said}")
    if name == "training":
        shown = one_line(marked(rows[0], backbone.tokenizer))
        options.output.print(f"first row, its labels in ⟦⟧: {shown}")
    return rows


def _initial(directory: str | None) -> "SoftPrompt | None":
    from foreword.prompt.soft_prompt import SoftPrompt

    return SoftPrompt.load(directory) if directory else None
