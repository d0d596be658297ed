"""What is printed: free text unchanged in files and pipes, and harmless on a terminal."""

import io
import json
import logging
import math
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.progress import Progress
from rich.table import Table
from typer.testing import CliRunner

from foreword import SoftPrompt
from foreword.cli import app, commands, comparison, console, counted, main, options, progress
from foreword.cli.chat import Session
from foreword.cli.console import VisibleLog, strict_json, visible
from foreword.config import ResamplingConfig, SamplingConfig
from foreword.evaluation.metrics import METRICS, Outcome

NASTY = (
    ":key: a:b:c\t[bold]x[/bold] [/] \\[y] \r\f\v\a\b\x1b[31mred\x1b]0;title\x07 \x9b2J \x7f "
    "\u202eturned \u200d\u00e9 https://x.org 1e9 " + "long " * 60 + "\n  next \n"
)
STEERING = [*map(chr, (*range(9), *range(11, 32), *range(127, 160))), "\u202e", "\u2066"]


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Let both streams be one terminal."""
    found = Terminal()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, found)
    return found


def test_a_text_reaches_a_pipe_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    options.output.print(NASTY)
    options.output.print("a", ":key:", end="")
    options.errors.print(NASTY)
    found = capsys.readouterr()
    assert found.out == NASTY + "\na :key:" and found.err == NASTY + "\n"


def test_colours_that_are_forced_make_no_terminal_of_a_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    type(options.output)().print(NASTY)
    assert capsys.readouterr().out == NASTY + "\n"


@pytest.mark.parametrize("style", [None, "dim"])
def test_on_a_terminal_a_text_steers_nothing(
    monkeypatch: pytest.MonkeyPatch, style: str | None
) -> None:
    shown = terminal(monkeypatch)
    options.output.print(NASTY, style=style)
    said = shown.getvalue().replace("\x1b[2m", "").replace("\x1b[0m", "")
    assert not [c for c in STEERING if c in said]
    assert ":key: a:b:c" in said and "[bold]x[/bold] [/] \\[y]" in said
    assert "\\x1b[31mred" in said and "\\u202eturned" in said and "\u200d\u00e9" in said


def test_every_character_that_steers_is_shown_as_an_escape() -> None:
    assert visible("".join(STEERING)).isascii() and visible("\ud800") == "\\ud800"
    assert visible("a\tb\n\u4e2d \u0645") == "a\tb\n\u4e2d \u0645"


def test_a_text_that_the_stream_cannot_encode_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    options.output.print("\u00e9\ud800!")
    assert raw.getvalue() == b"\\xe9\\ud800!\n"


def test_json_is_strict() -> None:
    value = {"a": [math.nan, math.inf, 1.5, (None, -math.inf)], ":key:": True}
    assert json.loads(strict_json(value)) == {"a": [None, None, 1.5, [None, None]], ":key:": True}


def test_a_table_in_a_pipe_is_as_wide_as_its_cells(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("name", title=":key: [bold]title")
    table.add_row(":key: a:b:c " + "word " * 100 + "[bold]end")
    options.output.print(table)
    said = capsys.readouterr().out
    assert ":key: a:b:c " + "word " * 100 + "[bold]end" in said and ":key: [bold]title" in said


def evaluation(name: str) -> Any:
    score = SimpleNamespace(has_interval=False, value=0.5, excludes_zero=False)
    outcomes = [Outcome(expected) for expected in [":key: [b]\x1b", ":key: [b]\x1b", "no"] * 2]
    return SimpleNamespace(
        subject=SimpleNamespace(name=name), outcomes=outcomes, scores={"exact": score}, seconds=1.0
    )


def test_names_of_subjects_and_classes_are_shown_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results, metrics = [evaluation("a"), evaluation(":key: [bold]\x1b[31m")], [METRICS["exact"]]
    monkeypatch.setattr(comparison, "differences", lambda *_: results[1].scores)
    options.output.print(comparison.scores_table(results, metrics, ResamplingConfig()))
    options.output.print(comparison.differences_table(results[::-1], metrics, ResamplingConfig()))
    said = capsys.readouterr().out
    assert said.count(":key: [bold]\\x1b[31m") == 2 and "\x1b" not in said
    assert "always answers ':key: [b]\\x1b': 66.7% right" in said


@pytest.mark.parametrize("columns", [progress.COLUMNS, counted.COLUMNS])
def test_progress_shows_names_as_they_are(columns: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = terminal(monkeypatch)
    with Progress(*columns, console=options.errors) as bar:
        bar.add_task("[bold]:key:", total=2, state="[red]:key:")
        bar.console.print("note: [red]:key:\x07")
    assert "[bold]:key:" in shown.getvalue() and "note: [red]:key:\\x07" in shown.getvalue()


def test_a_spinner_shows_texts_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch)
    with options.errors.status("loading [bold]:key:\x1b[31m") as status:
        assert status.renderable.text.plain == "loading [bold]:key:\\x1b[31m"  # type: ignore[union-attr]
        status.update("then [red]:key:\x07")
        assert status.renderable.text.plain == "then [red]:key:\\x07"  # type: ignore[union-attr]


@pytest.mark.parametrize("counts", [False, True])
def test_where_there_is_no_terminal_work_says_now_and_then_how_far_it_is(
    counts: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "SECONDS_BETWEEN", 0.01)
    shown = ""

    def until(text: str) -> None:
        nonlocal shown
        for _ in range(500):
            shown += capsys.readouterr().err
            if text in shown:
                return
            time.sleep(0.01)
        raise AssertionError(f"{text!r} is not in {shown!r}")

    if counts:
        with counted.counted("the text answers", 2) as count:
            until("the text answers: 0 of 2, 0:00:00 so far\n")
            count()
            until("the text answers: 1 of 2, 0:00:00 so far\n")
    else:
        with options.errors.status("reading [a]") as status:
            until("reading [a], 0:00:00 so far\n")
            status.update("writing")
            until("writing, 0:00:00 so far\n")
    capsys.readouterr()
    time.sleep(0.05)
    assert not capsys.readouterr().err  # it is over


def test_short_work_says_nothing_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with options.errors.status("reading"), counted.counted("the text answers", 1) as count:
        count()
    assert not capsys.readouterr().err


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a model that is not there answer every text with itself."""
    from foreword import chat

    monkeypatch.setattr(options, "load", lambda model, prompt: (None, None))
    monkeypatch.setattr(chat, "typed", lambda backbone, prompt, text: text)
    monkeypatch.setattr(
        chat, "answers", lambda b, p, texts, c, **_: [chat.Answer(text, 1, True) for text in texts]
    )
    monkeypatch.setattr(chat, "stream", lambda b, p, text, c, **_: iter([text[:9], text[9:]]))
    monkeypatch.setattr(chat, "reads_turns", lambda backbone, prompt: False)


def test_generate_prints_answers_as_they_are(answering: None) -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["generate", "--model", "m", NASTY, ""]).stdout == NASTY + "\n\n"
    said = runner.invoke(app, ["generate", "--model", "m", NASTY, "--json"]).stdout
    assert json.loads(said) == {"prompt": NASTY, "answer": NASTY} and said.count("\n") == 1


def test_generate_is_harmless_on_a_terminal(
    answering: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = terminal(monkeypatch)
    app(["generate", "--model", "m", NASTY], standalone_mode=False)
    assert ":key:" in shown.getvalue() and not [c for c in STEERING if c in shown.getvalue()]


def test_chat_prints_answers_as_they_are(
    answering: None, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session(None, None, SamplingConfig())  # type: ignore[arg-type]
    session.take(NASTY)
    assert capsys.readouterr().out.startswith(NASTY + "\n  [")
    assert session.turns[1]["content"] == NASTY


def test_an_error_is_one_harmless_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name = str(tmp_path / "a\n\x1b[31m:key:[bold]")
    monkeypatch.setattr(sys, "argv", ["foreword", "show", name])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "a\\n\\x1b[31m:key:[bold]: no such directory" in said


def test_predictions_are_strict_json_of_any_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = SimpleNamespace(source="s:1", prompt=NASTY, completion="\ud800 \u00e9")
    judged = {"answer": "\udfff", "loss": math.nan}
    monkeypatch.setattr(comparison, "_judged", lambda *_: judged)
    path, metric = tmp_path / "p.jsonl", METRICS["exact"]
    comparison.write_predictions(str(path), [example], [evaluation("a")], [metric])  # type: ignore[list-item]
    written = path.read_text(encoding="utf-8")
    line = json.loads(written, parse_constant=pytest.fail)
    assert (line["prompt"], line["expected"]) == (NASTY, "\ud800 \u00e9") and "\u00e9" in written
    assert line["answers"] == {"a": {"answer": "\udfff", "loss": None}}


def test_doctor_says_a_finding_in_one_harmless_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from foreword import doctor

    found = doctor.Finding("a :key:", "ok", "b\x1b[2J\nc [bold]d", "e\x07")
    monkeypatch.setattr(doctor, "environment", lambda: [found])
    said = CliRunner().invoke(app, ["doctor"]).stdout.splitlines()
    assert said[0] == "ok       a :key:: b\\x1b[2J\\nc [bold]d"
    assert said[1].endswith("→ e\\x07")


def test_show_writes_strict_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from foreword.evaluation import inspection

    values = torch.full((2, 3, 4), 1e38)
    SoftPrompt.from_key_values([(values, values)]).save(tmp_path)
    layer = inspection.LayerNorms(math.nan, math.inf, None)
    monkeypatch.setattr(inspection, "layer_norms", lambda states: [layer])
    said = json.loads(
        CliRunner().invoke(app, ["show", str(tmp_path), "--json"]).stdout,
        parse_constant=pytest.fail,
    )
    assert said["layer norms"] == [{"keys": None, "values": None, "recurrent": None}]


@pytest.mark.parametrize(("where", "code"), [("> /dev/full", 5), (">&-", 0), ("2>&-", 0)])
def test_a_stream_that_takes_nothing_is_no_traceback(where: str, code: int, tmp_path: Path) -> None:
    command = f"{sys.executable} -m foreword prompts list --prompts {tmp_path} {where}"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(["sh", "-c", command], env=env, capture_output=True, text=True)
    assert ended.returncode == code
    expected = "error: the output cannot be written (No space left on device)\n" if code else ""
    assert ended.stderr == expected


def test_what_modules_log_or_warn_of_is_harmless(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder's name with a prompt in it, a model's directory whose processor cannot be loaded."""

    def command(*_: Any, **__: Any) -> int:
        logging.getLogger("a module").warning("%s: reads the prompt in it", NASTY)
        warnings.warn(NASTY, stacklevel=2)
        return 0

    monkeypatch.setattr(commands, "app", command)
    monkeypatch.setattr(logging.getLogger("a module"), "propagate", False)
    with warnings.catch_warnings(), pytest.raises(SystemExit):
        warnings.simplefilter("always")
        main()
    said = capsys.readouterr().err
    assert said.count("\n") == 2 and said.count("note: ") == 2
    assert not [character for character in STEERING if character in said]
    assert logging.lastResort is not None and not isinstance(logging.lastResort, VisibleLog)


@pytest.mark.parametrize("asked", ["--help", "--version", "train --help"])
def test_an_output_that_is_full_is_one_line(asked: str) -> None:
    done = subprocess.run(
        f"{sys.executable} -m foreword {asked} > /dev/full",
        shell=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 5
    assert done.stderr.splitlines() == [
        "error: the output cannot be written (No space left on device)"
    ]


@pytest.mark.parametrize(
    ("given", "said"), [("<&-", ""), ("<bytes", "is no text in utf-8"), ("</dev/null", "")]
)
def test_a_conversation_ends_with_its_input(
    model: str, tmp_path: Path, given: str, said: str
) -> None:
    (tmp_path / "bytes").write_bytes(b"a\xff\n")
    done = subprocess.run(
        f"{sys.executable} -m foreword chat --model {model} {given}",
        shell=True, capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
    )  # fmt: skip
    assert (done.returncode == 0) == (not said) and "Traceback" not in done.stderr
    assert said in done.stderr and len(done.stderr.splitlines()) <= 1
