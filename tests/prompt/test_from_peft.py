"""docs/from-peft.md: every block runs, and what each writes is a prompt."""

import warnings
from pathlib import Path

import pytest
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer

from foreword import SoftPrompt

PAGE = (Path(__file__).parents[2] / "docs" / "from-peft.md").read_text()
SETUP, *BLOCKS = [part.removeprefix("python\n") for part in PAGE.split("```")[1::2]
                  if part.startswith("python\n")]  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # the libraries' own
@pytest.mark.parametrize("name", ["foreword", "peft", "trl"])
def test_the_block_runs_and_writes_a_prompt(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "trl":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip("trl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    tokenizer = tiny_tokenizer()
    model = tiny_models.build("llama", dtype=torch.float32, vocab_size=len(tokenizer))
    model.save_pretrained("model"), tokenizer.save_pretrained("model")
    names: dict[str, object] = {}
    (block,) = [code for code in BLOCKS if f'"runs/{name}"' in code]
    exec(SETUP.replace("HuggingFaceTB/SmolLM2-135M-Instruct", "model"), names)
    exec(block, names)
    assert SoftPrompt.load(f"runs/{name}").num_virtual_tokens == 16
