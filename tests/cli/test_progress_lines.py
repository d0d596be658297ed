"""Progress: where no terminal shows a bar there are lines; on a narrow one the time left stays."""

import io
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from foreword.cli import progress_lines
from foreword.cli.progress import COLUMNS, STOPPING, Stop, run
from foreword.cli.progress_lines import SECONDS_BETWEEN, ProgressLines, duration


def said(steps: int, seconds: float, due: tuple[int, ...] = (), first: int = 1) -> list[str]:
    """The lines of a run whose every step takes some seconds."""
    now, lines = [100.0], list[str]()
    progress = ProgressLines(lines.append, lambda: now[0])
    for step in range(first, steps + 1):
        now[0] += seconds
        progress.step(step, steps, f"loss {step}", is_due=step in due)
    return lines


def test_there_is_a_line_at_first_every_thirty_seconds_and_at_the_end() -> None:
    lines = said(10, 10.0)
    assert [line.split()[1] for line in lines] == ["1", "4", "7", "10"]
    assert lines[0] == "step 1 of 10, 0:01:30 left · loss 1"
    assert lines[1].startswith("step 4 of 10, 0:01:00 left")
    assert SECONDS_BETWEEN == 30


def test_a_validation_is_said_at_once() -> None:
    assert [line.split()[1] for line in said(100, 0.1, due=(20, 40))] == ["1", "20", "40", "100"]


def test_a_run_that_goes_on_reckons_with_its_own_steps() -> None:
    lines = said(100, 60.0, first=91)
    assert lines[0].startswith("step 91 of 100, 0:09:00 left")
    assert lines[-1].startswith("step 100 of 100, 0:00:00 left")


def test_a_run_that_goes_back_is_reckoned_by_all_that_it_took() -> None:
    now, lines = [0.0], list[str]()
    progress = ProgressLines(lines.append, lambda: now[0])
    for step in (50, 51, 40, 41):
        now[0] += 40
        progress.step(step, 100, "")
    assert "step 41 of 100, 0:39:20 left" in lines[3]


def test_a_long_step_is_said_to_go_on_every_thirty_seconds() -> None:
    now, lines = [0.0], list[str]()
    progress = ProgressLines(lines.append, lambda: now[0])
    for second in range(1, 101):
        now[0] = second
        if second == 65:
            progress.step(7, 9, "loss 1")
        progress.wait()
    assert lines == [
        "no step yet, 0:00:30 so far",
        "no step yet, 0:01:00 so far",
        "step 7 of 9, 0:02:10 left · loss 1",
        "after step 7 of 9, 0:00:30 so far",
    ]


def test_short_steps_are_not_said_to_go_on() -> None:
    now, lines = [0.0], list[str]()
    progress = ProgressLines(lines.append, lambda: now[0])
    for second in range(1, 121):
        now[0] = second
        progress.wait()  # as the timer may, right before a step ends
        if second % 7 == 0:
            progress.step(second // 7, 20, "")
    assert [line.split()[:2] for line in lines] == [["step", str(n)] for n in (1, 6, 11, 16)]


def test_lines_within_steps_end_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_lines, "SECONDS_BETWEEN", 0.05)
    lines, before = list[str](), threading.active_count()
    with ProgressLines(lines.append).within_steps():
        wait_until(lambda: len(lines) > 1)
    wait_until(lambda: threading.active_count() == before)
    assert lines[0].startswith("no step yet, 0:00:00 so far")


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not is_so() and time.monotonic() < end:
        time.sleep(0.01)
    assert is_so()


def events_with(do: Callable[[], object]) -> Iterator[Any]:
    """A run of three steps that does something within the second."""
    for step in (1, 2, 3):
        if step == 2:
            do()
        yield SimpleNamespace(
            notices=(), validation=None, num_tokens=1, seconds=1.0, loss=1.0, reward=None,
            num_steps=3, step=step, prompt=None,
        )  # fmt: skip


@pytest.mark.parametrize("is_main", [True, False])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_said_within_the_step(
    number: int, is_main: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    stop, said = Stop(), list[str]()

    def is_said() -> bool:
        said.append(capsys.readouterr().err)
        return STOPPING in "".join(said)

    def ask() -> None:
        signal.raise_signal(number)
        if is_main:  # before the step ends
            wait_until(is_said)

    ranks: Any = SimpleNamespace(is_main=is_main, is_any=bool)
    run(events_with(ask), "unused", stop, ranks)
    assert stop.signal == number
    shown = "".join(said) + capsys.readouterr().err
    assert shown.count(STOPPING) == int(is_main) and "step 3" not in shown


def test_the_same_signal_again_stops_within_the_step(capsys: pytest.CaptureFixture[str]) -> None:
    stop, reached = Stop(), list[str]()

    def ask() -> None:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        reached.append("the end of the step")

    run(events_with(ask), "unused", stop)
    assert stop.signal == signal.SIGTERM and not reached


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00:00"), (61, "0:01:01"), (36610, "10:10:10")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_the_time_left_is_whole_on_eighty_columns() -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=80, force_terminal=True, color_system=None)
    now = [0.0]
    with Progress(*COLUMNS, console=console, expand=True, get_time=lambda: now[0]) as bar:
        state = "loss 1.234 · validation 1.234, 93% of tokens, 100% exact · 12345 tokens/s"
        task = bar.add_task("training", total=1000, state=state)
        for _ in range(100):
            now[0] += 1.0
            bar.advance(task)
        lines = list(console.render_lines(bar.get_renderable()))
    (line,) = [
        "".join(part.text for part in one) for one in lines if any(p.text.strip() for p in one)
    ]
    assert len(line.rstrip()) <= 80 and "100/1000" in line and "0:15:00" in line
    assert "loss 1.234" in line


def test_a_training_in_a_pipe_says_how_far_it_is(
    model: str, data: str, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    from command_line import FAST

    from foreword.cli import main

    arguments = [
        "train",
        "--data",
        data,
        "--model",
        model,
        "--output",
        str(tmp_path / "new"),
        *FAST,
    ]
    monkeypatch.setattr(sys, "argv", ["foreword", *arguments])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["1", "2", "4"]
    assert all(" left · loss " in line for line in lines) and "validation" in lines[1]
    (first,) = [line for line in said.out.splitlines() if line.startswith("first row")]
    assert "<|im_start|>user⏎say a" in first and first.endswith("<|im_end|>⟧")
