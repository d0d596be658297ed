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


@pytest.mark.parametrize(
    "num_virtual, more, num_cut", [(100, ["--truncate"], 6), (4, [], 0)], ids=["wide", "narrow"]
)
def test_rows_have_the_room_that_the_prompt_to_start_from_leaves(
    model: str, long: str, tmp_path: Path, num_virtual: int, more: list[str], num_cut: int
) -> None:
    start, output = str(tmp_path / "start"), str(tmp_path / "out")
    SoftPrompt.from_embeddings(torch.randn(num_virtual, 32)).save(start)
    said = invoke(
        "train", "--model", model, "--data", long, "--output", output, "--validation", "0",
        "--init-prompt", start, "--num-steps", "1", *more,
    )  # fmt: skip
    assert f"6 rows, {num_cut} truncated" in said
    assert SoftPrompt.load(output).num_virtual_tokens == num_virtual
