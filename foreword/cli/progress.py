"""Progress of a run: one line on the terminal, saved prompts, a safe stop, and trackers.

In: the events of a run. Out: files, one line that is rewritten, or lines where there is no
terminal, and curves in the trackers that are asked for. A stop loses nothing. Under several
processes only the main one prints and writes, and all stop at the same step. Knows no model.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from foreword.cli import options
from foreword.cli.console import one_line
from foreword.cli.progress_lines import ProgressLines
from foreword.compat.error_lines import first_line
from foreword.errors import DependencyError, InputError
from foreword.os_calls import is_device
from foreword.training.folders import TASKS

if TYPE_CHECKING:
    from foreword.prompt.soft_prompt import SoftPrompt
    from foreword.training.distributed import Ranks
    from foreword.training.loop import TrainEvent

MAX_NAME = 255  # bytes of a file's name
COLUMNS = (
    TextColumn("{task.description}", markup=False),
    BarColumn(bar_width=12),
    TextColumn("{task.completed}/{task.total}", markup=False),
    TimeRemainingColumn(),  # before what is cut on a narrow terminal
    TextColumn("{task.fields[state]}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
)


STOPPING = (
    "stopping after this step, which is then saved for --resume; the same signal once more stops "
    "now, and --resume goes on from what was saved before"
)


@dataclass
class Stop:
    """Whether a run was asked to stop by Ctrl-C or SIGTERM; asked again, it is cut off.

    Attributes:
        signal: the newest that came; None where none did.
        say: is told at once that the first one has come.
    """

    signal: int | None = None
    say: Callable[[str], None] | None = None

    def ask(self, number: int, frame: Any = None) -> None:
        """Remember a signal; the same signal again interrupts the current step."""
        if self.signal == number:
            raise KeyboardInterrupt
        if self.signal is None and self.say is not None:
            # In a thread: the signal may have come in the middle of another line.
            threading.Thread(target=self.say, args=(STOPPING,), daemon=True).start()
        self.signal = number  # a launcher may pass on Ctrl-C and send SIGTERM for it, too

    @contextlib.contextmanager
    def listening(self, say: Callable[[str], None] | None = None) -> Iterator[None]:
        """Take signals as requests, while the run is on, and tell `say` of the first."""
        self.say = say
        numbers = (signal.SIGINT, signal.SIGTERM)
        try:
            before = [signal.signal(number, self.ask) for number in numbers]
        except ValueError:  # not the main thread: signals go elsewhere
            yield
            return
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


def save(prompt: "SoftPrompt", tasks: "Mapping[str, SoftPrompt]", output: str) -> None:
    """Write a prompt, and the prompts of single tasks into folders of their names below it."""
    for name, one in tasks.items():
        one.save(Path(output) / TASKS / folder_name(name))
    prompt.save(output)


def folder_name(task: str) -> str:
    """Return a task's name as the name of a folder.

    Raises:
        InputError: no file system takes one as long.
    """
    name = quote(task, safe="").replace(".", "%2E")
    if is_device(name):
        name = f"%{ord(name[0]):02X}{name[1:]}"
    if len(name) > MAX_NAME:
        raise InputError(
            f"--task-column: a task's name must make a folder's name of at most {MAX_NAME} "
            f"letters, got {len(name)} for {task[:40]!r}...: shorten it"
        )
    return name


def run(
    events: "Iterator[TrainEvent]",
    output: str,
    stop: Stop | None = None,
    ranks: "Ranks | None" = None,
    trackers: "Trackers | None" = None,
) -> "TrainEvent | None":
    """Show the run on one line, or in lines where there is no terminal, write its prompts, and
    return the last event with a prompt.
    """
    saved: TrainEvent | None = None
    stop = stop or Stop()
    is_main = ranks is None or ranks.is_main
    is_bar = is_main and options.errors.is_watched
    lines = ProgressLines(options.errors.print)
    with Progress(*COLUMNS, console=options.errors, disable=not is_bar, expand=True) as progress:
        task = progress.add_task("training", total=None, state="")
        validated = ""
        say = options.errors.print if is_main else None
        told = lines.within_steps() if is_main and not is_bar else contextlib.nullcontext()
        with (
            stop.listening(say),
            told,
            contextlib.suppress(KeyboardInterrupt),
            _closing(events),
        ):
            for event in events:
                for notice in event.notices:
                    progress.console.print(f"note: {one_line(notice)}")
                validated = _validated(event) or validated
                speed = event.num_tokens / event.seconds
                level = f"loss {event.loss:.3f}"
                if event.reward is not None:
                    level = f"reward {event.reward:.3f}"
                state = f"{level}{validated} · {speed:.0f} tokens/s"
                progress.update(task, total=event.num_steps, completed=event.step, state=state)
                if is_main and not is_bar:
                    is_due = event.validation is not None
                    lines.step(event.step, event.num_steps, state, is_due=is_due)
                if trackers is not None:
                    trackers.log(event)
                if event.prompt is not None:
                    if is_main:
                        save(event.prompt, event.task_prompts, output)
                    saved = event
                asked = stop.signal is not None
                if asked if ranks is None else ranks.is_any(asked):
                    stop.signal = stop.signal or signal.SIGTERM
                    break
            else:
                stop.signal = None  # it came after the last step
                return saved
        stop.signal = stop.signal or signal.SIGINT
    return saved


@contextlib.contextmanager
def _closing(events: "Iterator[TrainEvent]") -> Iterator[None]:
    """Close the run when it is left early: it then writes its state."""
    try:
        yield
    finally:
        if close := getattr(events, "close", None):
            close()


def _validated(event: "TrainEvent") -> str:
    if event.validation is None:
        return ""
    found = event.validation
    if found.reward is not None:
        return f" · validation reward {found.reward:.3f}, {found.exact:.0%} of 1 or more"
    if found.preferred is not None:
        return f" · validation {found.loss:.3f}, {found.preferred:.0%} preferred"
    return (
        f" · validation {found.loss:.3f}, {found.agreement:.0%} of tokens, {found.exact:.0%} exact"
    )


def check_trackers(names: str) -> list[str]:
    """Return the names of trackers, a comma between.

    Raises:
        DependencyError: a tracker is not installed, or has no such name.
    """
    from accelerate.tracking import get_available_trackers

    wanted = [name.strip() for name in names.split(",")]
    known = [str(name) for name in get_available_trackers()]
    if missing := [name for name in wanted if name not in known]:
        raise DependencyError(
            f"--track {', '.join(missing)}: not installed, or not a tracker of Accelerate's; "
            f"here there are: {', '.join(known) or 'none'}; pip install {missing[0]}"
        )
    return wanted


class Trackers:
    """Experiment trackers that Accelerate knows, by name; one that fails ends no run.

    Raises:
        DependencyError: a tracker is not installed, has no such name, or cannot begin.
    """

    def __init__(self, names: str, output: str, config: dict[str, Any]) -> None:
        from accelerate import Accelerator

        wanted = check_trackers(names)
        plain = {k: v if isinstance(v, str | int | float) else str(v) for k, v in config.items()}
        self.names, self._has_failed = names, False
        try:
            self._accelerator = Accelerator(log_with=wanted, project_dir=output)
            self._accelerator.init_trackers("foreword", config=plain)
        except Exception as error:  # a tracker's own, of any kind: a file, the network, a login
            raise DependencyError(f"--track {names}: {_line(error)}") from error

    def log(self, event: "TrainEvent") -> None:
        """Send the numbers of one step."""
        values = {
            "loss": event.loss,
            "learning_rate": event.learning_rate,
            "gradient_norm": event.gradient_norm,
            "tokens_per_second": event.num_tokens / event.seconds,
        }
        if event.validation is not None:
            values |= {f"validation/{name}": one for name, one in event.validation.facts.items()}
        with self._going_on():
            self._accelerator.log(values, step=event.step)

    def close(self) -> None:
        """Write what is left."""
        with self._going_on():
            self._accelerator.end_training()

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        """Let a run go on without its trackers where they fail, and say so once."""
        try:
            yield
        except Exception as error:
            if not self._has_failed:
                options.errors.print(
                    f"warning: --track {self.names} failed ({_line(error)}); the run goes on, and "
                    "what it tracks may have gaps"
                )
            self._has_failed = True


def _line(error: Exception) -> str:
    """Return what an error says in one line."""
    return first_line(error) or type(error).__name__
