"""PEFT's format: a prompt's tensors as a PEFT adapter, and back.

In: what a prompt is made of, and its base. Out: PEFT's configuration, and the tensors as PEFT lays
them out in its file; from these, as arrays, what a prompt is made of. Layers whose states differ in
shape or kind have no layout in PEFT: they become tensors `foreword.0`, `foreword.1`, ... under a
type that PEFT refuses. What lies in a file is judged by shapes alone. No other module knows PEFT's
keys. Reads and writes no file, and imports no torch before it writes tensors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from foreword.config import Form
from foreword.errors import ArtifactError, InputError
from foreword.prompt.layout import grouped

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

NUM_VIRTUAL = "num_virtual_tokens"
NUM_PARTS = "num_transformer_submodules"
CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
FILES = (CONFIG_FILE, TENSOR_FILE)
TENSOR_NAME = "prompt_embeddings"
MAX_LAYERS = 1 << 12

EMBEDDING_TYPES = ("PROMPT_TUNING", "P_TUNING", "CPT")
KEY_VALUE_TYPES = ("PREFIX_TUNING", "CARTRIDGE")
OWN_TYPE = "FOREWORD_ONLY"  # PEFT's error for an adapter of this type is KeyError: 'FOREWORD_ONLY'
PROMPT_TYPES = (*EMBEDDING_TYPES, *KEY_VALUE_TYPES, OWN_TYPE)
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
    elif not _are_alike(parts):
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


def _are_alike(parts: Parts) -> bool:
    """Return whether all layers are keys and values of one shape, as PEFT lays them out."""
    are_pairs = set(parts.counts) == {2} and all(tensor.ndim == 3 for tensor in parts.tensors)
    return are_pairs and len({tensor.shape for tensor in parts.tensors}) == 1


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
    if kind not in PROMPT_TYPES:
        raise ArtifactError(
            f"{path}: peft_type is {kind!r:.60}, which is not a soft prompt that can be read; "
            f"expected one of {', '.join(PROMPT_TYPES)}"
        )
    num_parts, num_virtual = (config.get(name) for name in (NUM_PARTS, NUM_VIRTUAL))
    has_encoder = config.get("task_type") == ENCODER_TASK
    if has_encoder and kind in (*KEY_VALUE_TYPES, "CPT"):
        raise ArtifactError(
            f"{path}: a {kind} adapter with task_type {ENCODER_TASK}: PEFT gives its layers to "
            "others than their own, and differently from release to release; only PROMPT_TUNING "
            "and P_TUNING can be read for models with an encoder"
        )
    is_number = num_parts is None or type(num_parts) is int
    if not is_number or num_parts not in ((None, 1, 2) if has_encoder else (None, 1)):
        raise ArtifactError(
            f"{path}: {NUM_PARTS} is {num_parts!r:.60} with task_type "
            f"{config.get('task_type')!r:.60}; expected 1, or 2 with {ENCODER_TASK}"
        )
    if has_encoder and kind in EMBEDDING_TYPES and num_parts != 1 and type(num_virtual) is not int:
        raise ArtifactError(
            f"{path}: {NUM_VIRTUAL} is {num_virtual!r:.60} with {NUM_PARTS} {num_parts}, where "
            "PEFT may keep twice as many rows as virtual tokens; expected their number: write it "
            "there"
        )
    for name in ("base_model_name_or_path", "revision"):
        if not isinstance(config.get(name), str | None):
            shown = f"{config[name]!r:.60}"
            raise ArtifactError(f"{path}: {name} is {shown}, expected a string or null")


def form_of(config: Config) -> Form:
    """Return what a prompt is made of, by its configuration: "embeddings" or "key_values"."""
    is_said = config["peft_type"] == OWN_TYPE and config.get("form") == "embeddings"
    return "embeddings" if is_said or config["peft_type"] in EMBEDDING_TYPES else "key_values"


def check_shapes(config: Config, shapes: Mapping[str, Sequence[int]], where: Path) -> int:
    """Return P, by the shapes of an adapter's tensors and by its configuration.

    Raises:
        ArtifactError: shapes that are no prompt's, or not those that the configuration tells.
    """
    is_own, expected = config["peft_type"] == OWN_TYPE, config.get(NUM_VIRTUAL)
    for name, shape in shapes.items():
        if len(shape) not in ((2, 3) if is_own else (2,)) or 0 in shape:
            wanted = "2 or 3 dimensions" if is_own else "one row for each virtual token"
            raise ArtifactError(
                f"{where / TENSOR_FILE}: {name} has shape {list(shape)}, expected {wanted}"
            )
    if is_own:
        return _check_own(config, list(shapes.values()), where)
    ((name, shape),) = shapes.items()
    num_rows, has_half = shape[0], config.get(NUM_PARTS) == 2
    is_number = expected is None or type(expected) is int
    if not is_number or expected not in (None, num_rows / 2 if has_half else num_rows):
        half = f" and {NUM_PARTS} = 2, twice as many rows" if has_half else ""
        raise ArtifactError(
            f"{where}: {name} has shape {list(shape)}, but {CONFIG_FILE} says "
            f"{NUM_VIRTUAL} = {expected!r:.60}{half}; the two files are not from one save"
        )
    if config["peft_type"] in KEY_VALUE_TYPES:
        _sizes(config, shape[1], where)
    return num_rows if expected is None else expected


def check_tensors(
    config: Config, tensors: "dict[str, NDArray[Any]]", where: Path
) -> "list[NDArray[Any]]":
    """Return an adapter's tensors, as arrays, without what PEFT keeps and never uses.

    Raises:
        ArtifactError: as `check_shapes`.
    """
    found = check_shapes(config, {name: one.shape for name, one in tensors.items()}, where)
    if config.get(NUM_PARTS) == 2 and config["peft_type"] != OWN_TYPE:
        # PEFT keeps a second half for the decoder, which it never uses.
        return [tensor[:found].copy() for tensor in tensors.values()]
    return list(tensors.values())


def from_adapter(config: Config, tensors: "Sequence[NDArray[Any]]", where: Path) -> Parts:
    """Return what a prompt is made of, from an adapter whose files were checked.

    Raises:
        ArtifactError: the tensors cannot be laid out as the configuration says.
    """
    if form_of(config) == "embeddings":
        return Parts("embeddings", tensors, (), len(tensors[0]))
    if config["peft_type"] != OWN_TYPE:
        layers = _unflatten(config, tensors[0], where)
        return Parts("key_values", layers, (2,) * (len(layers) // 2), len(tensors[0]))
    counts = tuple(config["tensors_per_layer"])
    return Parts("key_values", tensors, counts, config[NUM_VIRTUAL])


def _check_own(config: Config, shapes: list[Sequence[int]], where: Path) -> int:
    """Return P of an adapter of foreword's own type."""
    found = config.get(NUM_VIRTUAL)
    if type(found) is not int or found < 1:
        raise ArtifactError(
            f"{where / CONFIG_FILE}: {NUM_VIRTUAL} is {found!r:.60}, expected a positive integer"
        )
    if form_of(config) == "embeddings":
        if len(shapes) != 1 or len(shapes[0]) != 2:
            shown = [list(shape) for shape in shapes]
            raise ArtifactError(f"{where}: expected embeddings of shape [P, H], got {shown}")
        if shapes[0][0] != found:
            raise ArtifactError(
                f"{where}: the embeddings have shape {list(shapes[0])}, but {CONFIG_FILE} says "
                f"{NUM_VIRTUAL} = {found}; the two files are not from one save"
            )
        return found
    try:
        grouped(
            [SimpleNamespace(ndim=len(shape), shape=tuple(shape)) for shape in shapes],
            config["tensors_per_layer"],
            found,
        )
    except InputError as error:
        raise ArtifactError(f"{where}: {error}") from None
    return found


def foreign_facts(config: Config) -> dict[str, Any]:
    """Return the facts in PEFT's own fields, which are all that a foreign prompt has."""
    base: dict[str, Any] = {
        "name": config.get("base_model_name_or_path"),
        "revision": config.get("revision"),
    }
    if config.get("task_type") == ENCODER_TASK:
        base["fingerprint"] = {"encoder": "input_ids"}
    return {"base": base, "method": config["peft_type"]}


def _sizes(config: Config, num_columns: int, where: Path) -> tuple[int, int, int]:
    """Return L, N and N * D of keys and values `[P, L * 2 * N * D]`."""
    needed = ("num_layers", "num_attention_heads", "token_dim")
    values = [value for name in needed if type(value := config.get(name)) is int and value > 0]
    if len(values) != len(needed):
        raise ArtifactError(
            f"{where / CONFIG_FILE}: expected positive integers {', '.join(needed)}, "
            f"got {[config.get(name) for name in needed]}; a key/value prompt cannot be laid out "
            "without them"
        )
    layers, heads, width = values
    if width % heads or num_columns != layers * 2 * width:
        raise ArtifactError(
            f"{where}: prompt_embeddings has {num_columns} columns, expected num_layers * 2 * "
            f"token_dim = {layers * 2 * width} with token_dim a multiple of {heads} heads"
        )
    return layers, heads, width


def _unflatten(config: Config, tensor: "NDArray[Any]", where: Path) -> "list[NDArray[Any]]":
    """Undo `_flat`: `[P, L * 2 * N * D]` to keys and values `[N, P, D]`, layer by layer."""
    layers, heads, width = _sizes(config, tensor.shape[1], where)
    blocks = tensor.reshape(tensor.shape[0], layers * 2, heads, width // heads)
    return [blocks[:, index].swapaxes(0, 1).copy() for index in range(layers * 2)]
