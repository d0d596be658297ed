"""Options that can have no effect beside others: each is refused in one line, or said."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import FAST
from test_outputs import snapshot
from typer.testing import CliRunner

from foreword import SoftPrompt
from foreword.cli import app

Refused = Callable[..., str]

TRAIN = "train --data rows.jsonl --output new"
DISTILL = "distill --context context.txt --output new"
WITH_DATA = f"{DISTILL} --data rows.jsonl"
REWARD = "reward --prompt good --data rows.jsonl --reward checks.py:right --output new"
DPO = "train --data pairs.jsonl --objective dpo --init-text say --output new"
EVAL = "eval --prompt good --data questions.jsonl --context context.txt"

REFUSED = {
    # distill: options of asking, of a file, of distractors.
    f"{WITH_DATA} --questions 7": "--questions is for asking questions",
    f"{WITH_DATA} --question-tokens 9": "--question-tokens is for asking questions",
    f"{WITH_DATA} --questions-from http://a --questions-model b": "--questions-from is for asking",
    f"{WITH_DATA} --distractor-share 0.9": "--distractor-share is of --distractors",
    f"{WITH_DATA} --distractors others --distractor-share 0": "--distractor-share 0 places none",
    f"{WITH_DATA} --learn last": "--learn is for learning from answers",
    f"{DISTILL} --labels 0.5": "--labels 0.5 is for rows with answers",
    f"{DISTILL} --prompt-column nonexistent": "--prompt-column is for rows of --data",
    f"{DISTILL} --messages-column a": "--messages-column is for rows of --data",
    f"{DISTILL} --completion-column a": "--completion-column is for rows of --data",
    f"{DISTILL} --template {{a}}": "--template is for rows of --data",
    f"{DISTILL} --template {{a}} --label-column b": "--template is for rows of --data",
    f"{DISTILL} --skip-blank": "--skip-blank is for rows of --data",
    f"{DISTILL} --learn last": "--learn is for rows of --data",
    f"{WITH_DATA} --label-column b": "--label-column is of --template",
    # Several tasks where one prompt is trained: before anything is answered.
    f"{WITH_DATA} --method multitask": "distill trains one prompt",
    f"{WITH_DATA} --method multitask --task-column a": "distill trains one prompt",
    f"{REWARD} --method multitask": "reward trains one prompt",
    # reward.
    f"{REWARD} --learn last": "--learn is for learning from answers",
    f"{REWARD} --label-column a": "--label-column is of --template",
    # train: how rows are written.
    f"{TRAIN} --no-start-token": "--no-start-token is of --row-template",
    f"{TRAIN} --row-template {{prompt}} --opening generation": "no row is written by one with --r",
    f"{TRAIN} --row-template {{prompt}} --plain": "leave --plain out",
    f"{TRAIN} --plain --opening generation": "no row is written by one with --plain",
    f"{TRAIN} --plain --date 2026-01-31": "--date is of chat templates",
    f"{TRAIN} --plain --chat-template context.txt": "--chat-template is of chat templates",
    f"{TRAIN} --row-template {{prompt}} --date 2026-01-31": "--date is of chat templates",
    f"{TRAIN} --template {{prompt}}": "give --label-column",
    f"{TRAIN} --label-column completion": "--label-column is of --template",
    f"{DPO} --learn last": "leave --learn out",
    # eval.
    f"{EVAL} --choices yes,no": "--choices is for a score, and the rows have no answers",
    f"{EVAL} --metrics exact": "--metrics is for a score, and the rows have no answers",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str) -> Path:
    """A folder with a file of each kind that the commands name; `data` is rows.jsonl in it."""
    import torch

    SoftPrompt.from_embeddings(torch.ones(4, 32)).save(tmp_path / "good")
    (tmp_path / "context.txt").write_text("The lamp is red. The door is blue.\n" * 9)
    (tmp_path / "checks.py").write_text(
        "def right(completions):\n    return [1] * len(completions)\n"
    )
    rows = [{"prompt": f"say {word}", "chosen": word, "rejected": "no"} for word in "abcd"]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [{"prompt": row["prompt"]} for row in rows]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("call", REFUSED)
def test_an_option_that_can_have_no_effect_is_refused(
    refused: Refused, model: str, here: Path, call: str
) -> None:
    said = refused(*call.split(), "--model", model)
    assert REFUSED[call] in said
    assert not [name for name in snapshot(here) if name.startswith("new/")]


@pytest.mark.parametrize(
    "given", ["--opening generation", "--row-template {prompt} --no-start-token"]
)
def test_an_option_that_some_row_needs_is_taken(model: str, here: Path, given: str) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a"}]
    rows = here / "rows.jsonl"
    rows.write_text(rows.read_text() + json.dumps({"messages": turns}) + "\n")
    more = given.split() if "row-template" in given else [*given.split(), "--plain"]
    ended = CliRunner().invoke(
        app, [*TRAIN.split(), "--model", model, *FAST, *more], catch_exceptions=False
    )
    assert ended.exit_code == 0


def test_a_column_of_answers_that_are_not_read_is_said(model: str, here: Path) -> None:
    drawn = ["--group", "2", "--answer-tokens", "2", "--batch-size", "2", "--num-steps", "1"]
    for more, is_said in ((["--label-column", "nonexistent"], True), ([], False)):
        command = [*REWARD.split(), "--model", model, *drawn, "--template", "{prompt}!", *more]
        ended = CliRunner().invoke(app, [*command, "--overwrite"], catch_exceptions=False)
        assert ended.exit_code == 0, ended.output
        assert ("--label-column is not used" in ended.output) == is_said
