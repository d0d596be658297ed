"""A run does not write where it reads: an output is no folder of its rows, prompts or model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import FAST
from test_outputs import snapshot
from typer.testing import CliRunner

from foreword import SoftPrompt
from foreword.cli import app

Refused = Callable[..., str]

DRAWN = ("--reward", "checks.py:right", "--group", "2", "--batch-size", "2", "--num-steps", "1")
TRAIN = ("train", "--data", "rows.jsonl")
DISTILL = ("distill", "--context", "context.txt", "--data", "rows.jsonl")
REWARD = ("reward", "--data", "rows.jsonl", "--prompt", "prompts/good", *DRAWN)

READS: list[tuple[tuple[str, ...], str, str]] = [
    (TRAIN, "--data", "parent/rows"),
    (TRAIN, "--data", "parent/rows/train"),
    (TRAIN, "--data", "parent/rows:train"),
    (TRAIN, "--validation", "parent/rows/train"),
    (TRAIN, "--init-prompt", "prompts/good"),
    (TRAIN, "--model", "base/model"),
    (DISTILL, "--data", "parent/rows"),
    (DISTILL, "--context", "prompts/good"),
    (DISTILL, "--distractors", "prompts"),
    (DISTILL, "--model", "base/model"),
    (REWARD, "--data", "parent/rows"),
    (REWARD, "--validation", "parent/rows/train"),
    (REWARD, "--prompt", "prompts/good"),
    (REWARD, "--model", "base/model"),
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, model: str) -> Path:
    """A folder with folders of each kind that the commands name; `data` is rows.jsonl in it."""
    SoftPrompt.from_embeddings(torch.ones(4, 32)).save(tmp_path / "prompts" / "good")
    (tmp_path / "context.txt").write_text("The lamp is red. The door is blue.\n" * 9)
    (tmp_path / "checks.py").write_text(
        "def right(completions):\n    return [1 for _ in completions]\n"
    )
    (tmp_path / "parent" / "rows" / "train").mkdir(parents=True)
    for name in ("train.jsonl", "train/a.jsonl"):
        shutil.copy(data, tmp_path / "parent" / "rows" / name)
    shutil.copytree(model, tmp_path / "base" / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _with(command: tuple[str, ...], option: str, value: str) -> list[str]:
    kept = list(command)
    if option in kept:
        del kept[kept.index(option) : kept.index(option) + 2]
    return [*kept, option, value]


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
@pytest.mark.parametrize(("command", "option", "value"), READS)
def test_an_output_that_is_read_is_refused(
    refused: Refused, model: str, here: Path,
    command: tuple[str, ...], option: str, value: str, more: Any,
) -> None:  # fmt: skip
    more = (*more, *(() if option == "--model" else ("--model", model)))
    if value.startswith("parent/rows") and not value.endswith("/train"):
        shutil.rmtree(here / "parent" / "rows" / "train")
    folder = value.removesuffix(":train")
    link = here / "link"
    link.symlink_to(here / folder, target_is_directory=True)
    before = snapshot(here)
    outputs = {folder: "is", str(Path(folder).parent): "holds", "link": "is", f"{folder}/": "is"}
    if option == "--distractors":
        outputs |= {"prompts/new": "lies in"}
    for output, how in outputs.items():
        said = refused(*_with(command, option, value), "--output", output, *more)
        assert f"--output {output} {how} the folder that {option} reads" in said
    assert snapshot(here) == before


def test_an_output_beside_what_is_read_is_taken(model: str, here: Path) -> None:
    shutil.rmtree(here / "parent" / "rows" / "train")
    rows = str(here / "parent" / "rows")
    for data, output in ((rows, f"{rows}/out"), (rows, "parent/out"), ("rows.jsonl", ".")):
        command = ["train", "--model", model, "--data", data, "--output", output, *FAST]
        for more in ((), ("--resume",)):
            ended = CliRunner().invoke(app, [*command, *more], catch_exceptions=False)
            assert ended.exit_code == 0, ended.output
    assert json.loads((here / "adapter_config.json").read_text())["num_virtual_tokens"] == 4
