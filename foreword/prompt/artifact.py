"""Prompt files: one directory is one soft prompt, in PEFT's format plus our facts.

In: a prompt's tensors, PEFT's configuration, our facts. Out: two files that appear whole.
The tensor file is safetensors, whose metadata holds the facts as JSON under `foreword`; PEFT
ignores them. Knows no model, no method and no use of a prompt; PEFT's keys are `peft_format`'s,
what facts may be is `facts`', and `stored_prompt` reads the files again.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from foreword.errors import ArtifactError, InputError
from foreword.prompt.facts import FORMAT_VERSION as FORMAT_VERSION
from foreword.prompt.facts import METADATA_NAME, as_json, check_whole_config, is_own
from foreword.prompt.facts import wrong_fact as wrong_fact
from foreword.prompt.peft_format import CONFIG_FILE, FILES, PROMPT_TYPES, TENSOR_FILE, tensor_names
from foreword.prompt.stored_prompt import BFLOAT16, Array, checked, hash_of
from foreword.prompt.tensor_file import sort_header
from foreword.storage import replacing, storage_errors, sync, taking_turns

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
    values = (tensor.detach().cpu().contiguous() for tensor in tensors)
    return hash_of(
        (str(value.dtype), tuple(value.shape), value.flatten().view(torch.uint8).numpy().tobytes())
        for value in values
    )


def write(directory: str | os.PathLike[str], artifact: Artifact) -> None:
    """Write an artifact; both files are whole on the disk before either takes its place. Their
    bytes are a function of what it holds.

    Raises:
        StorageError: the directory cannot be written or the disk is full; what was there is kept.
        InputError: what could not be read again, or another adapter's files lie there; nothing is
            written.
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
    try:
        check_whole_config(artifact.config, target / CONFIG_FILE)
        arrays = {name: _as_array(tensor) for name, tensor in tensors.items()}
        checked(artifact.config, arrays, artifact.facts, target)
    except ArtifactError as error:
        raise InputError(f"not saved, as it could not be read again: {error}") from None
    with storage_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        with taking_turns(target):  # the two files must be of one writer
            _check_place(target)
            with (
                replacing(target / CONFIG_FILE) as config_file,
                replacing(target / TENSOR_FILE) as tensor_file,
            ):
                config_file.write_text(config, encoding="utf-8", newline="\n")
                save_file(tensors, tensor_file, metadata=metadata)
                sort_header(tensor_file)
                # Then they take their places one right after the other: readers take no lock.
                sync(tensor_file)
                sync(config_file)


def _as_array(tensor: Tensor) -> Array:
    """Return an array over the memory of a tensor; of bfloat16, its bits."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(BFLOAT16)
    return tensor.numpy()


def _check_place(target: Path) -> None:
    """Refuse to write over an adapter that is no soft prompt.

    Raises:
        InputError: says what lies there.
    """
    if not any((target / name).is_file() for name in FILES):
        return
    try:
        found = json.loads((target / CONFIG_FILE).read_text(encoding="utf-8"))["peft_type"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        found = None
    if found in PROMPT_TYPES or (found is None and is_own(target)):
        return
    what = "files of an adapter" if found is None else f"an adapter of peft_type {found!r:.60}"
    raise InputError(
        f"{target}: not saved; {what} that is no soft prompt of foreword's or PEFT's would be "
        "replaced; choose another directory, or move it away"
    )
