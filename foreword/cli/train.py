"""`foreword train`: from a data file to a soft prompt."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foreword.cli import early, options, run_file
from foreword.cli.conclusion import conclude, end, kept, where_it_goes_on
from foreword.cli.console import one_line
from foreword.cli.progress import Stop, Trackers, check_trackers, folder_name, run, save
from foreword.cli.run_output import claimed
from foreword.config import DataConfig, EncodingConfig, ObjectiveConfig, TrainConfig
from foreword.errors import InputError

if TYPE_CHECKING:
    from foreword.backbone import Backbone
    from foreword.data.encoding import Row
    from foreword.data.examples import Example
    from foreword.prompt.soft_prompt import SoftPrompt
    from foreword.training.checkpoint import StoredState
    from foreword.training.distributed import Ranks
    from foreword.training.loop import TrainEvent


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
    if seeds > 1:
        check_for_seeds(validation, curves)
    if config.patience and share_of(validation) == 0:
        raise InputError("--patience counts validations: give --validation rows, or leave it out")
    folders = folders_of(output, config, seeds)
    held_out = validation if share_of(validation) is None else None
    early.check(data=[data, held_out], prompts=[init_prompt], model=model)
    from foreword.evaluation import plots
    from foreword.training import distributed
    from foreword.training.preference import objective_of

    objective_of(goal).check(config, has_start=init_prompt is not None)
    ranks = distributed.join()
    options.speak(ranks.is_main)
    stop = Stop()
    with claimed(
        output,
        folders,
        resume=resume,
        overwrite=overwrite,
        is_main=ranks.is_main,
    ):
        if curves:
            plots.check(curves, "--curves")
        if track:
            check_trackers(track)
        examples = read(data, validation, columns, config, goal)
        for task in {example.task for part in examples for example in part}:
            folder_name(task)  # before hours of training, not at the first save
        given = Given(
            model, config, encoding, goal, init_prompt, output, resume, seeds, curves, track
        )
        run_all(given, examples, stop, ranks)
    end(stop, ranks)


@dataclass(frozen=True)
class Given:
    """What the command line asks of the runs of `foreword train`, its rows apart."""

    model: str
    config: TrainConfig
    encoding: EncodingConfig
    goal: ObjectiveConfig
    init_prompt: str | None
    output: str
    resume: bool
    seeds: int
    curves: str | None
    track: str | None


def run_all(
    given: Given,
    examples: "tuple[Sequence[Example], Sequence[Example]]",
    stop: Stop,
    ranks: "Ranks",
) -> None:
    """Run every seed in turn, and keep the best of several; examples are to train on, held out."""
    from foreword.data.template_dates import dated
    from foreword.training import fsdp
    from foreword.training.preference import objective_of
    from foreword.training.seeds import train_seeds

    # What is spread over the processes is loaded beside them first, and moved layer by layer.
    backbone, _ = options.load(given.model, None, device="cpu" if fsdp.is_asked_for() else "auto")
    if backbone.weights:
        options.note(f"the weights of {backbone.name} are {backbone.weights}")
    stored = _stored(given) if given.resume else None
    encoding = dated(
        stored.going_on(given.encoding) if stored else given.encoding,
        backbone.tokenizer,
        backbone.processor,
        recorded=stored.encoding() if stored else None,
    )
    rows, held_out = (
        encode(backbone, part, given.config, encoding, name)
        for part, name in zip(examples, ("training", "validation"), strict=True)
    )
    if ranks.is_main:
        run_file.write(Path(given.output))
    results: dict[int, TrainEvent] = {}
    for one in train_seeds(
        backbone,
        rows,
        given.config,
        given.seeds,
        validation=held_out,
        encoding_config=encoding,
        initial=_initial(given.init_prompt),
        folder=given.output,
        resume=given.resume,
        objective=objective_of(given.goal),
    ):
        place = str(one.folder)
        if given.seeds > 1:
            options.output.print(f"seed {one.seed}:")
        if given.resume:
            options.errors.print(where_it_goes_on(place, one.resumed_after))
        trackers = Trackers(given.track, place, asdict(one.config)) if given.track else None
        last = attend(one.events, place, stop, ranks, trackers)
        if ranks.is_main:
            conclude(last, place, stop, given.curves)
        if last is None or stop.signal:
            return
        results[one.seed] = last
    if given.seeds > 1 and ranks.is_main:
        keep_best(results, given.output)


def _stored(given: Given) -> "StoredState | None":
    """Return the state of the first of the runs that go on; None where none has begun."""
    from foreword.training.checkpoint import read_state
    from foreword.training.folders import STATE_FILE

    for folder in folders_of(given.output, given.config, given.seeds):
        if (folder / STATE_FILE).exists():
            return read_state(folder / STATE_FILE)
    return None


def folders_of(output: str, config: TrainConfig, seeds: int) -> list[Path]:
    """Return the folder of each seed's run."""
    from foreword.training.folders import folder_of, seeds_of

    found = [folder_of(output, one.seed, seeds) for one in seeds_of(config, seeds)]
    return [folder for folder in found if folder is not None]


def attend(
    events: "Iterator[TrainEvent]",
    output: str,
    stop: Stop,
    ranks: "Ranks",
    trackers: Trackers | None,
) -> "TrainEvent | None":
    """Follow one run to its end; of a failure, say what it leaves behind.

    Raises:
        TrainingError, StorageError: the run cannot go on.
    """
    from foreword.errors import StorageError, TrainingError

    try:
        last = run(events, output, stop, ranks, trackers)
    except (TrainingError, StorageError) as error:
        raise type(error)(f"{error}{kept(output)}") from error
    if trackers is not None:
        trackers.close()
    return last


def check_for_seeds(validation: str, curves: str | None) -> None:
    """Refuse several seeds where nothing could choose between them.

    Raises:
        InputError: no validation rows, or one picture for several runs.
    """
    if share_of(validation) == 0:
        raise InputError("--seeds keeps the best by validation: give --validation rows")
    if curves is not None:
        raise InputError("--curves draws one run: leave it out with --seeds, or use --track")


def keep_best(results: "Mapping[int, TrainEvent]", output: str) -> None:
    """Write the best prompt of several seeds, and say how far apart they are."""
    from shlex import quote

    from foreword.training.seeds import spread

    prompts = {seed: event.prompt for seed, event in results.items() if event.prompt is not None}
    found = spread(prompts)
    save(found.best, results[found.best_seed].task_prompts, output)
    options.output.print(f"{found}\nits prompt is saved to {quote(output)}")


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
    if not 0 <= share < 1:
        raise InputError(f"--validation must be a file or a share in [0, 1), got {validation}")
    return split_examples(examples, share, config.seed) if share else (examples, [])


def share_of(validation: str) -> float | None:
    """Return the share of rows to hold out; None where a file is named."""
    try:
        return float(validation)
    except ValueError:
        return None


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
