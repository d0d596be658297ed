"""--overwrite begins anew: nothing old is taken for the new run's, nor lost too early."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from command_line import FAST
from test_outputs import lora, snapshot
from tiny_tokenizer import tiny_tokenizer
from typer.testing import CliRunner

from foreword import SoftPrompt
from foreword.cli import app
from foreword.training.checkpoint import STATE_FILE, read_state

Refused = Callable[..., str]

ONE = ["--seed", "3"]
SEEDS = ["--seeds", "2"]
MANY = ["--seeds", "3", "--seed", "4"]
TASKS = ["--method", "multitask", "--task-column", "task"]
OTHER_TASKS = ["--method", "multitask", "--task-column", "other"]
LEARNED = ("--answer-tokens", "6", "--num-virtual-tokens", "4", "--num-steps", "2")


def _rows(path: Path, words: str) -> str:
    pairs = [(word, number) for number in range(4) for word in words]
    rows = [
        {"prompt": f"{word} {number}", "completion": word}
        | ({"task": word, "other": f"{word}{word}"} if path.stem == "tasks" else {})
        for word, number in pairs
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _files(folder: Path) -> set[str]:
    return set(snapshot(folder))


def _invoke(*arguments: str) -> str:
    ended = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return ended.output


@pytest.fixture
def trains(model: str) -> Callable[..., str]:
    def run(data: str, output: Path, *more: str) -> str:
        steps = ["--num-steps", "2"] if "multitask" in more else FAST
        return _invoke("train", "--model", model, "--data", data, "--output", str(output),
                       *steps, *more)  # fmt: skip

    return run


@pytest.mark.parametrize(
    ("first", "second"),
    [(ONE, SEEDS), (SEEDS, ONE), (MANY, SEEDS), (TASKS, OTHER_TASKS), (TASKS, ONE),
     ([*TASKS, *SEEDS], OTHER_TASKS)],
)  # fmt: skip
def test_an_output_begun_anew_is_as_a_new_one(
    trains: Any, tmp_path: Path, first: list[str], second: list[str]
) -> None:
    (tmp_path / "old").mkdir()
    old, new = (
        _rows(tmp_path / "old" / "tasks.jsonl", "abc"),
        _rows(tmp_path / "tasks.jsonl", "def"),
    )
    used, fresh = tmp_path / "used", tmp_path / "fresh"
    trains(old, used, *first)
    (used / "notes.txt").write_text("mine")
    (used / "seeds" / "9").mkdir(parents=True, exist_ok=True)
    (used / "seeds" / "9" / "notes.txt").write_text("mine")
    lora(used / "tasks" / "theirs")
    theirs = {name for name in _files(used) if "notes" in name or "theirs" in name}
    trains(new, used, *second, "--overwrite")
    trains(new, fresh, *second)
    assert _files(used) - theirs == _files(fresh) and _files(used) >= theirs
    assert SoftPrompt.load(used).content_hash == SoftPrompt.load(fresh).content_hash
    assert {path for path in used.rglob("*") if path.is_dir()} - {
        used / "seeds" / "9", used / "seeds", used / "tasks" / "theirs", used / "tasks",
    } <= {used / path.relative_to(fresh) for path in fresh.rglob("*")}  # fmt: skip
    trains(new, used, *second, "--resume")


@pytest.mark.parametrize("first", [ONE, SEEDS])
@pytest.mark.parametrize("wrong", ["rows", "option", "method", "resume"])
def test_a_run_that_is_refused_loses_nothing(
    trains: Any, refused: Refused, model: str, tmp_path: Path, first: list[str], wrong: str
) -> None:
    data, output = _rows(tmp_path / "rows.jsonl", "abc"), tmp_path / "out"
    trains(data, output, *first)
    before = snapshot(output)
    more = {
        "rows": ["--max-length", "3"],
        "option": ["--init", "labels", "--validation", data, "--chat-template", "nowhere"],
        "method": ["--init", "labels", "--num-virtual-tokens", "1"],
        "resume": ["--lr", "0.5"],
    }[wrong]
    how = "--resume" if wrong == "resume" else "--overwrite"
    said = refused("train", "--model", model, "--data", data, "--output", str(output),
                   *(FAST if wrong == "resume" else FAST[:-2]), *first, *more, how)  # fmt: skip
    assert said and snapshot(output) == before


@pytest.mark.parametrize(("first", "second"), [(ONE, SEEDS), (SEEDS, ONE), (SEEDS, MANY)])
@pytest.mark.parametrize("more", [(), ("--resume",)])
def test_runs_of_other_seeds_are_not_mixed(
    trains: Any, refused: Refused, model: str, data: str, tmp_path: Path,
    first: list[str], second: list[str], more: Any,
) -> None:  # fmt: skip
    output = tmp_path / "out"
    trains(data, output, *first)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (output / name).unlink()  # as where a run stopped before its first validation
    before = snapshot(output)
    said = refused("train", "--model", model, "--data", data, "--output", str(output), *FAST,
                   *second, *more)  # fmt: skip
    assert "a finished run of 4 steps" in said and "--overwrite" in said
    assert snapshot(output) == before


@pytest.fixture(scope="module")
def dated(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base whose chat template prints the day."""
    tokenizer = tiny_tokenizer()
    day = "{{ strftime_now('%d %b %Y') }}"
    tokenizer.chat_template = day + tokenizer.chat_template
    return tiny_models.save_base(tmp_path_factory.mktemp("dated"), tokenizer)


@pytest.fixture
def context(tmp_path: Path) -> str:
    path = tmp_path / "context.txt"
    path.write_text("The lamp is red. The door is blue. The oven is hot.\n" * 2)
    return str(path)


def _distills(model: str, context: str, data: str, output: Path, *more: str) -> str:
    return _invoke("distill", "--model", model, "--context", context, "--data", data,
                   "--output", str(output), *LEARNED, *more)  # fmt: skip


def test_a_distillation_begun_anew_keeps_nothing_of_another_text(
    model: str, dated: str, data: str, context: str, tmp_path: Path
) -> None:
    used, fresh = tmp_path / "used", tmp_path / "fresh"
    many = _rows(tmp_path / "many.jsonl", "abcdefgh")
    _distills(dated, context, many, used, *SEEDS)
    assert (used / "context.json").exists() and len(list((used / "teacher").iterdir())) == 2
    (used / "questions").mkdir()
    (used / "questions" / "00000.json").write_text('{"key": "of another text", "questions": []}')
    (used / "questions" / "mine.json").write_text("mine")
    _distills(model, context, data, used, "--overwrite")
    _distills(model, context, data, fresh)
    assert _files(used) - _files(fresh) == {"questions/mine.json"}
    assert _files(fresh) <= _files(used)
    _distills(model, context, data, used, "--resume")
    kept = (used / "teacher" / "00000.safetensors").stat().st_mtime_ns
    _distills(model, context, data, used, "--seed", "2", "--overwrite")  # the same answers
    assert (used / "teacher" / "00000.safetensors").stat().st_mtime_ns == kept
    Path(tmp_path / "rows").mkdir()
    _invoke("train", "--model", model, "--data", data, "--output", str(used), *FAST, "--overwrite")
    assert not (used / "teacher").exists() and (used / "questions" / "mine.json").exists()


@pytest.mark.parametrize(
    "wrong",
    [["--answer-tokens", "4000"], ["--distractors", "nowhere"], ["--num-virtual-tokens", "999"]],
)
def test_a_distillation_that_is_refused_loses_nothing(
    refused: Refused, model: str, data: str, context: str, tmp_path: Path, wrong: list[str]
) -> None:
    output = tmp_path / "out"
    _distills(model, context, data, output)
    before = snapshot(output)
    other = tmp_path / "other.txt"
    other.write_text("Mail to box nine costs two coins, on all days. " * 2)
    refused("distill", "--model", model, "--context", str(other), "--data", data, "--output",
            str(output), *LEARNED, *wrong, "--overwrite")  # fmt: skip
    assert snapshot(output) == before


def test_a_run_begun_anew_that_was_stopped_goes_on(
    trains: Any, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from foreword.training import out_of_memory

    old, new = _rows(tmp_path / "old.jsonl", "abc"), _rows(tmp_path / "new.jsonl", "abd")
    output, step = tmp_path / "out", out_of_memory.train_step
    trains(old, output, *SEEDS)

    def stops(run: Any, state: Any, rows: Any) -> Any:
        if state.progress.step == 2:
            raise KeyboardInterrupt
        return step(run, state, rows)

    monkeypatch.setattr(out_of_memory, "train_step", stops)
    arguments = ["train", "--model", model, "--data", new, "--output", str(output), *FAST, *SEEDS]
    assert CliRunner().invoke(app, [*arguments, "--overwrite"]).exit_code == 130
    monkeypatch.undo()
    _invoke(*arguments, "--resume")
    steps = [read_state(output / "seeds" / n / STATE_FILE).progress().step for n in "01"]
    assert steps == [4, 4]
