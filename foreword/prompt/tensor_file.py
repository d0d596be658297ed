"""Tensor files: a safetensors file, read once into memory.

In: a path. Out: its metadata, and its tensors or, without torch, NumPy arrays. They share nothing
with the file: what was checked is what is used, whatever becomes of the file afterwards. No pickle
is ever read. Knows no prompt.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from safetensors import SafetensorError, deserialize

from foreword.storage import replacing, storage_errors

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

T = TypeVar("T")

MAX_HEADER_BYTES = 100_000_000  # as safetensors has it
METADATA = "__metadata__"
# The kinds of numbers that prompts are made of; NumPy has no bfloat16, whose bits it keeps.
ARRAY_TYPES = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}


@dataclass(frozen=True, eq=False)
class TensorFile:
    """What a safetensors file held when it was read: tensors by name, and texts by name."""

    tensors: dict[str, "Tensor"]
    metadata: dict[str, str]


@dataclass(frozen=True, eq=False)
class ArrayFile:
    """The same without torch: arrays by name, bfloat16 as its bits in `uint16`."""

    arrays: dict[str, "NDArray[Any]"]
    metadata: dict[str, str]


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: dict[str, str]) -> None:
    """Write a file that takes the place of an earlier one, whole; its directory is made.

    Raises:
        StorageError: no space or no permission; the earlier file is kept.
    """
    from safetensors.torch import save_file

    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file(plain, temporary, metadata)


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
    from safetensors.torch import load

    content, metadata = _read(path, check, max_header_bytes)
    return TensorFile(_decoded(load, content), metadata)


def read_arrays(
    path: Path,
    check: Callable[[list[str]], None] | None = None,
    max_header_bytes: int = MAX_HEADER_BYTES,
) -> ArrayFile:
    """Read a file of floating point numbers of 16, 32 or 64 bits as `read_tensors` does.

    Raises:
        ValueError, OSError: as `read_tensors`. TypeError: names another kind of numbers.
    """
    import numpy as np

    content, metadata = _read(path, check, max_header_bytes)
    arrays = {}
    for name, part in _decoded(deserialize, content):
        if part["dtype"] not in ARRAY_TYPES:
            raise TypeError(part["dtype"])
        flat = np.frombuffer(part["data"], dtype=ARRAY_TYPES[part["dtype"]])
        arrays[name] = flat.reshape(part["shape"])
    return ArrayFile(arrays, metadata)


def read_metadata(path: Path) -> dict[str, str]:
    """Return what a file says beside its tensors, which are not read.

    Raises:
        ValueError: truncated, larger than it says, or not a safetensors file.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = _read_start(file, MAX_HEADER_BYTES)
        header = _parse(start)
        try:
            expected = len(start) + _num_bytes(header)
        except (LookupError, TypeError):
            raise ValueError("its header does not say where its tensors lie") from None
        if (found := file.seek(0, os.SEEK_END)) != expected:
            raise ValueError(f"{found:,} bytes, expected {expected:,}")
    return header.get(METADATA) or {}


def sort_header(path: Path) -> None:
    """Put what a file's header says in order: safetensors writes metadata in another one each time.

    Raises:
        ValueError: truncated, or not a safetensors file.
        OSError: it cannot be read or written.
    """
    with path.open("r+b") as file:
        start = _read_start(file, MAX_HEADER_BYTES)
        header = _parse(start)
        text = json.dumps(header, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        content = text.encode()
        if len(content) <= len(start) - 8:  # it is as long, but for the spaces that fill it
            file.seek(8)
            file.write(content.ljust(len(start) - 8))


def _read(
    path: Path, check: Callable[[list[str]], None] | None, max_header_bytes: int
) -> tuple[bytes, dict[str, str]]:
    """Return all bytes of a file, and its metadata."""
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
    return content, header.get(METADATA) or {}


def _decoded(decode: Callable[[bytes], T], content: bytes) -> T:
    try:
        return decode(content)
    except (SafetensorError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(str(error)) from None


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
