"""Prompt files: one directory is one soft prompt, in PEFT's format plus our facts.

In: a prompt's tensors, PEFT's configuration, our facts. Out: the same, verified, in memory that no
file changes any more. The tensor file is safetensors, whose metadata holds the facts as JSON under
`foreword`; PEFT ignores them. Writes are atomic, and no pickle is ever read. Knows no model, no
method and no use of a prompt; PEFT's keys are `peft_format`'s, and what facts may be is `facts`'.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from foreword.errors import ArtifactError
from foreword.prompt.facts import FORMAT_VERSION as FORMAT_VERSION
from foreword.prompt.facts import MAX_CONFIG_BYTES as MAX_CONFIG_BYTES
from foreword.prompt.facts import MAX_HEADER_BYTES, METADATA_NAME, as_json, parse, read_config
from foreword.prompt.facts import wrong_fact as wrong_fact
from foreword.prompt.peft_format import CONFIG_FILE, TENSOR_FILE, check_tensors, tensor_names
from foreword.prompt.tensor_file import read_tensors
from foreword.storage import replacing, storage_errors, taking_turns

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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


def write(directory: str | os.PathLike[str], artifact: Artifact) -> None:
    """Write an artifact; both files are whole on the disk before either takes its place.

    Raises:
        StorageError: the directory cannot be written or the disk is full; what was there is kept.
        InputError: facts that are not plain data.
    """
    target = Path(directory)
    metadata = {"format": "pt"}
    if artifact.facts:
        metadata[METADATA_NAME] = as_json(artifact.facts, target)
    config = json.dumps(artifact.config, indent=2, sort_keys=True) + "\n"
    names = tensor_names(artifact.config, target)
    # Copies: safetensors refuses tensors that share memory.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in zip(names, artifact.tensors, strict=True)
    }
    with storage_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        with (
            taking_turns(target),  # the two files must be of one writer
            replacing(target / CONFIG_FILE) as config_file,
            replacing(target / TENSOR_FILE) as tensor_file,
        ):
            config_file.write_text(config)
            save_file(tensors, tensor_file, metadata=metadata)


def read(directory: str | os.PathLike[str]) -> Artifact:
    """Read and verify an artifact written here or by stock PEFT.

    Raises:
        ArtifactError: missing, truncated or hostile files, or an adapter that is not a soft prompt.
    """
    source = Path(directory)
    config = read_config(source)
    tensors, facts = _read_tensors(source, tensor_names(config, source))
    for tensor in tensors.values():
        _check_values(source, tensor)
    return Artifact(check_tensors(config, tensors, source), config, facts)


def _check_values(source: Path, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES:
        raise ArtifactError(
            f"{source / TENSOR_FILE}: expected floating point values of 16, 32 or 64 bits, "
            f"got {tensor.dtype}"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise ArtifactError(
            f"{source / TENSOR_FILE}: the prompt holds NaN or infinite values; train it again "
            "with a lower learning rate or restore a copy"
        )


def _read_tensors(source: Path, wanted: list[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = source / TENSOR_FILE
    if not path.is_file():
        pickled = (source / "adapter_model.bin").exists()
        hint = "adapter_model.bin is a pickle and is never read; save it again as safetensors"
        raise ArtifactError(f"{source}: no {TENSOR_FILE}" + (f"; {hint}" if pickled else ""))

    def check(names: list[str]) -> None:
        known, found = set(wanted), set(names)
        others = ", ".join([f"{name!r:.60}" for name in names if name not in known][:5])
        for name in wanted:
            if name not in found:
                raise ArtifactError(f"{path}: no tensor {name!r}; found {others or 'none'}")
        if others:
            raise ArtifactError(
                f"{path}: holds {others} beside the prompt: modules trained with it, without "
                "which it would not act the same; only a prompt alone can be read"
            )

    try:
        stored = read_tensors(path, check, MAX_HEADER_BYTES)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: truncated or not a safetensors file ({error})") from None
    text = stored.metadata.get(METADATA_NAME)
    facts = parse(text, path) if text is not None else {}
    return {name: stored.tensors[name] for name in wanted}, facts
