"""Arguments: every command answers in one line where there are none, or wrong ones.

The table is made of the commands themselves, so that a command that is added is covered.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from foreword.cli import app, main

COMPLETE = {"doctor", "prompts list"}  # commands that need no argument


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """The name of every command, groups before it."""
    if not hasattr(command, "commands"):
        yield " ".join(path)
    for name, one in getattr(command, "commands", {}).items():
        yield from commands(one, (*path, name))


NAMES = list(commands(typer.main.get_command(app)))
CASES = [(name, given) for name in NAMES for given in ("", "--no-such-option", "a b c d e f")]


@pytest.mark.parametrize(
    ("name", "given"), [one for one in CASES if one[1] or one[0] not in COMPLETE]
)
def test_a_command_answers_in_one_line(
    name: str,
    given: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["foreword", *name.split(), *given.split()])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr()
    lines = said.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), said
    assert stopped.value.code == 2 and not said.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--tasks no_such_task --model_args base=none", "Tasks not found: no_such_task"),
        ("--tasks a --limit much", "invalid float value: 'much'"),
        ("--tasks a --log_samples", "Specify --output_path"),
        ("--config none.yaml", "Config file not found"),
    ],
)
def test_what_the_harness_refuses_is_one_line(
    given: str,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["foreword", "lm-eval", *given.split()])
    with pytest.raises(SystemExit) as stopped:
        main()
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(errors) == 1 and expected in errors[0] and stopped.value.code == 2
