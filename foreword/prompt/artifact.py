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

from foreword.prompt.facts import FORMAT_VERSION as FORMAT_VERSION
from foreword.prompt.facts import METADATA_NAME, as_json
from foreword.prompt.facts import wrong_fact as wrong_fact
from foreword.prompt.peft_format import CONFIG_FILE, TENSOR_FILE, tensor_names
from foreword.prompt.stored_prompt import hash_of
from foreword.prompt.tensor_file import sort_header
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
            config_file.write_text(config, encoding="utf-8", newline="\n")
            save_file(tensors, tensor_file, metadata=metadata)
            sort_header(tensor_file)
