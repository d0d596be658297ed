"""Families of mlx-lm's prompt cache: mlx-lm's own logits behind the file are the oracle's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import tiny_models
import torch
import transformers
from safetensors.torch import load_file, save_file
from test_checkpoint import prompt_of
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone
from foreword.errors import UnsupportedError
from foreword.export import mlx_cache, rotary_names

TOKENIZER = tiny_tokenizer()
SIZES = {**tiny_models.COMMON, "vocab_size": len(TOKENIZER), "eos_token_id": 2}
HEAD = {**SIZES, "head_dim": 8}
GPTJ = {"n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4, "n_positions": 256}
CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "mistral": lambda: transformers.MistralConfig(**HEAD, sliding_window=None),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES),
    "qwen3": lambda: transformers.Qwen3Config(**HEAD),
    "qwen3_moe": lambda: tiny_models.CONFIGS["qwen3_moe"](),
    "phi3": lambda: transformers.Phi3Config(**SIZES),
    "granite": lambda: tiny_models.CONFIGS["granite"](),
    "mixtral": lambda: tiny_models.CONFIGS["mixtral"](),
    "gpt2": lambda: transformers.GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=256),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**{**SIZES, "intermediate_size": 128}),
    "cohere": lambda: transformers.CohereConfig(**SIZES),
    "glm4": lambda: transformers.Glm4Config(**HEAD),
    "glm4_moe": lambda: transformers.Glm4MoeConfig(
        **HEAD, moe_intermediate_size=24, n_routed_experts=4, num_experts_per_tok=2
    ),
    "olmo2": lambda: transformers.Olmo2Config(**SIZES),
    "starcoder2": lambda: transformers.Starcoder2Config(**SIZES, sliding_window=None),
    "phi": lambda: transformers.PhiConfig(**SIZES),
    "stablelm": lambda: transformers.StableLmConfig(**SIZES),
    "nemotron": lambda: transformers.NemotronConfig(**SIZES),
    "ernie4_5": lambda: transformers.Ernie4_5Config(**HEAD),
    "helium": lambda: transformers.HeliumConfig(**HEAD),
    # One layer without rotation.
    "smollm3": lambda: transformers.SmolLM3Config(**SIZES, no_rope_layers=[1, 0, 1]),
    "gptj": lambda: transformers.GPTJConfig(vocab_size=len(TOKENIZER), **GPTJ),
    "gemma": lambda: transformers.GemmaConfig(**HEAD),
    "granitemoe": lambda: transformers.GraniteMoeConfig(**SIZES),
    "olmoe": lambda: transformers.OlmoeConfig(**SIZES),
    "seed_oss": lambda: transformers.SeedOssConfig(**HEAD),
    "hunyuan_v1_dense": lambda: transformers.HunYuanDenseV1Config(**HEAD),
}
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}  # fmt: skip
# What the models of these families have in their config.json, and transformers 5 does not write.
LEFT_OUT = {
    "gpt2": {"n_ctx": 256},
    "qwen3_moe": {"num_experts": 4},
    "glm4_moe": {"rope_scaling": None},
}
CASES = [(family, kind) for family, kinds in mlx_cache.FAMILIES.items() for kind in kinds]


def base_of(family: str, rotation: str, folder: Path, **changes: Any) -> str:
    """Write a tiny checkpoint, with what mlx-lm reads of it."""
    config = CONFIGS[family]() if family in CONFIGS else tiny_models.CONFIGS[family]()
    config.vocab_size, config.initializer_range = len(TOKENIZER), 0.3
    for name, value in changes.items():
        setattr(config, name, value)
    if (rope := getattr(config, "rope_parameters", None)) is not None:
        rope = {**rope, "rope_theta": 3000.0, "rope_type": rotation, **SCALINGS[rotation]}
        if "partial_rotary_factor" in rope:
            rope["partial_rotary_factor"] = 0.75
        config.rope_parameters = rope
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    if family == "gpt2":  # its checkpoints name their tensors so
        weights = load_file(folder / "model.safetensors")
        plain = {name.removeprefix("transformer."): one for name, one in weights.items()}
        save_file(plain, folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(written | LEFT_OUT.get(family, {})), encoding="utf-8")
    rotary_names.complete(path)
    return str(folder)


@pytest.mark.parametrize(("family", "rotation"), CASES)
def test_logits_behind_the_file_are_the_oracles(family: str, rotation: str, tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core", reason="make test-export has mlx-lm")
    cache = pytest.importorskip("mlx_lm.models.cache", reason="make test-export has mlx-lm")
    from mlx_lm.utils import load_model

    name = base_of(family, rotation, tmp_path / "base")
    backbone = Backbone.load(name)
    prompt = prompt_of(backbone)
    mlx_cache.export(prompt, name, tmp_path / "p.safetensors")
    model, _ = load_model(Path(name))
    assert {type(one).__name__ for one in cache.make_prompt_cache(model)} == {"KVCache"}
    ids = [*range(5, 45)]
    restored = cache.load_prompt_cache(str(tmp_path / "p.safetensors"))
    found = np.array(model(mx.array([ids]), cache=restored)[0].astype(mx.float32))
    expected = oracle.row_logits(backbone.model, prompt, torch.tensor(ids)).detach().numpy()
    bare = oracle.row_logits(backbone.model, None, torch.tensor(ids)).detach().numpy()
    off = np.abs(found - expected).max()
    assert off < 0.01 * np.abs(expected).max()  # some compute their activation by another formula
    assert np.abs(bare - expected).max() > 10 * off


@pytest.mark.parametrize(
    ("family", "rotation", "reason"),
    [
        ("deepseek_v3", "default", "the keys of the 'deepseek_v3' family"),
        ("kimi_k2", "default", "the keys of the 'deepseek_v3' family"),
        ("llama", "dynamic", "rotates the keys of the 'llama' family by 'dynamic'"),
        ("granite", "linear", "rotates the keys of the 'granite' family by 'linear'"),
    ],
)
def test_caches_that_no_test_shows_are_refused(
    family: str, rotation: str, reason: str, tmp_path: Path
) -> None:
    name = base_of(family, rotation, tmp_path / "base")
    prompt = prompt_of(Backbone.load(name))
    with pytest.raises(UnsupportedError, match=reason):
        mlx_cache.export(prompt, name, tmp_path / "p.safetensors")
    assert not (tmp_path / "p.safetensors").exists()


def test_rotations_of_several_kinds_are_refused(tmp_path: Path) -> None:
    assert mlx_cache.rotation_of(tiny_models.CONFIGS["gemma3"]()) == "several for different layers"
