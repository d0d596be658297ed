"""`foreword train --objective dpo`, end to end on a tiny model."""

import json
from pathlib import Path

import pytest
from command_line import FAST
from test_cli import invoke

from foreword import SoftPrompt
from foreword.training.checkpoint import STATE_FILE


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"say {w}", "chosen": w, "rejected": f"{w} {w} {w}"} for w in "abcdefghij"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_pairs_become_a_prompt_that_a_second_command_goes_on_with(
    model: str, pairs: str, tmp_path: Path
) -> None:
    output = tmp_path / "prompt"
    command = ["train", "--model", model, "--data", pairs, "--output", str(output), *FAST]
    command += ["--objective", "dpo-norm", "--validation", "0.2"]
    said = invoke(*command)
    assert "8 rows" in said and "2 rows" in said and "preferred)" in said
    facts = SoftPrompt.load(output).facts
    assert facts["training"]["objective"] == "dpo-norm" and facts["training"]["beta"] == 5
    assert facts["metrics"]["validation"]["preferred"] in (0, 0.5, 1)
    assert "preferred" in invoke("show", str(output))
    again = invoke(*command, "--resume")
    assert "goes on after step" in again and (output / STATE_FILE).exists()
    then = tmp_path / "then"
    invoke("train", "--model", model, "--data", pairs, "--output", str(then), "--num-steps", "1",
           "--objective", "dpo", "--init-prompt", str(output), "--validation", "0")  # fmt: skip
    assert SoftPrompt.load(then).facts["training"]["objective"] == "dpo"


def test_what_is_wrong_is_said_in_one_line(  # type: ignore[no-untyped-def]
    model: str, pairs: str, data: str, tmp_path: Path, refused
) -> None:
    output = str(tmp_path / "out")
    start = ["train", "--model", model, "--output", output, "--objective", "dpo"]
    assert "--init-prompt DIR or --init-text" in refused(*start, "--data", pairs)
    known = [*start, "--init-text", "a"]
    assert "rows.jsonl:1: expected columns" in refused(*known, "--data", data)
    assert "--beta" in refused(*known, "--data", pairs, "--beta", "0")
    assert "--template" in refused(
        *known, "--data", pairs, "--template", "{prompt}", "--label-column", "chosen"
    )
    other = ["train", "--model", model, "--output", output, "--data", pairs]
    assert "'completion'" in refused(*other)
    assert "--beta 1 is of --objective dpo" in refused(*other, "--beta", "1")
    assert not Path(output, STATE_FILE).exists()
