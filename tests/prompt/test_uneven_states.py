"""Keys and values whose layers differ in shape: stored by foreword alone, and verified as all
else.
"""

import json
from collections.abc import Callable
from pathlib import Path

import oracle
import pytest
import tiny_models
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from foreword import Backbone, SoftPrompt
from foreword.errors import ArtifactError
from foreword.prompt import artifact

# Head sizes differ by layer; latents differ from rotated keys; recurrent states beside keys and
# values, in one layer or apart, and alone.
UNEVEN = ["gemma4", "kimi_k2", "qwen3_next", "falcon_h1", "lfm2", "mamba2"]


def saved(family: str, directory: Path) -> SoftPrompt:
    backbone = Backbone(tiny_models.shared(family))
    embeddings = SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, 5))
    prompt = SoftPrompt.from_states(backbone.compile(embeddings).states)
    prompt.save(directory)
    return prompt


def change(directory: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    path = directory / "adapter_model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize("family", UNEVEN)
def test_what_is_loaded_is_what_was_saved(family: str, tmp_path: Path) -> None:
    prompt = saved(family, tmp_path)
    loaded = SoftPrompt.load(tmp_path)
    assert loaded.content_hash == prompt.content_hash and loaded.form == "key_values"
    backbone, ids = Backbone(tiny_models.shared(family)), tiny_models.ids(4)
    output = backbone.generate(loaded, ids[None], max_new_tokens=4, do_sample=False)
    assert output[0, 4:].tolist() == oracle.greedy(backbone.model, prompt, ids, 4)
    backbone.compile(prompt).save(tmp_path / "prefix")
    assert SoftPrompt.load(tmp_path / "prefix").content_hash == prompt.content_hash


@pytest.mark.parametrize("family", UNEVEN)
def test_peft_refuses_the_file_and_the_file_says_why(family: str, tmp_path: Path) -> None:
    saved(family, tmp_path)
    with pytest.raises(KeyError, match="FOREWORD_ONLY"):
        PeftModel.from_pretrained(tiny_models.build(family), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert "PEFT cannot read this adapter" in config["note"]


def test_layers_of_one_shape_stay_in_pefts_layout(tmp_path: Path) -> None:
    saved("gemma3n", tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "PREFIX_TUNING"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tensors: tensors.pop("foreword.2"), "no tensor 'foreword.2'"),
        (lambda tensors: tensors.pop("foreword.5"), "no tensor 'foreword.5'"),
        (lambda tensors: tensors.clear(), "no tensor 'foreword.0'"),
        (lambda tensors: tensors.update(other=torch.zeros(1)), "holds 'other' beside"),
        (lambda tensors: tensors["foreword.3"].fill_(torch.nan), "NaN"),
        (lambda tensors: tensors["foreword.3"].add_(1), "do not match their recorded hash"),
        (lambda tensors: tensors.update({"foreword.1": torch.zeros(2, 4, 8)}), "differ in virtual"),
        (lambda tensors: tensors.update({"foreword.1": torch.zeros(5, 8)}), "layer 0: expected"),
        (
            lambda tensors: tensors.update({"foreword.1": torch.zeros(2, 5, 0)}),
            "foreword.1 has shape",
        ),
    ],
)
def test_a_damaged_file_is_refused(
    edit: Callable[[dict[str, Tensor]], None], message: str, tmp_path: Path
) -> None:
    saved("gemma4", tmp_path)
    change(tmp_path, edit)
    with pytest.raises(ArtifactError, match=message):
        SoftPrompt.load(tmp_path)


def test_states_that_differ_in_p_or_in_layout_alone_are_other_prompts(tmp_path: Path) -> None:
    """Recurrent states do not tell P, and the same tensors may be of other layers."""
    tensors = [torch.ones(4, 3), torch.ones(2, 3, 3), torch.ones(4, 3), torch.ones(4, 3)]

    def prompt(num_virtual: int, counts: tuple[int, ...]) -> SoftPrompt:
        return SoftPrompt("key_values", tensors, counts=counts, num_virtual_tokens=num_virtual)

    prompts = [prompt(2, (2, 2)), prompt(3, (2, 2)), prompt(2, (2, 1, 1))]
    assert len({one.content_hash for one in prompts}) == 3
    window = torch.ones(4, 3)
    state = SoftPrompt("key_values", [window], counts=(1,), num_virtual_tokens=4)
    assert state.content_hash != SoftPrompt.from_embeddings(window).content_hash
    for number, one in enumerate(prompts):
        one.save(tmp_path / str(number))
        loaded = SoftPrompt.load(tmp_path / str(number))
        assert loaded.content_hash == one.content_hash
        # What a file records is of the values alone, as in files that were written before.
        assert loaded.facts["content_hash"] == artifact.content_hash(tensors)


def test_prompts_of_the_same_states_and_another_p_compile_apart() -> None:
    backbone = Backbone(tiny_models.shared("mamba2"))
    embeddings = SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, 5))
    first = SoftPrompt.from_states(backbone.compile(embeddings).cached)
    second = SoftPrompt(
        "key_values",
        first.tensors,
        counts=first.counts,
        num_virtual_tokens=first.num_virtual_tokens + 1,
    )
    assert [backbone.compile(one).num_virtual_tokens for one in (first, second)] == [5, 6]
