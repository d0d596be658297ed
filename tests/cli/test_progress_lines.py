"""Progress: where no terminal shows a bar there are lines; on a narrow one the time left stays."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from foreword.cli.progress import COLUMNS
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
