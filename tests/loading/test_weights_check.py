"""What a checkpoint's files hold and a model does not take: refused by name, or said."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, SoftPrompt
from foreword.errors import ForewordError, InputError, UnsupportedError
from foreword.loading import weights

PROJECTION = "model.layers.0.self_attn.q_proj"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved") / "model"
    tiny_models.build("llama", dtype=torch.float32, vocab_size=263).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture
def llama(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def change(directory: Path, edit: Callable[[Tensors], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def configure(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(directory: Path, kind: type[ForewordError], **options: Any) -> str:
    with pytest.raises(kind) as caught:
        Backbone.load(str(directory), device="cpu", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def scaled(tensors: Tensors) -> None:
    """Store a weight in eight bits, with its scale beside it."""
    weight = tensors[f"{PROJECTION}.weight"]
    scale = weight.abs().max() / 448
    tensors[f"{PROJECTION}.weight"] = (weight / scale).to(torch.float8_e4m3fn)
    tensors[f"{PROJECTION}.weight_scale"] = scale.reshape(())


@pytest.mark.parametrize("name", ["bias", "weight_scale", "g_idx"])
def test_a_part_of_a_module_that_the_model_lacks_is_refused(name: str, llama: Path) -> None:
    change(llama, lambda tensors: tensors.update({f"{PROJECTION}.{name}": torch.ones(32)}))
    assert f"hold {PROJECTION}.{name}, and Linear has no {name}" in refusal(llama, InputError)


def test_layers_after_the_last_are_refused(llama: Path) -> None:
    configure(llama, num_hidden_layers=2)
    assert "the configuration says 2 layers" in refusal(llama, InputError)


def test_a_layer_that_predicts_further_tokens_is_said(
    llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = ("eh_proj.weight", "enorm.weight", "self_attn.q_proj.weight")
    behind = {f"model.layers.3.{part}": torch.ones(32) for part in parts}
    change(llama, lambda tensors: tensors.update(behind))
    with caplog.at_level(logging.WARNING, logger="foreword"):
        Backbone.load(str(llama), device="cpu")
    assert "3 weights of its files are not used, model.layers.3.eh_proj.weight" in caplog.text


def test_a_part_that_the_model_does_not_have_is_said(
    llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = {"score.weight": torch.ones(2, 32), "mtp.norm.weight": torch.ones(32)}
    change(llama, lambda tensors: tensors.update(parts))
    with caplog.at_level(logging.WARNING, logger="foreword"):
        Backbone.load(str(llama), device="cpu")
    (said,) = [one.getMessage() for one in caplog.records if one.name == "foreword"]
    assert "2 weights of its files are not used, mtp.norm.weight for one" in said


def test_a_quantization_that_nothing_unpacks_is_refused(llama: Path) -> None:
    change(llama, scaled)
    configure(llama, quantization_config={"quant_method": "modelopt", "quant_algo": "FP8"})
    assert "quantized by 'modelopt', which transformers does not" in refusal(
        llama, UnsupportedError
    )


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn, torch.int32])
def test_packed_numbers_are_no_weights(kind: torch.dtype, llama: Path) -> None:
    def pack(tensors: Tensors) -> None:
        tensors[f"{PROJECTION}.weight"] = tensors[f"{PROJECTION}.weight"].to(kind)

    change(llama, pack)
    assert f"stores {PROJECTION}.weight as" in refusal(llama, UnsupportedError)


@pytest.mark.parametrize("file", weights.SETTINGS)
@pytest.mark.parametrize("text", ["", '{"eos_token_id": [2, 5], "bos', "[1]", "null"])
def test_damaged_settings_are_not_taken_for_empty(file: str, text: str, llama: Path) -> None:
    (llama / file).write_text(text)
    assert file in refusal(llama, InputError)


def test_an_adapter_beside_a_model_is_not_put_on_it(llama: Path) -> None:
    SoftPrompt.from_embeddings(torch.ones(2, 32)).save(llama)
    assert "adapter_config.json lies beside the model" in refusal(llama, InputError)


def test_an_adapter_that_transformers_put_on_a_model_is_refused(llama: Path) -> None:
    model = tiny_models.build("llama", dtype=torch.float32)
    model._hf_peft_config_loaded = True  # as of a Hub id, whose files are not looked at before
    with pytest.raises(UnsupportedError, match="comes with an adapter"):
        weights.refuse_other(model, {"unexpected_keys": set()}, None, "org/name")


def test_a_gguf_file_is_named_as_the_model(llama: Path) -> None:
    assert "gguf_file: give the path" in refusal(llama, InputError, gguf_file="m.gguf")


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "{"]
)
def test_a_damaged_index_of_weights_is_named(text: str, llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    (llama / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json" in refusal(llama, InputError)


@pytest.mark.parametrize(
    "file, text", [("tokenizer.json", "{}"), ("tokenizer.json", ""), ("config.json", "")]
)
def test_what_cannot_be_loaded_is_named(file: str, text: str, llama: Path) -> None:
    (llama / file).write_text(text)
    part = "tokenizer" if file == "tokenizer.json" else "configuration"
    assert f"transformers cannot load its {part} (" in refusal(llama, InputError)
