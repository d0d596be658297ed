"""What foreword 0.1.0 wrote before its modules moved: prompts load, and runs go on to the same end.

`tests/written_by_0_1` holds a tiny base and, for each method, a run that stopped after three of six
steps (`training_state.safetensors`), the prompt that the whole run came to, and its losses
(`expected.json`).
"""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM

from foreword import Backbone, Row, SoftPrompt, TrainConfig, train

FOLDER = Path(__file__).with_name("written_by_0_1")
METHODS = {
    "prompt-tuning": {},
    "prefix-tuning": {},
    "p-tuning": {"encoder_size": 6},
    "residual": {"encoder_size": 4},
    "prefix-projection": {"encoder_size": 4},
    "context-tuning": {"num_virtual_tokens": 14},
    "multitask": {},
}
ROWS = [
    dataclasses.replace(
        Row.from_ids(tiny_models.ids(length).tolist(), tiny_models.ids(answer, seed=5).tolist()),
        task="ab"[index % 2],
    )
    for index, (length, answer) in enumerate(((3, 2), (9, 1), (6, 5), (5, 2)))
]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone(AutoModelForCausalLM.from_pretrained(FOLDER / "base"), name="tiny")


@pytest.mark.parametrize("method", METHODS)
def test_a_prompt_of_0_1_loads_and_is_its_base_s(backbone: Backbone, method: str) -> None:
    prompt = SoftPrompt.load(FOLDER / method)
    expected = json.loads((FOLDER / method / "expected.json").read_text())
    assert prompt.content_hash == expected["content_hash"]
    assert prompt.facts["training"]["method"] == method and prompt.facts["base"]["name"] == "tiny"
    assert backbone.compile(prompt).num_virtual_tokens == prompt.num_virtual_tokens


def test_a_cartridge_of_0_1_is_the_prefix_that_its_prompt_compiles_to(backbone: Backbone) -> None:
    saved = SoftPrompt.load(FOLDER / "cartridge")
    prefix = backbone.compile(SoftPrompt.load(FOLDER / "prompt-tuning"))
    for pair, expected in zip(saved.key_values, prefix.key_values, strict=True):
        torch.testing.assert_close(pair, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_0_1_goes_on_to_the_same_end(
    backbone: Backbone, method: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(FOLDER / method, tmp_path / method)
    config = TrainConfig(
        method=method, batch_size=3, num_steps=6, eval_every=2, learning_rate=0.05,
        **({"num_virtual_tokens": 4} | METHODS[method]),
    )  # fmt: skip
    events = list(train(backbone, ROWS, config, validation=ROWS, checkpoint=folder, resume=True))
    expected = json.loads((folder / "expected.json").read_text())
    assert [event.step for event in events] == [4, 5, 6]
    losses = [event.loss for event in events]
    assert losses == pytest.approx(expected["losses"][3:], rel=1e-4)
    theirs, ours = SoftPrompt.load(folder), events[-1].prompt
    for mine, other in zip(ours.tensors, theirs.tensors, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)
