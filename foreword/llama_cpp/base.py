"""GGUF base: what a GGUF file is as a base model, without its weights in torch.

In: a .gguf file. Out: its hash, and a backbone without weights that checks prompts and encodes
text, from the float32 checkpoint that the file is converted to once. Runs nothing.
"""

import os
from pathlib import Path
from typing import Any

import torch

from foreword.backbone import Backbone
from foreword.errors import UnsupportedError
from foreword.loading import checkpoint, hub
from foreword.loading.gguf import ProgressCallback
from foreword.model.base_model import fingerprint_of
from foreword.model.capabilities import Capabilities, inspect_model


class UnloadedBackbone(Backbone):
    """A backbone of a checkpoint whose weights stay on the disk: it checks prompts and knows the
    tokenizer, and cannot run.

    Args:
        directory: of the checkpoint.
        name: how the user calls the model.

    Raises:
        InputError: it cannot be read. UnsupportedError: a model whose cache is more than keys and
            values of every token.
    """

    def __init__(self, directory: str | os.PathLike[str], name: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        source = os.fspath(directory)
        config = checkpoint.load_config(source, name)
        with checkpoint.load_errors(name, "model"), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        with checkpoint.load_errors(name, "tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            model.generation_config = GenerationConfig.from_pretrained(
                source, trust_remote_code=False
            )
        capabilities = inspect_model(model)
        _refuse_other_caches(capabilities, name)
        self.quantization = None
        self._begin(model.eval().requires_grad_(False), capabilities, tokenizer, None, name)
        self._fingerprint = fingerprint_of(source)


def unloaded(
    gguf: str | os.PathLike[str], progress: ProgressCallback | None = None
) -> UnloadedBackbone:
    """Return a GGUF file as a backbone without weights; it is converted at the first time.

    Raises:
        InputError: no GGUF file. UnsupportedError: a family that is not exact.
    """
    path = Path(gguf).expanduser()
    hub.check_gguf(path)
    return UnloadedBackbone(hub.resolve(str(path), progress), str(gguf))


def sha256_of(gguf: str | os.PathLike[str], progress: ProgressCallback | None = None) -> str:
    """Return the hash of a file's content, remembered until the file changes."""
    return hub.sha256_of(Path(gguf).expanduser(), progress)


def _refuse_other_caches(capabilities: Capabilities, name: str) -> None:
    reasons: dict[str, Any] = {
        "recurrent layers": capabilities.is_recurrent,
        "an encoder": capabilities.encoder is not None,
        "rotary positions of several axes": capabilities.num_axes > 1,
        "layers without keys of their own": capabilities.has_stateless_layers,
        "a window or chunks": any(
            pattern.name != "full_attention" for pattern in capabilities.attention_patterns
        ),
        "embeddings of its own for each layer": capabilities.virtual_id is not None,
    }
    if found := [reason for reason, is_so in reasons.items() if is_so]:
        raise UnsupportedError(
            f"{name}: a model with {found[0]} is not served by llama.cpp exactly; use foreword's "
            "own engine"
        )
