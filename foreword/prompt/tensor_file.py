"""Tensor files: a safetensors file, read once into memory.

In: a path. Out: its metadata and its tensors. They share nothing with the file: what was checked is
what is used, whatever becomes of the file afterwards. No pickle is ever read. Knows no prompt.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

MAX_HEADER_BYTES = 100_000_000  # as safetensors has it
METADATA = "__metadata__"


@dataclass(frozen=True, eq=False)
class TensorFile:
    """What a safetensors file held when it was read: tensors by name, and texts by name."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_tensors(path: Path, check: Callable[[list[str]], None] | None = None) -> TensorFile:
    """Read a file; `check` is given the tensors' names before any of them is read.

    Raises:
        ValueError: truncated, or not a safetensors file. OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = _read_start(file)
        header = _parse(start)
        if check is not None:
            check([name for name in header if name != METADATA])
        content = start + file.read()
    try:
        tensors = load(content)
    except (SafetensorError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(str(error)) from None
    return TensorFile(tensors, header.get(METADATA) or {})


def _read_start(file: BinaryIO) -> bytes:
    """Read the header and the eight bytes before it, which are its length."""
    length = file.read(8)
    size = int.from_bytes(length, "little")
    header = file.read(min(size, MAX_HEADER_BYTES))
    if len(length) < 8 or len(header) < size:
        raise ValueError("it has no whole header")
    return length + header


def _parse(start: bytes) -> dict[str, Any]:
    try:
        header = json.loads(start[8:])
    except RecursionError:
        header = None
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    return header
