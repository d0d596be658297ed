"""One directory is one soft prompt, in PEFT's own format plus our facts.

In: a tensor `prompt_embeddings`, an adapter configuration, facts. Out: the same, verified. The
tensor file is safetensors, whose metadata carries the facts as JSON under `foreword`; PEFT ignores
them. Layers whose states differ in shape or kind have no place in PEFT's format: they are tensors
`foreword.0`, `foreword.1`, ... under a type that PEFT refuses. Writes are atomic. Nothing here
knows a model, a method or how a prompt is used; no pickle is ever read.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from foreword.errors import ArtifactError, InputError
from foreword.prompt import history
from foreword.storage import replacing, storage_errors

FORMAT_VERSION = 1
CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
TENSOR_NAME = "prompt_embeddings"
MAX_CONFIG_BYTES = 1 << 20
MAX_LAYERS = 1 << 12

EMBEDDING_TYPES = ("PROMPT_TUNING", "P_TUNING", "CPT")
KEY_VALUE_TYPES = ("PREFIX_TUNING", "CARTRIDGE")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# The facts that code relies on: their types where they are there at all. Others are free.
FACT_TYPES: dict[str, Any] = {
    "base": {"name": str, "revision": str, "fingerprint": dict},
    "tokenizer": dict,
    "encoding": {
        "row_template": str,
        "max_length": int,
        "truncate": bool,
        "is_text": bool,
        "is_spaced": bool,
    },
    "training": dict,
    "metrics": {"validation": dict},
    "method": str,
    "created": str,
}
OWN_TYPE = "FOREWORD_ONLY"  # PEFT's error for an adapter of this type is KeyError: 'FOREWORD_ONLY'
OWN_PREFIX = "foreword."
ENCODER_TASK = "SEQ_2_SEQ_LM"  # PEFT's name for models whose decoder follows an encoder


@dataclass(frozen=True)
class Artifact:
    """What a prompt directory holds: tensors, PEFT's configuration, our facts.

    `tensors` is one `[P, ...]` as PEFT lays it out, or, of the type `OWN_TYPE`, every layer's
    tensors in turn, as many as the configuration's `tensors_per_layer` says.
    """

    tensors: list[Tensor]
    config: dict[str, Any]
    facts: dict[str, Any]


def content_hash(tensors: list[Tensor]) -> str:
    """Return the SHA-256 of values, shapes and dtypes: equal for equal prompts, on any machine."""
    digest = hashlib.sha256()
    for tensor in tensors:
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def wrong_fact(facts: dict[str, Any]) -> str | None:
    """Say which fact is not of its type, as "base.name is int, expected str"; None if all are."""
    if wrong := _wrong_type(facts, FACT_TYPES):
        return wrong
    return history.wrong(facts["history"]) if facts.get("history") is not None else None


def _wrong_type(facts: dict[str, Any], expected: dict[str, Any]) -> str | None:
    for name, kind in expected.items():
        value = facts.get(name)
        group = kind if isinstance(kind, dict) else {}
        needed = dict if group else kind
        if value is None:
            continue
        if not isinstance(value, needed):
            return f"{name} is {type(value).__name__}, expected {needed.__name__}"
        if group and (wrong := _wrong_type(value, group)):
            return f"{name}.{wrong}"
    return None


def write(directory: str | os.PathLike[str], artifact: Artifact) -> None:
    """Write an artifact; both files are whole on the disk before either takes its place.

    Raises:
        StorageError: the directory cannot be written or the disk is full; what was there is kept.
        InputError: facts that are not plain data.
    """
    target = Path(directory)
    metadata = {"format": "pt"}
    if artifact.facts:
        metadata["foreword"] = _facts_as_json(target, artifact.facts)
    config = json.dumps(artifact.config, indent=2, sort_keys=True) + "\n"
    # Copies: safetensors refuses tensors that share memory.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in zip(_names(artifact), artifact.tensors, strict=True)
    }
    with storage_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        with (
            replacing(target / CONFIG_FILE) as config_file,
            replacing(target / TENSOR_FILE) as tensor_file,
        ):
            config_file.write_text(config)
            save_file(tensors, tensor_file, metadata=metadata)


def _facts_as_json(target: Path, facts: dict[str, Any]) -> str:
    if wrong := wrong_fact(facts):
        raise InputError(f"{target}: not saved; the prompt's fact {wrong}")
    try:
        return json.dumps(facts, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{target}: not saved; the prompt's facts are not plain data ({error}); keep strings, "
            "numbers, lists and dictionaries with string keys"
        ) from None


def _names(artifact: Artifact) -> list[str]:
    if artifact.config["peft_type"] != OWN_TYPE:
        return [TENSOR_NAME]
    return [f"{OWN_PREFIX}{index}" for index in range(len(artifact.tensors))]


def read(directory: str | os.PathLike[str]) -> Artifact:
    """Read and verify an artifact written here or by stock PEFT.

    Raises:
        ArtifactError: missing, truncated or hostile files, or an adapter that is not a soft prompt.
    """
    source = Path(directory)
    config = _read_config(source)
    is_own = config["peft_type"] == OWN_TYPE
    names = [f"{OWN_PREFIX}{i}" for i in range(_num_tensors(source, config))] if is_own else []
    tensors, facts = _read_tensors(source, names or [TENSOR_NAME])
    expected = config.get("num_virtual_tokens")
    if config["peft_type"] in EMBEDDING_TYPES and config.get("num_transformer_submodules") == 2:
        # PEFT keeps a second half for the decoder, which it never reads.
        (tensor,) = tensors.values()
        if expected is not None and tensor.ndim and tensor.shape[0] == 2 * expected:
            tensors = {TENSOR_NAME: tensor[:expected].clone()}
    for name, tensor in tensors.items():
        _check_tensor(source, name, tensor, is_own, expected)
    return Artifact(list(tensors.values()), config, facts)


def _num_tensors(source: Path, config: dict[str, Any]) -> int:
    counts: Any = config.get("tensors_per_layer")
    is_list = isinstance(counts, list) and 0 < len(counts) <= MAX_LAYERS
    if not (is_list and all(type(count) is int and 0 < count <= 16 for count in counts)):
        raise ArtifactError(
            f"{source / CONFIG_FILE}: tensors_per_layer is {counts!r:.60}, expected the number of "
            "each layer's tensors"
        )
    return sum(counts)


def _check_tensor(source: Path, name: str, tensor: Tensor, is_own: bool, expected: Any) -> None:
    """Refuse values that are no prompt's: `[P, ...]`, or a layer's state in foreword's own format,
    whose layout the prompt checks.
    """
    if tensor.dtype not in DTYPES:
        raise ArtifactError(
            f"{source / TENSOR_FILE}: expected floating point values of 16, 32 or 64 bits, "
            f"got {tensor.dtype}"
        )
    if tensor.ndim not in ((2, 3) if is_own else (2,)) or not tensor.numel():
        wanted = "2 or 3 dimensions" if is_own else "one row for each virtual token"
        raise ArtifactError(
            f"{source / TENSOR_FILE}: {name} has shape {list(tensor.shape)}, expected {wanted}"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise ArtifactError(
            f"{source / TENSOR_FILE}: the prompt holds NaN or infinite values; train it again "
            "with a lower learning rate or restore a copy"
        )
    if not is_own and expected is not None and tensor.shape[0] != expected:
        raise ArtifactError(
            f"{source}: {name} has shape {list(tensor.shape)}, but {CONFIG_FILE} says "
            f"num_virtual_tokens = {expected!r}; the two files are not from one save"
        )


def _read_config(source: Path) -> dict[str, Any]:
    path = source / CONFIG_FILE
    if not os.path.isdir(source):  # False, too, for a path that the system cannot even look up
        raise ArtifactError(f"{source}: no such directory; expected a soft prompt's directory")
    if not path.is_file():
        raise ArtifactError(f"{source}: no {CONFIG_FILE}; this directory holds no soft prompt")
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ArtifactError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes; no configuration")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(config, dict):
        raise ArtifactError(f"{path}: expected a JSON object, got {type(config).__name__}")
    kind = config.get("peft_type")
    if kind not in (*EMBEDDING_TYPES, *KEY_VALUE_TYPES, OWN_TYPE):
        supported = ", ".join((*EMBEDDING_TYPES, *KEY_VALUE_TYPES, OWN_TYPE))
        raise ArtifactError(
            f"{path}: peft_type is {kind!r}, which is not a soft prompt that can be read; "
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
            f"{path}: num_transformer_submodules is {num_parts!r} with task_type "
            f"{config.get('task_type')!r:.60}; expected 1, or 2 with {ENCODER_TASK}"
        )
    for name in ("base_model_name_or_path", "revision"):
        if not isinstance(config.get(name), str | None):
            raise ArtifactError(f"{path}: {name} is {config[name]!r}, expected a string or null")
    return config


def _read_tensors(source: Path, wanted: list[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = source / TENSOR_FILE
    if not path.is_file():
        pickled = (source / "adapter_model.bin").exists()
        hint = "adapter_model.bin is a pickle and is never read; save it again as safetensors"
        raise ArtifactError(f"{source}: no {TENSOR_FILE}" + (f"; {hint}" if pickled else ""))
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            others = ", ".join([repr(name) for name in names if name not in wanted][:5])
            for name in wanted:
                if name not in names:
                    raise ArtifactError(f"{path}: no tensor {name!r}; found {others or 'none'}")
            if others:
                raise ArtifactError(
                    f"{path}: holds {others} beside the prompt: modules trained with it, without "
                    "which it would not act the same; only a prompt alone can be read"
                )
            facts = _read_facts(path, file.metadata() or {})
            return {name: file.get_tensor(name) for name in wanted}, facts
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path}: truncated or not a safetensors file ({error})") from None


def _read_facts(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    if "foreword" not in metadata:
        return {}
    try:
        facts = json.loads(metadata["foreword"])
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise ArtifactError(f"{path}: the metadata under 'foreword' is not a JSON object")
    version = facts.get("format_version")
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: format version {version!r}, expected {FORMAT_VERSION}; "
            "read it with the release of foreword that wrote it"
        )
    if wrong := wrong_fact(facts):
        raise ArtifactError(f"{path}: in the metadata under 'foreword', {wrong}")
    return facts
