"""PEFT's format: a prompt's tensors as a PEFT adapter, and back.

In: what a prompt is made of, and its base. Out: PEFT's configuration, and the tensors as PEFT lays
them out in its file; from these, as arrays, what a prompt is made of. Layers whose states differ in
shape or kind have no layout in PEFT: they become tensors `foreword.0`, `foreword.1`, ... under a
type that PEFT refuses. No other module knows PEFT's keys. Reads and writes no file, and imports no
torch before it writes tensors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foreword.config import Form
from foreword.errors import ArtifactError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
FILES = (CONFIG_FILE, TENSOR_FILE)
TENSOR_NAME = "prompt_embeddings"
MAX_LAYERS = 1 << 12

EMBEDDING_TYPES = ("PROMPT_TUNING", "P_TUNING", "CPT")
KEY_VALUE_TYPES = ("PREFIX_TUNING", "CARTRIDGE")
OWN_TYPE = "FOREWORD_ONLY"  # PEFT's error for an adapter of this type is KeyError: 'FOREWORD_ONLY'
OWN_PREFIX = "foreword."
ENCODER_TASK = "SEQ_2_SEQ_LM"  # PEFT's name for models whose decoder follows an encoder

OWN_NOTE = (
    "the layers' states differ in shape or kind, for which PEFT has no layout: PEFT cannot read "
    "this adapter; load it with foreword.SoftPrompt.load"
)
OWN_DECODED = (
    "the prompt stands before the tokens of a decoder that follows an encoder, where PEFT places "
    "none, or each layer's keys at another layer; load it with foreword.SoftPrompt.load"
)

Config = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Parts:
    """What a prompt is made of.

    Attributes:
        form: "embeddings" or "key_values".
        tensors: one `[P, H]`, or all layers' tensors in a row; arrays where they were read.
        counts: tensors of each layer; none for embeddings.
        num_virtual_tokens: P.
    """

    form: Form
    tensors: Sequence[Any]
    counts: tuple[int, ...]
    num_virtual_tokens: int


# Writing ------------------------------------------------------------------------------------------


def to_adapter(
    parts: Parts, base: Mapping[str, Any], *, is_cartridge: bool = False
) -> tuple[Config, list["Tensor"]]:
    """Return a prompt as PEFT's configuration and tensors: PROMPT_TUNING, or PREFIX_TUNING.

    Args:
        parts: what the prompt is made of.
        base: what the prompt knows of its base model.
        is_cartridge: keys and values are a CARTRIDGE, with which stock PEFT generates right.
    """
    encoder = (base.get("fingerprint") or {}).get("encoder")
    config: Config = {
        "peft_type": "PREFIX_TUNING",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "base_model_name_or_path": base.get("name"),
        "revision": base.get("revision"),
        "num_virtual_tokens": parts.num_virtual_tokens,
        "num_transformer_submodules": 1,
    }
    if is_cartridge:
        config |= {"peft_type": "CARTRIDGE", "num_frozen_tokens": 0}
    tensors = list(parts.tensors)
    if parts.form == "embeddings":
        config |= {"peft_type": "PROMPT_TUNING", "token_dim": tensors[0].shape[1]}
    elif len({tensor.shape for tensor in tensors}) > 1 or set(parts.counts) != {2}:
        config |= {"peft_type": OWN_TYPE, "note": OWN_NOTE}
        config["tensors_per_layer"] = list(parts.counts)
    else:
        heads, _, size = tensors[0].shape
        layers = {"num_layers": len(tensors) // 2, "num_attention_heads": heads}
        config |= layers | {"token_dim": heads * size}
        config |= {} if is_cartridge else {"prefix_projection": False}
    if encoder is not None:
        config["task_type"] = ENCODER_TASK
        if encoder != "input_ids" or parts.form == "key_values":
            config |= {"peft_type": OWN_TYPE, "note": OWN_DECODED, "form": parts.form}
            config["tensors_per_layer"] = list(parts.counts or [1])
    return config, [_flat(tensors)] if config["peft_type"] in KEY_VALUE_TYPES else tensors


def tensor_names(config: Config, where: Path) -> list[str]:
    """Return the names of an adapter's tensors in their file.

    Raises:
        ArtifactError: the configuration does not tell how many there are.
    """
    if config["peft_type"] != OWN_TYPE:
        return [TENSOR_NAME]
    counts: Any = config.get("tensors_per_layer")
    is_list = isinstance(counts, list) and 0 < len(counts) <= MAX_LAYERS
    if not (is_list and all(type(count) is int and 0 < count <= 16 for count in counts)):
        raise ArtifactError(
            f"{where / CONFIG_FILE}: tensors_per_layer is {counts!r:.60}, expected the number of "
            "each layer's tensors"
        )
    return [f"{OWN_PREFIX}{index}" for index in range(sum(counts))]


def _flat(tensors: Sequence["Tensor"]) -> "Tensor":
    """Lay out keys and values of one shape as PEFT does: `[P, L * 2 * N * D]`."""
    import torch

    return torch.stack([tensor.transpose(0, 1) for tensor in tensors], dim=1).flatten(1)


# Reading ------------------------------------------------------------------------------------------


def check_config(config: Any, path: Path) -> None:
    """Refuse a configuration that is not a soft prompt's.

    Raises:
        ArtifactError: says what it is, and what can be read.
    """
    if not isinstance(config, dict):
        raise ArtifactError(f"{path}: expected a JSON object, got {type(config).__name__}")
    kind = config.get("peft_type")
    if kind not in (*EMBEDDING_TYPES, *KEY_VALUE_TYPES, OWN_TYPE):
        supported = ", ".join((*EMBEDDING_TYPES, *KEY_VALUE_TYPES, OWN_TYPE))
        raise ArtifactError(
            f"{path}: peft_type is {kind!r:.60}, which is not a soft prompt that can be read; "
            f"expected one of {supported}"
        )
    num_parts = config.get("num_transformer_submodules")
    has_encoder = config.get("task_type") == ENCODER_TASK
    if has_encoder and kind in (*KEY_VALUE_TYPES, "CPT"):
        raise ArtifactError(
            f"{path}: a {kind} adapter with task_type {ENCODER_TASK}: PEFT gives its layers to "
            "others than their own, and differently from release to release; only PROMPT_TUNING "
            "and P_TUNING can be read for models with an encoder"
        )
    if num_parts not in ((None, 1, 2) if has_encoder else (None, 1)):
        raise ArtifactError(
            f"{path}: num_transformer_submodules is {num_parts!r:.60} with task_type "
            f"{config.get('task_type')!r:.60}; expected 1, or 2 with {ENCODER_TASK}"
        )
    for name in ("base_model_name_or_path", "revision"):
        if not isinstance(config.get(name), str | None):
            shown = f"{config[name]!r:.60}"
            raise ArtifactError(f"{path}: {name} is {shown}, expected a string or null")


def check_tensors(
    config: Config, tensors: "dict[str, NDArray[Any]]", where: Path
) -> "list[NDArray[Any]]":
    """Return an adapter's tensors, as arrays, without what PEFT keeps and never uses.

    Raises:
        ArtifactError: shapes that are no prompt's, or not those that the configuration tells.
    """
    is_own, expected = config["peft_type"] == OWN_TYPE, config.get("num_virtual_tokens")
    if config["peft_type"] in EMBEDDING_TYPES and config.get("num_transformer_submodules") == 2:
        # PEFT keeps a second half for the decoder, which it never uses.
        (tensor,) = tensors.values()
        if type(expected) is int and tensor.ndim and tensor.shape[0] == 2 * expected:
            tensors = {TENSOR_NAME: tensor[:expected].copy()}
    for name, tensor in tensors.items():
        if tensor.ndim not in ((2, 3) if is_own else (2,)) or not tensor.size:
            wanted = "2 or 3 dimensions" if is_own else "one row for each virtual token"
            raise ArtifactError(
                f"{where / TENSOR_FILE}: {name} has shape {list(tensor.shape)}, expected {wanted}"
            )
        if not is_own and expected is not None and tensor.shape[0] != expected:
            raise ArtifactError(
                f"{where}: {name} has shape {list(tensor.shape)}, but {CONFIG_FILE} says "
                f"num_virtual_tokens = {expected!r:.60}; the two files are not from one save"
            )
    return list(tensors.values())


def from_adapter(config: Config, tensors: "Sequence[NDArray[Any]]", where: Path) -> Parts:
    """Return what a prompt is made of, from an adapter whose files were checked one by one.

    Raises:
        ArtifactError: the tensors cannot be laid out as the configuration says.
    """
    kind = config["peft_type"]
    if kind in EMBEDDING_TYPES:
        return Parts("embeddings", tensors, (), len(tensors[0]))
    if kind != OWN_TYPE:
        layers = _unflatten(config, tensors[0], where)
        return Parts("key_values", layers, (2,) * (len(layers) // 2), len(tensors[0]))
    num_virtual = config.get("num_virtual_tokens")
    if type(num_virtual) is not int or num_virtual < 1:
        raise ArtifactError(
            f"{where / CONFIG_FILE}: num_virtual_tokens is {num_virtual!r:.60}, expected "
            "a positive integer"
        )
    if config.get("form") != "embeddings":
        return Parts("key_values", tensors, tuple(config["tensors_per_layer"]), num_virtual)
    if len(tensors) != 1 or tensors[0].ndim != 2:
        shapes = [list(tensor.shape) for tensor in tensors]
        raise ArtifactError(f"{where}: expected embeddings of shape [P, H], got {shapes}")
    return Parts("embeddings", tensors, (), len(tensors[0]))


def foreign_facts(config: Config) -> dict[str, Any]:
    """Return the facts in PEFT's own fields, which are all that a foreign prompt has."""
    base: dict[str, Any] = {
        "name": config.get("base_model_name_or_path"),
        "revision": config.get("revision"),
    }
    if config.get("task_type") == ENCODER_TASK:
        base["fingerprint"] = {"encoder": "input_ids"}
    return {"base": base, "method": config["peft_type"]}


def _unflatten(config: Config, tensor: "NDArray[Any]", where: Path) -> "list[NDArray[Any]]":
    """Undo `_flat`: `[P, L * 2 * N * D]` to keys and values `[N, P, D]`, layer by layer."""
    needed = ("num_layers", "num_attention_heads", "token_dim")
    values = [value for name in needed if isinstance(value := config.get(name), int) and value > 0]
    if len(values) != len(needed):
        raise ArtifactError(
            f"{where / CONFIG_FILE}: expected positive integers {', '.join(needed)}, "
            f"got {[config.get(name) for name in needed]}; a key/value prompt cannot be laid out "
            "without them"
        )
    layers, heads, width = values
    if width % heads or tensor.shape[1] != layers * 2 * width:
        raise ArtifactError(
            f"{where}: prompt_embeddings has {tensor.shape[1]} columns, expected num_layers * 2 * "
            f"token_dim = {layers * 2 * width} with token_dim a multiple of {heads} heads"
        )
    blocks = tensor.reshape(tensor.shape[0], layers * 2, heads, width // heads)
    return [blocks[:, index].swapaxes(0, 1).copy() for index in range(layers * 2)]
