"""The commonest class: a prompt is laid beside who always gives it."""

import json
from pathlib import Path

import pytest
from command_line import FAST
from typer.testing import CliRunner

from foreword.cli.commands import app
from foreword.cli.train import no_better


def rows(path: Path, answers: list[str]) -> str:
    lines = [{"prompt": f"say {n}", "completion": answer} for n, answer in enumerate(answers)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def classes(tmp_path: Path) -> str:
    return rows(tmp_path / "classes.jsonl", ["yes", "yes", "no", "yes", "no"] * 2)


def test_a_run_that_learned_nothing_says_so(model: str, classes: str, tmp_path: Path) -> None:
    out = str(tmp_path / "prompt")
    said = " ".join(
        invoke("train", "--model", model, "--data", classes, "--validation", classes,
               "--output", out, *FAST).split()
    )  # fmt: skip
    assert (
        "who always answers 'yes' is right for 60% of the held-out rows, and the prompt for" in said
    )


def test_tables_and_json_hold_the_commonest_class(model: str, classes: str) -> None:
    said = invoke("eval", "--model", model, "--data", classes, "--max-new-tokens", "2")
    assert "who always answers 'yes': 60.0% right" in " ".join(said.split())
    quick = ("--max-new-tokens", "2", "--json")
    found = json.loads(invoke("eval", "--model", model, "--data", classes, *quick).splitlines()[-1])
    assert found["commonest"] == {"answer": "yes", "share": 0.6}


def test_other_answers_have_none(model: str, data: str) -> None:
    quick = ("--max-new-tokens", "2", "--json")
    assert "commonest" not in invoke("eval", "--model", model, "--data", data, *quick)


@pytest.mark.parametrize(
    ("answers", "exact", "is_said"),
    [
        (["yes", "no"] * 4, 0.5, True),
        (["yes", "no"] * 4, 0.51, False),
        (["yes"] * 8, 1.0, False),
        ([str(n) for n in range(8)], 0.0, False),
        ([], 1.0, False),
    ],
)
def test_only_a_prompt_that_is_no_better_is_spoken_of(
    answers: list[str], exact: float, is_said: bool
) -> None:
    assert (no_better(answers, exact) is not None) is is_said
