"""Outputs: nothing is written over that the command did not make, and nothing made is lost."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import FAST, QUICK
from safetensors.torch import save_file
from typer.testing import CliRunner

from foreword import SoftPrompt
from foreword.cli import app
from foreword.cli.run_output import LOCK_FILE
from foreword.errors import StorageError
from foreword.evaluation import plots
from foreword.storage import locked
from foreword.training import out_of_memory
from foreword.training.checkpoint import STATE_FILE

Refused = Callable[..., str]


def trains(model: str, data: str, output: Path, *more: str) -> str:
    arguments = ["train", "--model", model, "--data", data, "--output", str(output), *FAST, *more]
    ended = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return ended.output


def snapshot(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def lora(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"lora_A.weight": torch.ones(2, 2)}, folder / "adapter_model.safetensors")


def foreign(folder: Path) -> None:
    SoftPrompt.from_embeddings(torch.ones(2, 4)).save(folder)
    save_file({"prompt_embeddings": torch.ones(2, 4)}, folder / "adapter_model.safetensors")


def pickled(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "adapter_model.bin").write_bytes(b"weights")


def whole_model(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')


OTHERS = {
    "LORA": lora, "adapter": pickled, "PROMPT_TUNING": foreign, "a model": whole_model,
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("more", [(), ("--resume",), ("--seeds", "2")])
@pytest.mark.parametrize("below", ["", "tasks/a"])
def test_what_others_wrote_is_kept(
    refused: Refused, model: str, data: str, tmp_path: Path, kind: str, more: Any, below: str
) -> None:
    output = tmp_path / "out"
    if below and kind == "a model":
        return
    OTHERS[kind](output / below)
    before = snapshot(output)
    said = refused("train", "--model", model, "--data", data, "--output", str(output), *FAST, *more)
    assert kind in said and str(output / below) in said and "--overwrite" in said
    assert snapshot(output) == before


def test_a_seeds_folder_is_looked_into(
    refused: Refused, model: str, data: str, tmp_path: Path
) -> None:
    lora(tmp_path / "out" / "seeds" / "1")
    arguments = ["train", "--data", data, "--output", str(tmp_path / "out"), "--seeds", "2"]
    assert "LORA" in refused(*arguments)


def test_a_finished_run_is_overwritten_only_where_asked(
    refused: Refused, model: str, data: str, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    trains(model, data, output)
    first = SoftPrompt.load(output).content_hash
    arguments = ["train", "--model", model, "--data", data, "--output", str(output), *FAST]
    assert "a finished run of 4 steps" in refused(*arguments, "--seed", "1")
    assert "leave one of them out" in refused(*arguments, "--resume", "--overwrite")
    (output / STATE_FILE).unlink()
    for more in ((), ("--resume",)):
        assert "a soft prompt of foreword's" in refused(*arguments, *more)
    assert SoftPrompt.load(output).content_hash == first
    trains(model, data, output, "--seed", "1", "--overwrite")
    assert SoftPrompt.load(output).content_hash != first
    assert not list(output.glob(".*"))


def test_resume_goes_on_where_a_run_of_seeds_began(model: str, data: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    trains(model, data, output, "--seeds", "2")
    best = SoftPrompt.load(output).content_hash
    assert "goes on after step 4" in trains(model, data, output, "--seeds", "3", "--resume")
    assert SoftPrompt.load(output).facts["metrics"]["seeds"]["loss"]["each"].keys() == {
        "0", "1", "2",
    }  # fmt: skip
    assert best


def evaluates(command: str, model: str, prompt: str, data: str, *more: str) -> list[str]:
    first = ["eval", "--model", model] if command == "eval" else ["compare", prompt]
    return [*first, "--data", data, *QUICK, *more]


@pytest.fixture
def prompt(model: str, data: str, tmp_path: Path) -> str:
    trains(model, data, tmp_path / "prompt")
    return str(tmp_path / "prompt")


def test_predictions_stay_out_of_the_folder_that_is_read(
    refused: Refused, model: str, data: str, tmp_path: Path
) -> None:
    """A later run would read them as rows, and earlier predictions may be the rows."""
    folder = tmp_path / "folder"
    folder.mkdir()
    row = {"prompt": "say a", "expected": "a"}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    columns = ("--completion-column", "expected", *QUICK)
    for name in ("rows.jsonl", "new.jsonl"):
        arguments = ["eval", "--model", model, "--data", str(folder), *columns]
        said = refused(*arguments, "--predictions", str(folder / name))
        assert "is read, too" in said
    assert os.listdir(folder) == ["rows.jsonl"]


@pytest.mark.parametrize("command", ["eval", "compare"])
def test_predictions_replace_nothing_but_predictions(
    refused: Refused, model: str, prompt: str, data: str, tmp_path: Path, command: str
) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    for path in (data, str(notes), str(tmp_path / "no" / "x"), str(tmp_path)):
        before = snapshot(tmp_path)
        said = refused(*evaluates(command, model, prompt, data, "--predictions", path))
        assert "--predictions" in said and path in said
        assert snapshot(tmp_path) == before
    link = tmp_path / "link.jsonl"
    link.symlink_to(tmp_path / "said.jsonl")
    arguments = evaluates(command, model, prompt, data, "--predictions", str(link))
    for _ in range(2):
        assert CliRunner().invoke(app, arguments).exit_code == 0
    assert link.is_symlink() and (tmp_path / "said.jsonl").read_bytes().startswith(b'{"source"')


def test_a_picture_replaces_only_a_picture_of_its_own(
    refused: Refused, model: str, prompt: str, data: str, tmp_path: Path
) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(b"\x89PNG\r\n\x1a\n somebody's own")
    pictures = [
        ("--curves", ["train", "--data", data, "--output", str(tmp_path / "new")]),
        ("--png", ["show", prompt]),
        ("--png", ["compare", prompt, "--data", data, *QUICK]),
    ]
    for option, arguments in pictures:
        for path in (str(photo), data, str(tmp_path / "no" / "x.png")):
            said = refused(*arguments, option, path)
            assert option in said and path in said
    assert photo.read_bytes().endswith(b"own")
    own = str(tmp_path / "own.png")
    for arguments in (pictures[1][1], pictures[2][1]):
        for _ in range(2):
            drawn = CliRunner().invoke(app, [*arguments, "--png", own], catch_exceptions=False)
            assert drawn.exit_code == 0


@pytest.mark.parametrize("number", [None, signal.SIGINT])
def test_a_picture_that_fails_costs_no_prompt(
    refused: Refused, model: str, data: str, tmp_path: Path, monkeypatch: Any, number: int | None
) -> None:
    curves, step = tmp_path / "pictures" / "curves.png", out_of_memory.train_step
    curves.parent.mkdir()

    def step_then_signal(run: Any, state: Any, rows: Any) -> Any:
        if state.progress.step == 2:
            curves.parent.rmdir()  # in the middle of the run
            if number:
                os.kill(os.getpid(), number)
        return step(run, state, rows)

    monkeypatch.setattr(out_of_memory, "train_step", step_then_signal)
    output = tmp_path / "out"
    arguments = ["train", "--model", model, "--data", data, "--output", str(output), *FAST]
    ended = CliRunner().invoke(app, [*arguments, "--curves", str(curves)])
    assert "curves.png" in str(ended.exception)
    assert SoftPrompt.load(output).facts["metrics"]["step"] in (2, 4)
    assert f"is in {output}" in ended.output or f"saved to {output}" in ended.output


def test_curves_that_cannot_be_written_are_refused_before_the_run(
    refused: Refused, model: str, data: str, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("here")
    arguments = ["train", "--model", "no/such", "--data", data, "--output", str(tmp_path / "out")]
    assert "--curves" in refused(*arguments, "--curves", str(blocked / "x.png"))
    assert "--track none-such" in refused(*arguments, "--track", "none-such", code=4)
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("command", ["eval", "compare"])
def test_scores_are_shown_where_a_file_fails(
    model: str, prompt: str, data: str, tmp_path: Path, monkeypatch: Any, command: str
) -> None:
    def full(path: Path) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("foreword.storage.replacing", full)
    told = str(tmp_path / "told.jsonl")
    arguments = evaluates(command, model, prompt, data, "--predictions", told, "--json")
    more = ["--png", str(tmp_path / "x.png")] if command == "compare" else []
    ended = CliRunner().invoke(app, [*arguments, *more])
    assert "no space left" in str(ended.exception)
    assert json.loads(ended.stdout)["results"]


def test_a_tracker_that_fails_ends_no_run(
    model: str, data: str, tmp_path: Path, monkeypatch: Any
) -> None:
    pytest.importorskip("tensorboard")
    from accelerate import Accelerator

    def fails(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("the network is away\nwith details")

    monkeypatch.setattr(Accelerator, "log", fails)
    monkeypatch.setattr(Accelerator, "end_training", fails)
    said = trains(model, data, tmp_path / "out", "--track", "tensorboard")
    assert said.count("the network is away") == 1
    assert SoftPrompt.load(tmp_path / "out").facts["metrics"]["step"] in (2, 4)


def test_a_task_whose_name_is_no_folder_is_refused_before_the_run(
    refused: Refused, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"{n}", "completion": "x", "kind": "k" * 300} for n in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--method", "multitask", "--task-column", "kind", "--model", "no/such"]
    said = refused("train", "--data", str(path), "--output", str(tmp_path / "out"), *arguments)
    assert "--task-column" in said and "300" in said


HOLDER = """
import sys
from pathlib import Path
from foreword.storage import locked
with locked(Path(sys.argv[1]), "taken"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_is_refused_until_the_first_has_ended(
    refused: Refused, model: str, data: str, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    trains(model, data, output)
    before = snapshot(output)
    arguments = ["train", "--model", model, "--data", data, "--output", str(output), *FAST]
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(output / LOCK_FILE)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as holder:  # fmt: skip
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        for more in ("--resume", "--overwrite"):
            assert f"{output}: another run" in refused(*arguments, more, code=5)
        held = {name: value for name, value in snapshot(output).items() if name != LOCK_FILE}
        assert held == before
        holder.kill()
    assert (output / LOCK_FILE).exists()  # of a killed process: it holds nothing
    trains(model, data, output, "--resume")
    assert snapshot(output).keys() == before.keys()


def test_a_lock_is_free_again_and_leaves_no_file(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path / "lock", "taken"):
            assert (tmp_path / "lock").exists()
    assert os.listdir(tmp_path) == []


def test_a_picture_is_whole_or_absent(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"earlier")
    figure = plots._figure((1, 1))

    def half(file: Any, **options: Any) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("the disk is gone")

    monkeypatch.setattr(figure, "savefig", half)
    with pytest.raises(Exception, match="the disk is gone"):
        plots._save(figure, path)
    assert path.read_bytes() == b"earlier" and os.listdir(tmp_path) == ["x.png"]


@pytest.mark.parametrize("inner", ["seeds/1", "tasks/a", "seeds/0/tasks/a"])
def test_a_folder_within_a_running_runs_output_is_refused(
    refused: Refused, data: str, tmp_path: Path, inner: str
) -> None:
    (tmp_path / "out").mkdir()
    arguments = ["train", "--data", data, "--output", str(tmp_path / "out" / inner)]
    with locked(tmp_path / "out" / LOCK_FILE, "taken"):
        assert f"{tmp_path / 'out'}: another run" in refused(*arguments, code=5)


def test_an_output_is_refused_while_a_run_writes_to_a_seeds_folder(
    refused: Refused, data: str, tmp_path: Path
) -> None:
    seed = tmp_path / "out" / "seeds" / "1"
    seed.mkdir(parents=True)
    arguments = ["train", "--data", data, "--output", str(tmp_path / "out"), "--seeds", "2"]
    with locked(seed / LOCK_FILE, "taken"):
        assert f"{seed}: another run" in refused(*arguments, code=5)
    assert not (tmp_path / "out" / LOCK_FILE).exists()


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_a_foreign_file_in_the_place_of_a_lock_is_kept(tmp_path: Path, kind: str) -> None:
    lock, other = tmp_path / LOCK_FILE, tmp_path / "other"
    other.write_text("theirs")
    if kind == "directory":
        lock.mkdir()
    elif kind == "link":
        lock.symlink_to(other)
    else:
        lock.write_text("theirs")
    with (
        pytest.raises(StorageError, match="not foreword's own file"),
        locked(lock, "taken"),
    ):
        raise AssertionError
    assert os.path.lexists(lock) and other.read_text() == "theirs"
    assert kind != "file" or lock.read_text() == "theirs"
