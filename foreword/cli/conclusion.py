"""Conclusion of a run: its prompt written where it was stopped, its curves, and what came of it.

In: the last event of a run, and its training state. Out: files, and lines on the terminal. Takes no
step.
"""

from dataclasses import fields
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import typer

from foreword.cli import options
from foreword.cli.progress import Stop, save
from foreword.config import DataConfig

if TYPE_CHECKING:
    from foreword.training.checkpoint import StoredState
    from foreword.training.distributed import Ranks
    from foreword.training.loop import TrainEvent


def where_it_goes_on(output: str, step: int | None) -> str:
    """Say after which step a run goes on."""
    from foreword.training.folders import STATE_FILE

    if step is not None:
        return f"goes on after step {step}, from {Path(output) / STATE_FILE}"
    return f"nothing was saved in {output} yet: begins at step 1"


def kept(output: str) -> str:
    """Say what a run that cannot go on leaves behind."""
    from foreword.errors import ForewordError
    from foreword.training.checkpoint import read_state
    from foreword.training.folders import STATE_FILE

    try:
        stored = read_state(Path(output) / STATE_FILE)
    except ForewordError:
        return ""
    best = stored.best()
    prompt = f"the best prompt, of step {best.facts['metrics']['step']}, and " if best else ""
    return f"; {output} holds {prompt}the training state of step {stored.progress().step}"


def conclude(
    last: "TrainEvent | None",
    output: str,
    stop: Stop,
    curves: str | None,
    columns: DataConfig,
) -> None:
    """Write the prompt of a run that was stopped, draw the curves, and say what came of it.

    Args:
        last: the run's last event, if it came to one.
        output: the directory of the prompt.
        stop: the signal that stopped it, if any.
        curves: file of a picture.
        columns: where the columns of its data are, for the commands that are named as next.
    """
    from foreword.evaluation import plots
    from foreword.training.checkpoint import read_state
    from foreword.training.folders import STATE_FILE

    path = Path(output) / STATE_FILE
    if not path.exists():
        options.errors.print("stopped before the first step was saved")
        return
    stored = read_state(path)
    try:
        _keep(last, output, stop, stored, columns)
    finally:  # after the prompt, which a picture must not cost
        if curves:
            plots.draw_history(stored.history(), Path(curves))
            options.output.print(f"curves: {curves}")


def _keep(
    last: "TrainEvent | None",
    output: str,
    stop: Stop,
    stored: "StoredState",
    columns: DataConfig,
) -> None:
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
        summarize(last, output, stored, columns)


def summarize(last: "TrainEvent", output: str, stored: "StoredState", columns: DataConfig) -> None:
    """Say from what to what, how long, how large, and what to type next."""
    prompt, history = last.prompt, stored.history()
    assert prompt is not None
    metrics = prompt.facts["metrics"]
    shown = ""
    if held_out := metrics.get("validation"):
        first = history.validations[0]
        name = "reward" if "reward" in held_out else "loss"
        share = "preferred" if "preferred" in held_out else "exact"
        shown = (
            f", validation {name} {getattr(first, name):.3f} at step {first.step}, "
            f"{held_out[name]:.3f} at its best ({held_out[share]:.0%} "
            f"{'of 1 or more' if name == 'reward' else share})"
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
        f"measure:  foreword eval --prompt {quote(output)}{_as_options(columns)} --data FILE"
    )
    if columns.template is not None:
        # Its columns are the file's: elsewhere a text is asked as it is.
        options.output.print(
            "ask:      a text is written as --template writes it, as in chat and over HTTP: "
            f"{columns.template!r}"
        )


def _as_options(columns: DataConfig) -> str:
    """Return what was said of the columns, as it is typed in a shell."""
    said = ""
    for field in fields(columns):
        value = getattr(columns, field.name)
        if value == field.default:
            continue
        name = f" --{field.name.replace('_', '-')}"
        said += name if value is True else f"{name} {_quoted(value)}"
    return said


def _quoted(text: str) -> str:
    """Return a text as a shell takes it, in one line."""
    if text.isprintable():
        return quote(text)
    escapes = {"\\": r"\\", "'": r"\'", "\n": r"\n", "\t": r"\t", "\r": r"\r"}
    return f"$'{''.join(escapes.get(one, one) for one in text)}'"


def end(stop: Stop, ranks: "Ranks") -> None:
    """End a command, in every process of its run, with the code of the signal that stopped it.

    Raises:
        Exit: there was one.
    """
    from foreword.training import distributed

    code = 128 + stop.signal if stop.signal else 0
    if ranks.size > 1:
        distributed.leave(ranks)
        options.end_at_once(code)
    if code:
        raise typer.Exit(code)
