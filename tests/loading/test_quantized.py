"""Quantized bases: the values are the library's own, the gradient is alive, and size is said."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import media_oracle
import oracle
import pytest
import tiny_media
import tiny_models
import torch
import transformers
from safetensors.torch import load_file, save_file
from training_oracle import ROWS, obvious_loss

from foreword import Backbone, SoftPrompt, TrainConfig, train
from foreword.data.batches import collate
from foreword.loading.quantized import num_bytes
from foreword.training.methods.direct import Direct
from foreword.training.packing.packed_decoder import packed
from foreword.training.step import _backward, accumulate, detached, prefix_states

REASON = "needs the extra `bases` (make test-quantized): "
for library in ("compressed_tensors", "torchao", "bitsandbytes"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(library, reason=REASON + library)
pytestmark = pytest.mark.filterwarnings("ignore")  # these libraries warn of themselves

# Groups and blocks of 32 fit.
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "vocab_size": 128,
    "head_dim": 16,
}
IDS = tiny_models.ids(7)


def plain(family: str = "llama") -> Any:
    return tiny_models.build(family, dtype=torch.float32, **SIZES)


def reloaded(model: Any, directory: Path, **options: Any) -> Any:
    model.save_pretrained(directory)
    return load(directory, **options)


def load(directory: Path, **options: Any) -> Any:
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, **options
    )
    if loaded._can_set_experts_implementation():
        loaded.set_experts_implementation("batched_mm")
    return loaded


def compressed(
    directory: Path, model: Any, weights: dict[str, Any], inputs: dict[str, Any] | None, form: str
) -> None:
    """Write a checkpoint as llm-compressor does: every linear layer but the head and a tower's."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )

    scheme = QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(symmetric=True, **weights),
        input_activations=QuantizationArgs(symmetric=True, **inputs) if inputs else None,
    )
    config = QuantizationConfig(
        config_groups={"all": scheme}, ignore=["lm_head", "re:.*visual.*"], format=form
    )
    apply_quantization_config(model, config)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            rows = module.weight.data
            groups = rows.reshape(rows.shape[0], -1, weights.get("group_size", rows.shape[1]))
            largest = 448 if weights["type"] == "float" else 7.5
            module.weight_scale.data = groups.abs().amax(-1) / largest
    compressor = ModelCompressor.from_pretrained_model(model, quantization_format=form)
    compressor.compress_model(model)
    model.save_pretrained(directory, state_dict=model.state_dict())
    compressor.update_config(directory)


FP8_WEIGHTS = {"num_bits": 8, "type": "float", "strategy": "channel"}
FP8_INPUTS = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}


def fp8(directory: Path) -> Any:
    """Weights by channel, activations by token at run time: the scheme of the FP8 checkpoints."""
    compressed(directory, plain(), FP8_WEIGHTS, FP8_INPUTS, "float-quantized")
    return load(directory)


def fp8_dense(directory: Path) -> Any:
    fp8(directory)
    config = transformers.CompressedTensorsConfig(dequantize=True)
    return load(directory, quantization_config=config)


def int4(directory: Path) -> Any:
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
    compressed(directory, plain(), weights, None, "pack-quantized")
    return load(directory)


def int4_experts(directory: Path) -> Any:
    """Kimi-K2-Thinking's layout: routed experts alone are packed, each in tensors of its own."""
    from compressed_tensors.compressors import compress_module
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )

    numbers = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**numbers))
    sizes = {"hidden_size": 64, "moe_intermediate_size": 32, "initializer_range": 0.1}
    config = transformers.DeepseekV3Config(
        **tiny_models.COMMON | tiny_models.LATENT | sizes, n_group=1, topk_group=1
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    packed = {}
    for name, value in load_file(directory / "model.safetensors").items():
        if ".mlp.experts." not in name:
            packed[name] = value
            continue
        expert = torch.nn.Sequential(torch.nn.Linear(*value.shape[::-1], bias=False))
        expert[0].weight.data = value
        groups = QuantizationConfig(config_groups={"all": scheme}, format="pack-quantized")
        apply_quantization_config(expert, groups)
        largest = value.reshape(len(value), -1, 32).abs().amax(-1)
        expert[0].weight_scale.data = largest / 7.5
        compress_module(expert[0], "pack-quantized")
        stem = name.removesuffix("weight")
        packed |= {stem + k: v for k, v in expert[0].state_dict().items() if k.startswith("weight")}
    save_file(packed, directory / "model.safetensors", metadata={"format": "pt"})
    path = directory / "config.json"
    others = [
        "lm_head",
        "re:.*self_attn.*",
        "re:.*shared_experts.*",
        r"re:.*mlp\.(gate|up|down)_proj",
    ]
    quantization = {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "quantization_status": "compressed", "ignore": others,
        "config_groups": {"all": {"targets": ["Linear"], "weights": numbers | {"symmetric": True}}},
    }  # fmt: skip
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"quantization_config": quantization})
    )
    return load(directory)


def torchao_int8(directory: Path) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    config = transformers.TorchAoConfig(Int8WeightOnlyConfig())
    return reloaded(plain(), directory, quantization_config=config)


def bitsandbytes_4bit(directory: Path) -> Any:
    config = transformers.BitsAndBytesConfig(load_in_4bit=True)
    return reloaded(plain(), directory, quantization_config=config)


def bitsandbytes_8bit(directory: Path) -> Any:
    config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    return reloaded(plain(), directory, quantization_config=config)


BASES: dict[str, Callable[[Path], Any]] = {
    base.__name__: base
    for base in (
        fp8,
        fp8_dense,
        int4,
        int4_experts,
        torchao_int8,
        bitsandbytes_4bit,
        bitsandbytes_8bit,
    )
}
# How far logits and gradients may differ, relative: what rounds activations rounds them anew.
LOOSE = {"bitsandbytes_8bit": 0.15, "fp8": 0.1}


@pytest.fixture(params=BASES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def backbone(name: str, tmp_path: Path) -> Backbone:
    return Backbone(BASES[name](tmp_path))


def prompt_of(backbone: Backbone, form: str) -> SoftPrompt:
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, 5))
    if form == "embeddings":
        return prompt
    return SoftPrompt.from_states(backbone.compile(prompt).states)


def bare_logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS[None]).logits[0]


def last_gradient(model: Any, embeddings: torch.Tensor) -> float:
    """Return the norm of the gradient that the last token's logits send to the tokens before."""
    leaf = embeddings.clone().requires_grad_()
    loss = model(inputs_embeds=leaf[None]).logits[0, -1].square().mean()
    return float(torch.autograd.grad(loss, leaf)[0][:-1].norm())


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("form", ["embeddings", "key_values"])
def test_padded_rows_equal_the_oracle(backbone: Backbone, name: str, form: str) -> None:
    prompt = prompt_of(backbone, form)
    rows, mask = torch.stack([IDS, IDS.roll(2)]), torch.ones(2, 7, dtype=torch.long)
    mask[1, :2] = 0
    with torch.no_grad():
        found = backbone.logits(prompt, rows, mask)
        expected = [oracle.row_logits(backbone.model, prompt, row) for row in (IDS, IDS[:5])]
    assert apart(found[0], expected[0]) < LOOSE.get(name, 1e-4)
    assert apart(found[1, 2:], expected[1]) < LOOSE.get(name, 1e-4)


@pytest.mark.parametrize("view", [lambda backbone: backbone, packed], ids=["padded", "packed"])
@pytest.mark.parametrize("form", ["embeddings", "key_values"])
def test_the_gradient_is_alive_and_that_of_the_concatenated_form(
    backbone: Backbone, name: str, form: str, view: Callable[[Backbone], Backbone]
) -> None:
    prompt = prompt_of(backbone, form)
    ours, theirs = Direct.begin(prompt, torch.float32), prompt.trainable()
    backbone, batches = view(backbone), [collate(ROWS, 0)]
    states = prefix_states(backbone, ours, batches)
    leaves = [detached(one) for one in states]
    accumulate(backbone, leaves, batches)
    _backward(states, leaves)
    obvious_loss(backbone.model, theirs, ROWS).backward()
    for mine, obvious in zip(ours.tensors, theirs.tensors, strict=True):
        assert float(mine.grad.norm()) > 0
        assert apart(mine.grad, obvious.grad) < 3 * LOOSE.get(name, 1e-4)


def test_training_lowers_the_loss_and_leaves_the_base(backbone: Backbone) -> None:
    before = bare_logits(backbone.model)
    config = TrainConfig(
        num_virtual_tokens=4, init="vocabulary", batch_size=4, num_steps=25, learning_rate=0.1
    )
    events = list(train(backbone, ROWS, config))
    assert events[-1].loss < 0.8 * events[0].loss
    assert torch.equal(bare_logits(backbone.model), before)


def test_the_library_itself_stops_the_gradient_of_fp8(tmp_path: Path) -> None:
    model = fp8(tmp_path)
    embeddings = tiny_models.embeddings(model, 5)
    assert last_gradient(model, embeddings) == 0
    assert last_gradient(Backbone(model).model, embeddings) > 0


def test_bitsandbytes_itself_stops_the_gradient_once_it_has_packed(tmp_path: Path) -> None:
    model = bitsandbytes_4bit(tmp_path)
    if not any(getattr(m, "support_avx512bf16_for_cpu", False) for m in model.modules()):
        pytest.skip("this processor has no AVX512-BF16: bitsandbytes packs nothing on it")
    embeddings = tiny_models.embeddings(model, 5)
    alive = Backbone(bitsandbytes_4bit(tmp_path)).model
    for one in (model, alive):
        bare_logits(one)
    assert last_gradient(model, embeddings) == 0 < last_gradient(alive, embeddings)


def test_the_values_of_fp8_are_the_librarys_own(tmp_path: Path) -> None:
    model = fp8(tmp_path)
    expected = bare_logits(model)
    torch.testing.assert_close(bare_logits(Backbone(model).model), expected, rtol=0, atol=1e-5)


def test_a_second_backbone_rounds_no_input_twice(tmp_path: Path) -> None:
    model = fp8(tmp_path)
    first, second = Backbone(model), Backbone(model)
    assert first.quantization.num_straight > 0 == second.quantization.num_straight


@pytest.mark.parametrize("base", ["fp8", "int4"])
def test_a_base_that_unpacks_itself_is_said_with_its_size(
    base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = BASES[base](tmp_path)
    loaded = num_bytes(model)
    found = Backbone(model).quantization
    assert found.num_bytes_loaded == loaded < found.num_bytes == num_bytes(model)
    assert f"{loaded:,} bytes loaded, {found.num_bytes:,} in use" in caplog.text


@pytest.mark.parametrize("base", ["torchao_int8", "bitsandbytes_4bit", "bitsandbytes_8bit"])
def test_other_bases_stay_as_small_as_they_were_loaded(base: str, tmp_path: Path) -> None:
    backbone = Backbone(BASES[base](tmp_path))
    backbone.generate(prompt_of(backbone, "embeddings"), IDS[None], max_new_tokens=2)
    assert num_bytes(backbone.model) == backbone.quantization.num_bytes_loaded


def test_fp8_with_images(tmp_path: Path) -> None:
    """GLM-4.6V-FP8: experts and a tower, an image between the tokens, a gradient that is alive."""
    whole = tiny_media.build("glm4v_moe").float()
    compressed(tmp_path, whole, FP8_WEIGHTS, FP8_INPUTS, "float-quantized")
    model = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    model.set_experts_implementation("batched_mm")
    backbone = Backbone(model)
    assert backbone.quantization.num_straight > 0
    row = tiny_media.text(3) + tiny_media.image("glm4v_moe") + tiny_media.text(4)
    float_row = tiny_media.MediaRow(
        row.ids, {k: v.float() if v.is_floating_point() else v for k, v in row.media.items()}
    )
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(model, 5)).trainable()
    logits = backbone.logits(prompt, row.ids[None], **float_row.media)
    logits[0, -1].square().mean().backward()
    assert float(prompt.tensors[0].grad.norm()) > 0
    expected = media_oracle.row_logits(model, prompt, float_row, row.ids)
    assert apart(logits[0], expected) < LOOSE["fp8"]


def test_int4_of_torchao(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torchao's int4 weights have no CPU kernels: a CUDA GPU is needed")
    from torchao.quantization import Int4WeightOnlyConfig

    config = transformers.TorchAoConfig(Int4WeightOnlyConfig(group_size=32))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        plain().save_pretrained(tmp_path) or tmp_path,
        dtype=torch.bfloat16, quantization_config=config, device_map="cuda",
    )  # fmt: skip
    events = list(train(Backbone(model), ROWS, TrainConfig(num_steps=8, learning_rate=0.1)))
    assert events[-1].loss < events[0].loss
