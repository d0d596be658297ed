"""`foreword train --init-prompt`: rows beside the prompt that the run starts from."""

import json
from pathlib import Path

import pytest
import torch
from test_cli import invoke

from foreword import SoftPrompt


@pytest.fixture
def long(tmp_path: Path) -> str:
    """Rows of 233 tokens each, of the 256 that the model's context has."""
    path = tmp_path / "long.jsonl"
    rows = [{"prompt": f"{n} " + "x" * 208, "completion": "yes"} for n in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prompt_of(path: Path, num_virtual: int) -> str:
    SoftPrompt.from_embeddings(torch.randn(num_virtual, 32)).save(path)
    return str(path)


def test_rows_are_cut_to_what_the_prompt_to_start_from_leaves(
    model: str, long: str, tmp_path: Path
) -> None:
    output = str(tmp_path / "cut")
    said = invoke(
        "train", "--model", model, "--data", long, "--output", output, "--validation", "0",
        "--init-prompt", prompt_of(tmp_path / "wide", 100), "--truncate", "--num-steps", "1",
    )  # fmt: skip
    assert "6 rows, 6 truncated" in said
    assert SoftPrompt.load(output).num_virtual_tokens == 100


def test_rows_have_all_the_room_that_the_prompt_to_start_from_leaves(
    model: str, long: str, tmp_path: Path
) -> None:
    output = str(tmp_path / "whole")
    said = invoke(
        "train", "--model", model, "--data", long, "--output", output, "--validation", "0",
        "--init-prompt", prompt_of(tmp_path / "narrow", 4), "--num-steps", "1",
    )  # fmt: skip
    assert "6 rows, 0 truncated" in said
