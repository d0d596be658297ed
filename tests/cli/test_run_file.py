"""Run files: what `--config` reads is what would be typed, and what a run writes runs it again."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import FAST
from typer.testing import CliRunner

from foreword import SoftPrompt
from foreword.cli import app
from foreword.cli.run_file import NAME


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("separator", ["-", "_"])
def test_a_run_is_repeated_from_the_file_that_it_wrote(
    model: str, data: str, tmp_path: Path, separator: str
) -> None:
    typed = ["--seed", "3", "--learning-rate", "2e-2", "--method", "prefix-tuning", *FAST]
    invoke("train", "--model", model, "--data", data, "--output", str(tmp_path / "a"), *typed)
    kept = yaml.safe_load((tmp_path / "a" / NAME).read_text())
    assert kept["seed"] == 3 and kept["learning-rate"] == 0.02 and kept["data"] == data
    again = {key.replace("-", separator): value for key, value in kept.items()}
    file = tmp_path / "again.yaml"
    file.write_text(yaml.safe_dump(again))
    invoke("train", "--config", str(file), "--output", str(tmp_path / "b"))
    first, second = (SoftPrompt.load(str(tmp_path / name)) for name in "ab")
    assert first.content_hash == second.content_hash


def test_what_is_typed_comes_before_the_file(model: str, data: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"model: {model}\ndata: {data}\noutput: {tmp_path / 'a'}\nseed: 1\n")
    invoke("train", "--config", str(file), "--seed", "2", *FAST)
    assert yaml.safe_load((tmp_path / "a" / NAME).read_text())["seed"] == 2


def test_what_is_of_one_call_is_not_written(model: str, data: str, tmp_path: Path) -> None:
    assert "resume" not in _written(model, data, tmp_path, "--overwrite")
    assert "overwrite" not in _written(model, data, tmp_path, "--overwrite")


def _written(model: str, data: str, tmp_path: Path, *more: str) -> dict[str, Any]:
    output = str(tmp_path / "a")
    invoke("train", "--model", model, "--data", data, "--output", output, *FAST, *more)
    found: dict[str, Any] = yaml.safe_load((tmp_path / "a" / NAME).read_text())
    return found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bacth-size: 3\n", "no option 'bacth-size'; did you mean batch-size?"),
        ("batch-size: 3\nbatch_size: 4\n", "batch_size stands there twice"),
        ("seed: 3\nseed: 4\n", "'seed' stands there twice"),
        ("seed: {a: 1}\n", "seed: expected a text or a number"),
        ("seed:\n", "seed: expected a text or a number, got None"),
        ("seed: [1, 2]\n", "seed: expected one value, got a list of 2"),
        ("truncate: 3\n", "truncate: expected true or false, got '3'"),
        ("init: yes\n", "put a text that YAML reads otherwise into quotes"),
        ("- seed\n", "must hold lines of the form NAME: VALUE"),
        ("a: [\n", "is no YAML"),
        ("a: &a [*a]\n", "no option 'a'"),
        ("seed: &a [*a]\n", "expected one value"),
        ("batch-size: 1.5\n", "should be a valid integer"),
        ("batch-size: x\n", "should be a valid integer"),
        ("batch-size: 0x10\n", "should be a valid integer"),
        ("batch-size: 1:30\n", "should be a valid integer"),
        ("learning-rate: .inf\n", ".inf"),
        ("init: nonsense\n", "'nonsense' is not one of"),
        ("help: true\n", "no option 'help'"),
        ("config: other.yaml\n", "no option 'config'"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(
    refused: Any, tmp_path: Path, data: str, text: str, said: str
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    line = refused("train", "--config", str(file), "--data", data, "--output", str(tmp_path / "a"))
    assert said in line
    assert not (tmp_path / "a").exists()


def test_bytes_that_are_no_text_are_refused(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe")
    assert "cannot read" in refused("serve", "--config", str(tmp_path / "run.yaml"))


def test_an_argument_is_an_option_of_the_file_too(refused: Any, tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(f"model: {tmp_path / 'none'}\nprompts: {tmp_path / 'nowhere'}\nport: 0\n")
    assert "nowhere" in refused("serve", "--config", str(file))


@pytest.mark.parametrize("name", ["1.10", "017", "1_000", "0x1f", "1e5", "2026-01-31", "12:30"])
def test_a_name_that_looks_like_a_number_stays_a_name(
    refused: Any, tmp_path: Path, name: str
) -> None:
    (tmp_path / "run.yaml").write_text(f"data: {name}\n")
    output = str(tmp_path / "a")
    said = refused("train", "--config", str(tmp_path / "run.yaml"), "--output", output)
    assert f"{name}: no such" in said
