"""Base model metadata: what prompts must match, of a checkpoint that is not loaded.

In: a model's directory or Hub id. Out: a `Base`, with a fingerprint that is computed from a few
rows of the checkpoint. A checkpoint that cannot be read so has none, and prompts are not compared
with it. Knows no engine.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from foreword.config import Form
from foreword.data.tokenizer_facts import check_vocabulary
from foreword.errors import InputError, UnsupportedError
from foreword.model.fingerprint import (
    NUM_NUMBERS,
    NUM_WEIGHTS,
    Shapes,
    check_fingerprint,
    check_shapes,
    compute_fingerprint,
    kept_tensors,
    shapes_of,
    spread,
)
from foreword.prompt.base_facts import check_width
from foreword.prompt.soft_prompt import SoftPrompt

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Base:
    """What prompts are checked against.

    Attributes:
        name: how errors call the model.
        hidden_size: H.
        shapes: heads and sizes of each layer's keys and values.
        fingerprint: as `compute_fingerprint` makes it; empty where the checkpoint cannot be read.
        reasons: why a form is refused; None where it is served.
        tokenizer: what tells the tokenizer of its rows from another; None where none is known.
    """

    name: str
    hidden_size: int
    shapes: Shapes
    fingerprint: dict[str, Any] = field(default_factory=dict)
    reasons: Mapping[Form, str | None] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] | None = None

    def check(self, prompt: SoftPrompt) -> None:
        """Refuse a prompt of another base, or of a form that is not served.

        Raises:
            MismatchError: names both models. UnsupportedError: says what the engine lacks.
        """
        if prompt.form == "key_values":
            check_shapes(shapes_of(prompt.states), self.shapes, self.name)
        else:
            check_width(prompt.embeddings.shape[1], self.hidden_size, self.name, prompt.facts)
        if self.fingerprint:
            check_fingerprint(prompt.facts, self.fingerprint, self.name)
        check_vocabulary(prompt.facts, self.tokenizer, self.name)
        if reason := self.reasons.get(prompt.form):
            raise UnsupportedError(f"prompts as {prompt.form}: {reason}")

    def tokenizer_facts(self) -> Mapping[str, Any] | None:
        """Return what tells its tokenizer from another."""
        return self.tokenizer


def shapes_of_config(config: Any) -> Shapes:
    """Return heads and sizes of a model whose layers all keep keys and values of one shape."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layer = (("keys", (heads, size)), ("values", (heads, size)))
    num_layers: int = config.num_hidden_layers
    return (layer,) * num_layers


def fingerprint_of(model: str, revision: str | None = None) -> dict[str, Any]:
    """Return the fingerprint of a checkpoint; of a quantized one, without that of its weights.

    Empty where the checkpoint's tensors are not laid out as the model's own.

    Raises:
        InputError: its index of weights is damaged.
    """
    from transformers import AutoModelForCausalLM

    from foreword.compat.transformers_api import code_refused
    from foreword.loading.checkpoint import load_config
    from foreword.model.capabilities import inspect_model

    with code_refused(), torch.device("meta"):
        config = load_config(model, model, revision)
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    capabilities = inspect_model(skeleton)
    files = _files_of(model, revision)
    table = f"{capabilities.decoder}.embed_tokens.weight"
    if table not in files or type(skeleton.get_input_embeddings()) is not torch.nn.Embedding:
        return {}
    tensors = [name for name, _ in kept_tensors(skeleton)]
    is_quantized = getattr(config, "quantization_config", None) is not None
    is_whole = not is_quantized and all(name in files for name in tensors)
    samples = [_numbers(files[name], name) for name in tensors] if is_whole else None
    prefix = f"{capabilities.decoder}."
    names = [name for name, _ in skeleton.named_parameters() if name.startswith(prefix)]
    # The tensors whose beginnings the first version of a fingerprint knows.
    chosen = names[:: max(1, len(names) // NUM_WEIGHTS)] if is_whole else []
    found = compute_fingerprint(
        # All that is asked of a decoder is its parameters.
        _Weights([_beginning(files[name], name) for name in chosen]),  # type: ignore[arg-type]
        lambda ids: _rows(files[table], table, ids),
        capabilities,
        samples,
    )
    if not is_whole and not is_quantized:
        del found["is_quantized"]  # its tensors are laid out otherwise: they cannot be compared
    return found


class _Weights:
    """The parameters that a fingerprint of the first version is computed from."""

    def __init__(self, weights: list[Tensor]) -> None:
        self._weights = weights

    def parameters(self) -> list[Tensor]:
        """Return the parameters: less than 2 * `NUM_WEIGHTS`, of which all are taken."""
        return self._weights


def _files_of(model: str, revision: str | None) -> dict[str, Path]:
    """Return the file of each tensor of a checkpoint; empty where it is not in safetensors."""
    from transformers.utils import cached_file

    def path_of(name: str) -> Path | None:
        found = cached_file(
            model, name, revision=revision, _raise_exceptions_for_missing_entries=False
        )
        return Path(found) if found else None

    if index := path_of(INDEX):
        try:
            places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return {name: index.parent / file for name, file in places.items()}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{index}: no index of a checkpoint's weights ({error!r:.100}); download it again"
            ) from None
    single = path_of("model.safetensors")
    if single is None:
        return {}
    with safe_open(single, framework="pt") as file:
        return dict.fromkeys(file.keys(), single)


def _rows(path: Path, name: str, ids: Tensor) -> Tensor:
    with safe_open(path, framework="pt") as file:
        part = file.get_slice(name)
        return torch.stack([part[i : i + 1][0] for i in ids.tolist()])


def _numbers(path: Path, name: str) -> Tensor:
    """Return numbers of a tensor, at the places that `spread` chooses."""
    with safe_open(path, framework="pt") as file:
        part = file.get_slice(name)
        if not part.get_shape():
            scalar: Tensor = file.get_tensor(name)
            return scalar.flatten()
        places = spread(part.get_shape()).T.tolist()
        found = [part[tuple(slice(i, i + 1) for i in place)].flatten() for place in places]
        return torch.cat(found)


def _beginning(path: Path, name: str) -> Tensor:
    """Return enough of a tensor's first numbers, in its own order."""
    with safe_open(path, framework="pt") as file:
        part = file.get_slice(name)
        shape = part.get_shape()
        width = 1
        for size in shape[1:]:
            width *= size
        num_rows = max(1, -(-NUM_NUMBERS // width))
        beginning: Tensor = part[:num_rows].flatten()[:NUM_NUMBERS]
        return beginning
