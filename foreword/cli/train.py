"""`foreword train`: from a data file to a soft prompt."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foreword.cli import options
from foreword.cli.progress import Stop, Trackers, run, save
from foreword.config import DataConfig, EncodingConfig, TrainConfig

if TYPE_CHECKING:
    from foreword.backbone import Backbone
    from foreword.data.encoding import Row
    from foreword.data.examples import Example
    from foreword.prompt.soft_prompt import SoftPrompt
    from foreword.training.checkpoint import StoredState
    from foreword.training.distributed import Ranks
    from foreword.training.loop import TrainEvent


@options.from_configs(DataConfig, EncodingConfig, TrainConfig)
def command(
    columns: DataConfig,
    encoding: EncodingConfig,
    config: TrainConfig,
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
    from dataclasses import asdict

    from foreword.evaluation import plots
    from foreword.storage import check_writable
    from foreword.training import distributed, fsdp
    from foreword.training.seeds import folder_of, seeds_of, train_seeds

    ranks = distributed.join()
    options.speak(ranks.is_main)
    check_writable(output)
    if curves:
        plots.check_matplotlib()
    folders = [folder_of(output, one.seed, seeds) for one in seeds_of(config, seeds)]
    if seeds > 1:
        check_for_seeds(validation, curves)
    for folder in () if resume else folders:
        refuse_to_overwrite(str(folder))
    train_examples, held_out = read(data, validation, columns, config)
    # What is spread over the processes is loaded beside them first, and moved layer by layer.
    backbone, _ = options.load(model, None, device="cpu" if fsdp.is_asked_for() else "auto")
    rows, held_out_rows = (
        encode(backbone, part, config, encoding, name)
        for part, name in ((train_examples, "training"), (held_out, "validation"))
    )
    stop = Stop()
    results: dict[int, TrainEvent] = {}
    for one in train_seeds(
        backbone,
        rows,
        config,
        seeds,
        validation=held_out_rows,
        encoding_config=encoding,
        initial=_initial(init_prompt),
        folder=output,
        resume=resume,
    ):
        place = str(one.folder)
        if seeds > 1:
            options.output.print(f"seed {one.seed}:")
        if resume:
            options.errors.print(where_it_goes_on(place, one.resumed_after))
        trackers = Trackers(track, place, asdict(one.config)) if track else None
        last = attend(one.events, place, stop, ranks, trackers)
        if ranks.is_main:
            conclude(last, place, stop, curves)
        if last is None or stop.signal:
            break
        results[one.seed] = last
    if seeds > 1 and len(results) == seeds and ranks.is_main:
        keep_best(results, output)
    code = 128 + stop.signal if stop.signal else 0
    if ranks.size > 1:
        distributed.leave(ranks)
        options.end_at_once(code)
    if code:
        raise typer.Exit(code)


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
        raise type(error)(f"{error}{_kept(output)}") from error
    if trackers is not None:
        trackers.close()
    return last


def check_for_seeds(validation: str, curves: str | None) -> None:
    """Refuse several seeds where nothing could choose between them.

    Raises:
        InputError: no validation rows, or one picture for several runs.
    """
    from foreword.errors import InputError

    if _share(validation) == 0:
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


def where_it_goes_on(output: str, step: int | None) -> str:
    """Say after which step a run goes on."""
    from foreword.training.checkpoint import STATE_FILE

    if step is not None:
        return f"goes on after step {step}, from {Path(output) / STATE_FILE}"
    return f"nothing was saved in {output} yet: begins at step 1"


def refuse_to_overwrite(output: str) -> None:
    """Refuse to begin where an unfinished run would be lost.

    Raises:
        InputError: says how to go on, and how to begin anew.
    """
    from foreword.errors import InputError
    from foreword.training.checkpoint import STATE_FILE, read_state

    path = Path(output) / STATE_FILE
    if path.exists() and not (progress := read_state(path).progress()).is_finished:
        raise InputError(
            f"{output} holds a run that stopped at step {progress.step}; go on with it with "
            f"--resume, choose another --output, or remove {path}"
        )


def read(
    data: str, validation: str, columns: DataConfig, config: TrainConfig
) -> "tuple[Sequence[Example], Sequence[Example]]":
    """Read the training examples and the held-out ones, from a file or as a share."""
    from foreword.data.examples import read_examples
    from foreword.data.readers import check_held_out
    from foreword.data.validation_split import split_examples
    from foreword.errors import InputError

    share = _share(validation)
    if share is None:
        check_held_out(validation)
    examples = read_examples(data, columns, config.task_column, options.note)
    if share is None:
        return examples, read_examples(validation, columns, config.task_column, options.note)
    if not 0 <= share < 1:
        raise InputError(f"--validation must be a file or a share in [0, 1), got {validation}")
    return split_examples(examples, share, config.seed) if share else (examples, [])


def _share(validation: str) -> float | None:
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
    from foreword.training.guards import truncation
    from foreword.training.rows import encode_texts

    if not examples:
        return []
    rows, report = encode_texts(backbone, examples, config, encoding)
    options.output.print(f"{name}: {report}")
    for said in filter(None, [*report.notes, truncation(report)]):
        options.note(f"{name}: {said}")
    return rows


def _initial(directory: str | None) -> "SoftPrompt | None":
    from foreword.prompt.soft_prompt import SoftPrompt

    return SoftPrompt.load(directory) if directory else None


def _kept(output: str) -> str:
    """Say what a run that cannot go on leaves behind."""
    from foreword.errors import ForewordError
    from foreword.training.checkpoint import STATE_FILE, read_state

    try:
        stored = read_state(Path(output) / STATE_FILE)
    except ForewordError:
        return ""
    best = stored.best()
    prompt = f"the best prompt, of step {best.facts['metrics']['step']}, and " if best else ""
    return f"; {output} holds {prompt}the training state of step {stored.progress().step}"


def conclude(last: "TrainEvent | None", output: str, stop: Stop, curves: str | None = None) -> None:
    """Write the prompt of a run that was stopped, draw the curves, and say what came of it."""
    from foreword.evaluation import plots
    from foreword.training.checkpoint import STATE_FILE, read_state

    path = Path(output) / STATE_FILE
    if not path.exists():
        options.errors.print("stopped before the first step was saved")
        return
    stored = read_state(path)
    if curves:
        plots.draw_history(stored.history(), Path(curves))
        options.output.print(f"curves: {curves}")
    if stop.signal:
        prompt = stored.result()
        save(prompt, stored.task_results(), output)
        kind = "best so far" if stored.best() else "newest"
        options.errors.print(
            f"stopped after step {stored.progress().step}; the {kind} prompt, of step "
            f"{prompt.facts['metrics']['step']}, is in {output}; the same command with --resume "
            "goes on"
        )
    elif last is not None:
        summarize(last, output, stored)


def summarize(last: "TrainEvent", output: str, stored: "StoredState") -> None:
    """Say from what to what, how long, how large, and what to type next."""
    from shlex import quote

    prompt, history = last.prompt, stored.history()
    assert prompt is not None
    metrics = prompt.facts["metrics"]
    shown = ""
    if held_out := metrics.get("validation"):
        first = history.validations[0]
        shown = (
            f", validation {first[1]:.3f} at step {first[0]}, {held_out['loss']:.3f} at its best "
            f"({held_out['exact']:.0%} exact)"
        )
    tasks = f", each task's own to {output}/tasks" if last.task_prompts else ""
    options.output.print(
        f"{prompt.num_virtual_tokens} virtual tokens ({prompt.form}), "
        f"{prompt.num_bytes / 1e6:.2f} MB, the prompt of step {metrics['step']} of "
        f"{last.num_steps} in {stored.progress().seconds:.0f} s\n"
        f"loss {history.losses[0]:.3f} at first, {metrics['training_loss']:.3f} there{shown}\n"
        f"saved to {output}{tasks}\n\n"
        f"try it:   foreword chat --prompt {quote(output)}\n"
        f"look:     foreword show --prompt {quote(output)}\n"
        f"measure:  foreword eval --prompt {quote(output)} --data FILE"
    )
