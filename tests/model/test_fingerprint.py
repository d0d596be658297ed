"""Fingerprints: any base that differs is told, and one base is the same in every form of it."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import seq2seq_models
import tiny_models
import torch
from torch import Tensor

from foreword import Backbone, SoftPrompt
from foreword.errors import MismatchError
from foreword.model import base_model, fingerprint

SIZES = {"hidden_size": 64, "vocab_size": 128, "head_dim": 16}
BEFORE = Path(__file__).parents[1] / "training" / "written_by_0_1"


def build(family: str = "llama", **changes: Any) -> Any:
    options = SIZES | {"tie_word_embeddings": False} | changes
    return tiny_models.build(family, dtype=torch.float32, **options)


def prompt_of(model: Any, **changes: Any) -> SoftPrompt:
    """Return a prompt of a base, with some of what its fingerprint says changed or left out."""
    backbone = Backbone(model)
    found = {k: v for k, v in (backbone.fingerprint() | changes).items() if v is not ...}
    width = backbone.capabilities.hidden_size
    return SoftPrompt.from_embeddings(torch.ones(2, width), facts={"base": {"fingerprint": found}})


def left(tensor: Tensor) -> Tensor:
    return tensor[..., : tensor.shape[-1] // 2]


HALVES: dict[str, Callable[[Tensor], Tensor]] = {
    "left": left,
    "right": lambda tensor: tensor[..., tensor.shape[-1] // 2 :],
    "top": lambda tensor: tensor[: len(tensor) // 2],
    "bottom": lambda tensor: tensor[len(tensor) // 2 :],
    "even rows": lambda tensor: tensor[::2],
    "odd rows": lambda tensor: tensor[1::2],
    "even columns": lambda tensor: tensor[..., ::2],
    "odd columns": lambda tensor: tensor[..., 1::2],
}


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "deepseek_v3"])
def test_half_of_any_tensor_tells_another_base(family: str, half: Any) -> None:
    """Head, norms, biases and experts included."""
    model = build(family, **({"attention_bias": True} if family == "llama" else {}))
    own = Backbone(model).fingerprint()
    for name, tensor in fingerprint.kept_tensors(model):
        part = half(tensor.detach())
        part.add_(1)
        assert Backbone(model).fingerprint()["tensors"] != own["tensors"], name
        part.sub_(1)


def test_another_head_is_another_base() -> None:
    model, other = build(), build()
    torch.nn.init.normal_(other.lm_head.weight)
    with pytest.raises(MismatchError, match="they differ in tensors"):
        Backbone(other).check(prompt_of(model))


def test_an_encoder_s_last_layer_is_of_the_base() -> None:
    model = seq2seq_models.build("t5")
    own = Backbone(model).fingerprint()
    with torch.no_grad():
        list(model.encoder.parameters())[-1].neg_()
    assert Backbone(model).fingerprint()["tensors"] != own["tensors"]


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (64, 64), (4096, 4096), (8, 300, 70)])
def test_numbers_are_spread_over_all_of_a_tensor(shape: tuple[int, ...]) -> None:
    places = fingerprint.spread(shape)
    number = min(torch.Size(shape).numel(), fingerprint.NUM_NUMBERS)
    assert places.shape == (len(shape), number)
    assert len(set(map(tuple, places.T.tolist()))) == number
    for size, found in zip(shape, places.tolist(), strict=True):
        assert all(0 <= place < size for place in found)
        assert size == 1 or {place * 2 // size for place in found} == {0, 1}


@pytest.mark.parametrize("is_tied", [True, False])
def test_one_base_is_the_same_in_every_form(is_tied: bool, tmp_path: Path) -> None:
    model = build(tie_word_embeddings=is_tied).to(torch.bfloat16)
    own = Backbone(model).fingerprint()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    for directory in (tmp_path / "whole", tmp_path / "parts"):
        assert base_model.fingerprint_of(str(directory)) == own
    assert Backbone(copy.deepcopy(model).to(torch.float64)).fingerprint() == own


def test_a_checkpoint_with_another_head_is_told_without_loading_it(tmp_path: Path) -> None:
    model = build()
    own = Backbone(model).fingerprint()
    torch.nn.init.normal_(model.lm_head.weight)
    model.save_pretrained(tmp_path)
    found = base_model.fingerprint_of(str(tmp_path))
    assert [key for key in own if found[key] != own[key]] == ["tensors"]


def of_first_version(own: dict[str, Any]) -> dict[str, Any]:
    return fingerprint.as_known_to({}, own)


def test_prompts_of_the_first_version_are_compared_by_what_they_carry() -> None:
    model = build()
    old = dict.fromkeys(fingerprint.NEW_KEYS, ...)
    prompt = prompt_of(model, **old)
    Backbone(model).check(prompt)
    with pytest.raises(MismatchError, match=r"they differ in embeddings, weights\)"):
        Backbone(build(seed=1)).check(prompt)
    with pytest.raises(MismatchError, match=r"they differ in weights\)"):
        Backbone(model).check(prompt_of(model, **old, weights="0" * 64))


@pytest.mark.parametrize("key", ["tensors", "weights", "embeddings"])
def test_a_hash_that_is_left_out_is_not_accepted(key: str) -> None:
    model = build()
    with pytest.raises(MismatchError, match=rf"they differ in {key}\)"):
        Backbone(model).check(prompt_of(model, **{key: ...}))


def test_a_quantized_base_is_compared_by_its_embeddings() -> None:
    model = build()
    quantized = {"is_quantized": True, "weights": ..., "tensors": ...}
    Backbone(model).check(prompt_of(model, **quantized))
    with pytest.raises(MismatchError, match=r"they differ in embeddings\)"):
        Backbone(build(seed=1)).check(prompt_of(model, **quantized))


def test_the_first_version_is_what_it_was() -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(BEFORE / "base", trust_remote_code=False)
    stored = SoftPrompt.load(BEFORE / "prompt-tuning").facts["base"]["fingerprint"]
    assert of_first_version(Backbone(model).fingerprint()) == stored
    assert json.dumps(stored) and "version" not in stored
