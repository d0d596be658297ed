"""Run files: what `--config` reads is what would be typed, and what a run writes runs it again."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from command_line import FAST
from typer.testing import CliRunner

from foreword import SoftPrompt
from foreword.cli import app, run_file
from foreword.cli.run_file import NAME, OF_NO_FILE, PARAMETER


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
        ("batch-size: 1.5\n", "expected an integer, got"),
        ("batch-size: x\n", "expected an integer, got"),
        ("batch-size: 0x10\n", "expected an integer, got"),
        ("batch-size: 1:30\n", "expected an integer, got"),
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


def _parameters() -> list[tuple[str, Any]]:
    """Every option of every command that takes a file, by the command's name."""
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    of_file = {
        name: one.params
        for name, one in commands.items()
        if any(parameter.name == PARAMETER for parameter in getattr(one, "params", []))
    }
    return [(name, one) for name, own in of_file.items() for one in own]


def test_every_option_is_one_by_each_of_its_flags() -> None:
    for command, parameter in _parameters():
        known = run_file._by_name([parameter])
        for flag in (*parameter.opts, *parameter.secondary_opts):
            name = flag.removeprefix("--").replace("-", "_")
            is_known = parameter.name not in OF_NO_FILE
            assert (known.get(name) is parameter) == is_known, f"{command} {flag}"


def test_a_flag_is_read_by_its_name_and_by_the_name_that_denies_it(
    refused: Any, model: str, data: str, tmp_path: Path
) -> None:
    file = tmp_path / "run.yaml"
    start = f"model: {model}\ndata: {data}\nmax-new-tokens: 2\n"
    file.write_text(f"{start}json: true\nmetrics: exact\n")
    ended = CliRunner().invoke(app, ["eval", "--config", str(file)], catch_exceptions=False)
    assert json.loads(ended.stdout)["results"]
    start = start.replace("max-new-tokens: 2\n", f"output: {tmp_path / 'a'}\nlr: 0.1\n")
    file.write_text(f"{start}no-start-token: true\n")
    assert "--no-start-token is of --row-template" in refused("train", "--config", str(file))
    file.write_text(f"{start}no-start-token: false\nno-plain: true\nlearning-rate: 0.1\n")
    assert "learning-rate stands there twice" in refused("train", "--config", str(file))


def test_the_home_folder_may_be_written_as_in_a_shell(
    model: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, place = tmp_path / "home", tmp_path / "here"
    home.mkdir(), place.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.chdir(place)
    (home / "start.txt").write_text("Say it.")
    file = tmp_path / "run.yaml"
    file.write_text(
        f"model: {model}\ndata: {data}\noutput: ~/a/b\ninit-text: '@~/start.txt'\nnum-steps: 1\n"
    )
    invoke("train", "--config", str(file))
    assert (home / "a" / "b" / NAME).exists() and not list(place.iterdir())


@pytest.mark.parametrize("value", ["a~/b", "~", "~ about", "~nobody-of-this-name/x", "@x~"])
def test_other_values_with_a_tilde_stay_as_they_are(value: str) -> None:
    expected = os.path.expanduser("~") if value == "~" else value
    assert run_file._from_home(value) == expected
