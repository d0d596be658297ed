"""MLX prompt cache: a prompt as the file that mlx-lm keeps the cache of a conversation's start in.

In: a prompt, and the base that it was trained on. Out: a safetensors file of keys and values of P
tokens, after rotation, as mlx-lm 0.32 writes and reads it. A family whose keys no test shows to be
mlx-lm's own is refused by name: it may keep latents in their place, or rotate otherwise. Nothing
is permuted. Needs no MLX.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from foreword import chat
from foreword.backbone import Backbone
from foreword.errors import UnsupportedError
from foreword.export.targets import check_mlx
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.storage import replacing, storage_errors

# Families whose cache the tests compare with mlx-lm's, and the kinds of rotation of each.
SCALED = dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), ("default", "linear", "llama3"))
PLAIN = (
    "qwen3_moe", "phi3", "granite", "granitemoe", "mixtral", "gpt2", "gpt_neox", "gptj", "phi",
    "stablelm", "gemma", "cohere", "glm4", "glm4_moe", "olmo2", "olmoe", "starcoder2",
    "nemotron", "ernie4_5", "helium", "smollm3", "seed_oss", "hunyuan_v1_dense",
)  # fmt: skip
FAMILIES = SCALED | dict.fromkeys(PLAIN, ("default",))


def export(prompt: SoftPrompt, model: str, output: str | os.PathLike[str]) -> dict[str, Any]:
    """Write a prompt's keys and values as mlx-lm's prompt cache; return what the file says of it.

    Args:
        prompt: key/value or embedding prompt; embeddings are run once.
        model: the base.
        output: a file that is not there yet, named `.safetensors`.

    Raises:
        InputError: something is there, or another name.
        MismatchError: another base, or behind another chat template.
        UnsupportedError: a family or a rotation whose cache is not known to be mlx-lm's.
        StorageError: no space.
    """
    target = Path(output)
    check_mlx(target)
    backbone = Backbone.load(model, device="cpu")
    backbone.check(prompt)
    chat.check_template(backbone, prompt)
    _refuse_other_caches(backbone)
    states = backbone.compile(prompt).cached
    number = states.num_virtual_tokens
    facts = {
        "format": "mlx-lm prompt cache",
        "virtual_tokens": number,
        "content_hash": prompt.content_hash,
        "base": {"name": backbone.name, "fingerprint": backbone.fingerprint()},
        "encoding": chat.saved_encoding(prompt),
    }
    tensors: dict[str, torch.Tensor] = {}
    # mlx-lm flattens [metadata, classes, scalars] into the file's own metadata.
    metadata = {"0.foreword": json.dumps(facts), "2.0": ""}
    for index, (keys, values) in enumerate(states.key_values):
        tensors[f"{index}.0"], tensors[f"{index}.1"] = keys[None].contiguous(), values[None]
        tensors[f"{index}.1"] = tensors[f"{index}.1"].contiguous()
        tensors[f"{index}.2"] = torch.tensor(number, dtype=torch.int32, device="cpu")
        metadata[f"1.{index}"] = "KVCache"
        metadata[f"2.{index + 1}.0"], metadata[f"2.{index + 1}.1"] = f"{index}.2", "scalar"
    with storage_errors(target, "nothing was kept"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as scratch:
            save_file(tensors, scratch, metadata)
    return facts


def _refuse_other_caches(backbone: Backbone) -> None:
    capabilities = backbone.capabilities
    reasons = {
        "an encoder": capabilities.encoder is not None,
        "recurrent layers": capabilities.is_recurrent,
        "layers without keys of their own": capabilities.has_stateless_layers,
        "rotary positions of several axes": capabilities.num_axes > 1,
        "a window or chunks": any(
            pattern.name != "full_attention" for pattern in capabilities.attention_patterns
        ),
    }
    if found := [reason for reason, is_so in reasons.items() if is_so]:
        raise UnsupportedError(
            f"{backbone.name}: mlx-lm keeps another kind of cache for a base with {found[0]}"
        )
    family, config = backbone.model.config.model_type, backbone.model.config
    if family not in FAMILIES:
        raise UnsupportedError(
            f"{backbone.name}: whether mlx-lm keeps the keys of the {family!r} family as "
            f"transformers does is not known; known: {', '.join(FAMILIES)}; use foreword's server"
        )
    if (rotation := rotation_of(config)) not in FAMILIES[family]:
        raise UnsupportedError(
            f"{backbone.name}: whether mlx-lm rotates the keys of the {family!r} family by "
            f"{rotation!r} as transformers does is not known; known: "
            f"{', '.join(FAMILIES[family])}; use foreword's server"
        )


def rotation_of(config: Any) -> str:
    """Return the kind of a configuration's rotary embedding, as transformers names it; "default"
    also where there is none.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    if any(isinstance(one, Mapping) for one in rope.values()):
        return "several for different layers"
    return str(rope.get("rope_type", "default"))
