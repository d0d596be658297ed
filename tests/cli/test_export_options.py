"""Options of `foreword export` that its format does not use, and the calls that it prints."""

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foreword.cli import export
from foreword.cli.commands import app
from foreword.export.llama_state import StateFile

GIVEN = {
    "--cache-type": ["--cache-type", "f16"],  # also at its default: it has no effect
    "--flash-attention": ["--no-flash-attention"],
    "--server": ["--server", "http://localhost:8080"],
    "--slot": ["--slot", "0"],
}


@pytest.mark.parametrize("option", GIVEN)
@pytest.mark.parametrize("target", ["checkpoint", "gguf", "mlx"])
def test_an_option_that_the_format_does_not_use_is_refused(target: str, option: str) -> None:
    arguments = ["--prompt", "p", "--to", target, "--model", "m", "--output", "o"]
    found = CliRunner().invoke(app, ["export", *arguments, *GIVEN[option]])
    said = str(found.exception) + found.output
    assert found.exit_code != 0
    assert f"{option} is of --to llama-state, got --to {target}: leave it out" in said


@pytest.mark.parametrize("has_template", [True, False])
def test_printed_calls_are_words_of_a_shell(has_template: bool, tmp_path: Path) -> None:
    path = tmp_path / 'it\'s "mine".bin'
    template = path.with_name(path.name + ".jinja") if has_template else None
    facts = {"virtual_tokens": 2, "ids": [4, 5]}
    written = StateFile(path, path.with_name("s"), template, facts)
    lines = export._how_to_use(written, "a'b.gguf", "f16", 3, flash=True).splitlines()
    server, restore, *calls, _ = (shlex.split(line) for line in lines[:-1] + ["end"])
    assert server[2] == "a'b.gguf" and (str(template) in server) == has_template
    assert json.loads(restore[-1]) == {"filename": path.name}
    assert len(calls) == 1 + has_template
    assert json.loads(calls[0][-1])["prompt"][:2] == [4, 5]
    assert all(json.loads(call[-1])["id_slot"] == 3 for call in calls)
