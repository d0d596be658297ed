"""Sequence state: what llama.cpp writes of one sequence's KV cache, with other keys and values.

In: a context and each layer's cached keys and values `[N, P, D]`, keys rotated as transformers
caches them. Out: the state of a sequence of P tokens. The library writes a state of placeholder
tokens, so that its version and all but the numbers are its own; every field that says where numbers
lie is compared with what is expected, and what the library then reads back, with what was written.
Layout: `llama_kv_cache::state_write` of llama.cpp.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foreword.errors import InputError, MismatchError, ModelError, UnsupportedError
from foreword.llama_cpp.model import LlamaContext
from foreword.prompt.narrowing import narrowed
from foreword.prompt.soft_prompt import SoftPrompt

_PLACEHOLDER = 0  # its keys and values are written over
_TYPES: dict[int, np.dtype[Any]] = {0: np.dtype(np.float32), 1: np.dtype(np.float16)}  # ggml's
_PREFIX_BYTES = 8  # a magic number and the sequence's own


@dataclass(frozen=True)
class Field:
    """Where one layer's keys or values lie: `[P, N * D]`, or `[N * D, P]` where transposed."""

    start: int
    width: int
    dtype: np.dtype[Any]
    is_transposed: bool


def fill(context: LlamaContext, sequence: int, prompt: SoftPrompt) -> None:
    """Fill an empty sequence with a prompt, which belongs to the context's model: keys and values
    as they are, embeddings read by llama.cpp itself.

    Raises:
        InputError: numbers that llama.cpp's input does not hold.
        ForewordError: as `fill_key_values`.
    """
    if prompt.form == "key_values":
        fill_key_values(context, sequence, prompt.key_values)
    else:
        values = narrowed(prompt.embeddings.detach(), torch.float32, "llama.cpp's input")
        context.run_embeddings(values.cpu().numpy(), sequence)


def fill_key_values(
    context: LlamaContext, sequence: int, key_values: Sequence[tuple[Tensor, Tensor]]
) -> bytearray:
    """Fill an empty sequence with keys and values; return its state.

    Raises:
        MismatchError: they do not fit the model's layers. InputError: numbers that the cache's type
            does not hold. UnsupportedError: the library's layout is another.
        ModelError: the library does not take it.
    """
    num_tokens = key_values[0][0].shape[1]
    for start in range(0, num_tokens, context.options.batch_tokens):
        num = min(num_tokens - start, context.options.batch_tokens)
        places = range(start, start + num)
        context.run([_PLACEHOLDER] * num, places, [sequence] * num, [False] * num)
    state = context.state(sequence)
    context.cut(sequence)
    fields = _fields(state, num_tokens)
    if len(fields) != len(key_values):
        raise MismatchError(
            f"the prompt has {len(key_values)} layers, {context.model.path} has {len(fields)}; it "
            "is for another base"
        )
    for index, (pair, places_of) in enumerate(zip(key_values, fields, strict=True)):
        for name, tensor, field in zip(("keys", "values"), pair, places_of, strict=True):
            if tensor.shape[0] * tensor.shape[2] != field.width:
                raise MismatchError(
                    f"layer {index}: the prompt has {name} of {tensor.shape[0]} heads of size "
                    f"{tensor.shape[2]}, {context.model.path} has {field.width} numbers for each "
                    "token; it is for another base"
                )
            is_paired = name == "keys" and context.model.has_paired_keys
            _write(state, field, _numbers(tensor, is_paired=is_paired))
    context.restore(sequence, state, num_tokens)
    if context.state(sequence) != state:
        context.cut(sequence)
        raise ModelError("llama.cpp reads back another state than was written")
    return state


def _numbers(tensor: Tensor, *, is_paired: bool) -> np.ndarray:
    """Return keys or values `[N, P, D]` as `[P, N * D]`, as llama.cpp holds them."""
    found = tensor.detach().float().cpu().numpy()
    if is_paired:  # the two halves of a head become pairs
        heads, length, size = found.shape
        found = found.reshape(heads, length, 2, size // 2).swapaxes(2, 3).reshape(found.shape)
    return found.swapaxes(0, 1).reshape(found.shape[1], -1)


def _write(state: bytearray, field: Field, numbers: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        given = numbers.astype(field.dtype)
    if not np.isfinite(given).all():
        raise InputError(
            f"the prompt holds {np.abs(numbers).max():.4g}, more than a cache of {field.dtype} "
            "holds; take one of f32"
        )
    if field.is_transposed:
        given = given.T
    data = np.ascontiguousarray(given).tobytes()
    state[field.start : field.start + len(data)] = data


def _fields(state: bytearray, num_tokens: int) -> list[tuple[Field, Field]]:
    """Return where each layer's keys and values lie.

    Raises:
        UnsupportedError: a field is not what is expected.
    """
    reader = _Reader(state, _PREFIX_BYTES)
    reader.expect("number of streams", 1)
    reader.expect("number of tokens", num_tokens)
    for position in range(num_tokens):
        reader.expect("position", position)
        reader.expect("sequences of a token", 1)
        reader.take("i")
    is_transposed = bool(reader.expect("transposition of values", 0, 1))
    num_layers = reader.take("I")
    reader.expect("rotation of keys", 0)
    reader.expect("rotation of values", 0)
    keys = [_field(reader, num_tokens, is_transposed=False) for _ in range(num_layers)]
    values = [_field(reader, num_tokens, is_transposed=is_transposed) for _ in range(num_layers)]
    reader.expect_end()
    return list(zip(keys, values, strict=True))


def _field(reader: "_Reader", num_tokens: int, *, is_transposed: bool) -> Field:
    dtype = _TYPES[reader.expect("type of numbers", *_TYPES)]
    if is_transposed:
        reader.expect("bytes of a number", dtype.itemsize)
        width = reader.take("I")
    else:
        width = reader.take("Q") // dtype.itemsize
    field = Field(reader.position, width, dtype, is_transposed)
    reader.skip(num_tokens * width * dtype.itemsize)
    return field


class _Reader:
    """Reads a state from a place on; what is not as expected is an error."""

    def __init__(self, state: bytearray, position: int) -> None:
        self.state, self.position = state, position

    def take(self, kind: str) -> int:
        size = struct.calcsize(f"<{kind}")
        if self.position + size > len(self.state):
            raise _other_layout("it ends early")
        value: int = struct.unpack_from(f"<{kind}", self.state, self.position)[0]
        self.position += size
        return value

    def expect(self, what: str, *values: int) -> int:
        found = self.take("I")
        if found not in values:
            wanted = " or ".join(map(str, values))
            raise _other_layout(f"{what} is {found}, expected {wanted}")
        return found

    def skip(self, size: int) -> None:
        self.position += size
        if self.position > len(self.state):
            raise _other_layout("it ends early")

    def expect_end(self) -> None:
        if self.position != len(self.state):
            raise _other_layout(f"{len(self.state) - self.position} bytes follow its end")


def _other_layout(reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"this release of llama.cpp lays the state of a sequence out otherwise ({reason}); prompts "
        "of embeddings can still be used there, or take the tested release"
    )
