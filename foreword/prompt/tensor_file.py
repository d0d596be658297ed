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


def read_tensors(
    path: Path,
    check: Callable[[list[str]], None] | None = None,
    max_header_bytes: int = MAX_HEADER_BYTES,
) -> TensorFile:
    """Read a file; `check` is given the tensors' names before any of them is read.

    Raises:
        ValueError: truncated, larger than it says or than the memory, or not a safetensors file.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = _read_start(file, max_header_bytes)
        header = _parse(start)
        if check is not None:
            check([name for name in header if name != METADATA])
        try:
            content = start + file.read(_num_bytes(header) + 1)  # one more tells a longer file
        except (MemoryError, OverflowError):
            raise ValueError("it is larger than the memory") from None
        except (LookupError, TypeError):
            raise ValueError("its header does not say where its tensors lie") from None
    try:
        tensors = load(content)
    except (SafetensorError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(str(error)) from None
    return TensorFile(tensors, header.get(METADATA) or {})


def _num_bytes(header: dict[str, Any]) -> int:
    """Return how many bytes follow a header, by its own word."""
    parts = [part for name, part in header.items() if name != METADATA]
    ends = [part["data_offsets"][1] for part in parts]
    return max((end for end in ends if type(end) is int and end > 0), default=0)


def _read_start(file: BinaryIO, max_header_bytes: int) -> bytes:
    """Read the header and the eight bytes before it, which are its length."""
    length = file.read(8)
    size = int.from_bytes(length, "little")
    if size > max_header_bytes:
        raise ValueError(f"a header of {size:,} bytes, larger than {max_header_bytes:,}")
    header = file.read(size)
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
