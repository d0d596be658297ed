"""`foreword train`: from a data file to a soft prompt."""

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from foreword.cli import options
from foreword.config import DataConfig, EncodingConfig, TrainConfig

if TYPE_CHECKING:
    from foreword.backbone import Backbone
    from foreword.data import Example
    from foreword.encoding import Row
    from foreword.prompt import SoftPrompt
    from foreword.training import TrainEvent


@options.from_configs(DataConfig, EncodingConfig, TrainConfig)
def command(
    columns: DataConfig,
    encoding: EncodingConfig,
    config: TrainConfig,
    data: Annotated[str, typer.Option(help="JSONL, CSV, Parquet or a datasets directory")],
    output: Annotated[str, typer.Option(help="directory that the prompt is written to")],
    model: Annotated[
        str, typer.Option(help="'smollm2-135m', a Hub id, a directory or a .gguf file")
    ] = "smollm2-135m",
    validation: Annotated[
        str, typer.Option(help="a file of examples, or the share of --data to hold out")
    ] = "0.1",
    init_from: Annotated[
        str | None, typer.Option(help="directory of a soft prompt to start from")
    ] = None,
) -> None:
    """Train a soft prompt on a data file; Ctrl-C keeps the best so far.

    Example: foreword train --data rows.jsonl --output my-prompt
    """
    from foreword.artifact import check_writable
    from foreword.training import train

    check_writable(output)
    train_examples, held_out = read(data, validation, columns, config.seed)
    backbone, _ = options.load(model, None)
    rows, held_out_rows = (
        encode(backbone, part, config, encoding, name)
        for part, name in ((train_examples, "training"), (held_out, "validation"))
    )
    initial = _initial(init_from)
    events = train(
        backbone,
        rows,
        config,
        validation=held_out_rows,
        encoding_config=encoding,
        initial=initial,
    )
    started = time.perf_counter()
    last = run(events, output)
    if last is not None:
        summarize(last, output, time.perf_counter() - started)


def read(
    data: str, validation: str, columns: DataConfig, seed: int
) -> "tuple[Sequence[Example], Sequence[Example]]":
    """Read the training examples and the held-out ones, from a file or as a share."""
    from foreword.data import read_examples, split_examples
    from foreword.errors import InputError

    examples = read_examples(data, columns)
    try:
        share = float(validation)
    except ValueError:
        return examples, read_examples(validation, columns)
    if not 0 <= share < 1:
        raise InputError(f"--validation must be a file or a share in [0, 1), got {validation}")
    return split_examples(examples, share, seed) if share else (examples, [])


def encode(
    backbone: "Backbone",
    examples: "Sequence[Example]",
    config: TrainConfig,
    encoding: EncodingConfig,
    name: str,
) -> "list[Row]":
    """Encode examples, and say what they came to."""
    from foreword.training import encode_texts

    if not examples:
        return []
    rows, report = encode_texts(backbone, examples, config, encoding)
    options.output.print(f"{name}: {report}")
    return rows


def _initial(directory: str | None) -> "SoftPrompt | None":
    from foreword.prompt import SoftPrompt

    return SoftPrompt.load(directory) if directory else None


def run(events: "Iterator[TrainEvent]", output: str) -> "TrainEvent | None":
    """Show the run on one line and write every prompt that it yields; return the last event with
    one.
    """
    saved: TrainEvent | None = None
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=options.errors) as progress:
        task = progress.add_task("training", total=None, state="")
        validated = ""
        try:
            for event in events:
                if event.validation:
                    validated = (
                        f" · validation {event.validation.loss:.3f}, "
                        f"{event.validation.exact:.0%} exact"
                    )
                speed = event.num_tokens / event.seconds
                state = f"loss {event.loss:.3f}{validated} · {speed:.0f} tokens/s"
                progress.update(task, total=event.num_steps, completed=event.step, state=state)
                if event.prompt is not None:
                    event.prompt.save(output)
                    saved = event
        except KeyboardInterrupt:
            kept = f"the best so far is in {output}" if saved else "nothing was validated yet"
            options.errors.print(f"stopped; {kept}")
            if saved is None:
                raise typer.Exit(130) from None
    return saved


def summarize(last: "TrainEvent", output: str, seconds: float) -> None:
    """Say from what to what, how long, how large, and what to type next."""
    from shlex import quote

    prompt = last.prompt
    assert prompt is not None
    metrics = prompt.facts["metrics"]
    held_out = metrics.get("validation")
    shown = (
        f", validation {held_out['loss']:.3f} ({held_out['exact']:.0%} exact)" if held_out else ""
    )
    options.output.print(
        f"{prompt.num_virtual_tokens} virtual tokens ({prompt.form}), "
        f"{prompt.num_bytes / 1e6:.2f} MB, step {metrics['step']} of {last.num_steps} "
        f"in {seconds:.0f} s: loss {metrics['training_loss']:.3f}{shown}\nsaved to {output}\n\n"
        f"try it:   foreword chat --prompt {quote(output)}\n"
        f"look:     foreword show --prompt {quote(output)}\n"
        f"measure:  foreword eval --prompt {quote(output)} --data FILE"
    )
