"""`foreword reward`, end to end on a tiny model."""

import json
from pathlib import Path

import pytest
from command_line import FAST
from test_cli import invoke

from foreword import SoftPrompt
from foreword.training.checkpoint import STATE_FILE, read_state

CHECKS = """
def long(prompts, completions, least):
    assert len(prompts) == len(completions) == len(least)
    return [float(len(text) >= number) for text, number in zip(completions, least)]

def away(completions):
    raise OSError("the checker is away")
"""
DRAWN = ("--group", "3", "--answer-tokens", "4", "--batch-size", "2", "--num-steps", "4",
         "--eval-every", "2", "--validation", "0.2")  # fmt: skip


@pytest.fixture
def begun(model: str, data: str, tmp_path: Path) -> tuple[str, str, str]:
    """Return a prompt, questions and the file of a checker."""
    start, questions = str(tmp_path / "start"), tmp_path / "questions.jsonl"
    invoke("train", "--model", model, "--data", data, "--output", start, *FAST)
    rows = [{"prompt": f"say {word}", "least": 2} for word in "abcdefghij"]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    checks = tmp_path / "own_checks.py"
    checks.write_text(CHECKS)
    return start, str(questions), str(checks)


def test_a_prompt_is_trained_by_rewards_and_gone_on_with(
    begun: tuple[str, str, str], model: str, tmp_path: Path
) -> None:
    start, questions, checks = begun
    output = tmp_path / "better"
    command = ["reward", "--prompt", start, "--data", questions, "--reward", f"{checks}:long",
               "--output", str(output), "--model", model, *DRAWN]  # fmt: skip
    said = invoke(*command)
    assert "validation reward" in said and "of 1 or more" in said
    found, facts = SoftPrompt.load(output).facts, SoftPrompt.load(start).facts
    assert found["training"]["objective"] == "rloo" and "reward" in found["metrics"]["validation"]
    assert found["encoding"] == facts["encoding"]
    assert "validation reward" in invoke("show", str(output))
    assert "goes on after step 4" in invoke(*command, "--resume")


def test_what_is_wrong_is_said_in_one_line(  # type: ignore[no-untyped-def]
    begun: tuple[str, str, str], model: str, data: str, tmp_path: Path, refused
) -> None:
    start, questions, checks = begun
    output = str(tmp_path / "better")
    command = ["reward", "--prompt", start, "--model", model, "--output", output, *DRAWN]
    both = [*command, "--data", questions]
    assert "expected module:function" in refused(*both, "--reward", "long")
    assert "has no function 'short'" in refused(*both, "--reward", f"{checks}:short")
    assert "takes 'least'" in refused(*command, "--data", data, "--reward", f"{checks}:long")
    assert "--group must be at least 2" in refused(*both, "--reward", f"{checks}:long",
                                                   "--group", "1")  # fmt: skip
    assert "--learning-rate auto" in refused(*both, "--reward", f"{checks}:long",
                                             "--learning-rate", "auto")  # fmt: skip
    line = refused(*both, "--reward", f"{checks}:away", code=6)
    assert "failed: OSError: the checker is away (own_checks.py, line 7)" in line
    assert read_state(Path(output) / STATE_FILE).progress().step == 0
