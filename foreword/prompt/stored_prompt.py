"""Stored prompt: a prompt's two files, read and verified without torch.

In: a directory, or what stands for one. Out: the values as NumPy arrays, how they lie in layers,
the configuration and the facts, checked: whole files, finite numbers, shapes that fit together,
values that are those of the recorded hash. bfloat16, which NumPy has not, is its bits, as `uint16`.
Knows no model and no use of a prompt.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foreword.config import Form
from foreword.errors import ArtifactError
from foreword.prompt import directories
from foreword.prompt.facts import (
    MAX_HEADER_BYTES,
    check_form,
    found_in,
    read_config,
    with_base_of,
)
from foreword.prompt.layout import hash_with, layout_of
from foreword.prompt.peft_format import (
    TENSOR_FILE,
    check_tensors,
    foreign_facts,
    from_adapter,
    tensor_names,
)
from foreword.prompt.steady_files import steadily
from foreword.prompt.tensor_file import read_arrays

Array = NDArray[Any]
BFLOAT16 = np.dtype("uint16")  # its bits
BFLOAT16_EXPONENT = 0x7F80  # all of these: NaN or infinite


@dataclass(frozen=True, eq=False)
class StoredPrompt:
    """A prompt as its files say it, checked.

    Attributes:
        form: "embeddings" or "key_values".
        arrays: one `[P, H]`, or all layers' arrays in a row.
        counts: arrays of each layer; none for embeddings.
        num_virtual_tokens: P.
        config: PEFT's configuration.
        facts: what is known of the prompt.
    """

    form: Form
    arrays: list[Array]
    counts: tuple[int, ...]
    num_virtual_tokens: int
    config: dict[str, Any]
    facts: dict[str, Any]

    @property
    def num_parameters(self) -> int:
        """How many numbers are learned."""
        return sum(array.size for array in self.arrays)

    @property
    def num_bytes(self) -> int:
        """Size of the values in bytes."""
        return sum(array.nbytes for array in self.arrays)

    @property
    def content_hash(self) -> str:
        """SHA-256 of the values, as `SoftPrompt.content_hash`."""
        layout = layout_of(self.form, self.counts, self.num_virtual_tokens)
        return hash_with(content_hash(self.arrays), self.arrays, layout)


def read(
    directory: str | os.PathLike[str], say: Callable[[str], object] = directories.log.warning
) -> StoredPrompt:
    """Read and verify a prompt that foreword or stock PEFT wrote; nothing in it is executed.

    Args:
        directory: its directory, a folder with the one of a single prompt in it, or a Hub id.
        say: is told which folder's prompt is read, where it is not the one that is named.

    Raises:
        ArtifactError: missing, truncated or hostile files, values that are not finite or not those
            of the recorded hash, an adapter that is not a soft prompt.
    """
    source = directories.find(directory, say)

    def read_files() -> StoredPrompt:
        config = read_config(source)
        found, facts = _read_arrays(source, tensor_names(config, source))
        return checked(config, found, facts, source)

    return steadily(source, read_files)


def checked(
    config: dict[str, Any], found: dict[str, Array], facts: dict[str, Any], source: Path
) -> StoredPrompt:
    """Return the prompt that a checked configuration, arrays and facts make up.

    A writer asks it, too, before it writes: what it refuses could not be read again.

    Args:
        config: PEFT's configuration, checked by itself.
        found: the file's arrays by name.
        facts: of foreword's metadata; empty where a file has none, as PEFT's.
        source: the directory, for errors.

    Raises:
        ArtifactError: values that are not finite or not those of the recorded hash, shapes or facts
            that are not what the configuration says.
    """
    for array in found.values():
        _check_values(source, array)
    parts = from_adapter(config, check_tensors(config, found, source), source)
    arrays = list(parts.tensors)
    check_form(config, facts, source)
    if facts and facts["content_hash"] != content_hash(arrays):
        raise ArtifactError(
            f"{source}: the values do not match their recorded hash; the file was changed"
        )
    facts = with_base_of(config, facts) if facts else foreign_facts(config)
    return StoredPrompt(parts.form, arrays, parts.counts, parts.num_virtual_tokens, config, facts)


def content_hash(arrays: Iterable[Array]) -> str:
    """Return the SHA-256 of values, shapes and dtypes: equal for equal prompts, on any machine."""
    return hash_of((_name_of(array), array.shape, array.tobytes()) for array in arrays)


def hash_of(parts: Iterable[tuple[str, tuple[int, ...], bytes]]) -> str:
    """Return the SHA-256 of tensors, each by its dtype as torch calls it, shape and bytes."""
    digest = hashlib.sha256()
    for dtype, shape, content in parts:
        digest.update(f"{dtype} {shape}".encode())
        digest.update(content)
    return digest.hexdigest()


def _name_of(array: Array) -> str:
    return f"torch.{'bfloat16' if array.dtype == BFLOAT16 else array.dtype.name}"


def _check_values(source: Path, array: Array) -> None:
    if array.dtype == BFLOAT16:
        is_finite = ((array & BFLOAT16_EXPONENT) != BFLOAT16_EXPONENT).all()
    else:
        is_finite = np.isfinite(array).all()
    if not is_finite:
        raise ArtifactError(
            f"{source / TENSOR_FILE}: the prompt holds NaN or infinite values; train it again "
            "with a lower learning rate or restore a copy"
        )


def _read_arrays(source: Path, wanted: list[str]) -> tuple[dict[str, Array], dict[str, Any]]:
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
        stored = read_arrays(path, check, MAX_HEADER_BYTES)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: truncated or not a safetensors file ({error})") from None
    except TypeError as error:
        raise ArtifactError(
            f"{path}: expected floating point values of 16, 32 or 64 bits, got {error}"
        ) from None
    facts = found_in(stored.metadata, path)
    return {name: stored.arrays[name] for name in wanted}, facts
