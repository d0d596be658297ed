"""Layout: how a flat row of arrays lies in layers, and whether each layer is a known state.

In: tensors or NumPy arrays, and how many each layer has. Out: the layers, and P. Looks at shapes
alone, and imports no torch.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from foreword.config import Form
from foreword.errors import InputError

A = TypeVar("A", bound=Any)  # has `ndim` and `shape`


def grouped(
    arrays: Sequence[A], counts: Iterable[int], num_virtual_tokens: int | None = None
) -> tuple[tuple[tuple[A, ...], ...], int]:
    """Lay a flat list of arrays out as layers of `counts` arrays each; return them and P.

    Raises:
        InputError: a layer that is no known state, layers that differ in P, or no P at all.
    """
    layers, start = [], 0
    for index, count in enumerate(counts):
        layer = tuple(arrays[start : start + count])
        _check_layer(index, layer, count)
        layers.append(layer)
        start += count
    if start != len(arrays) or not layers:
        raise InputError(f"expected {start} tensors in {len(layers)} layers, got {len(arrays)}")
    lengths = {array.shape[1] for layer in layers for array in attention_part(layer)}
    if num_virtual_tokens is not None:
        lengths.add(num_virtual_tokens)
    if len(lengths) > 1:
        raise InputError(f"layers differ in virtual tokens: {sorted(lengths)}; expected one P")
    if not lengths:
        raise InputError("recurrent states alone do not tell P; give num_virtual_tokens")
    return tuple(layers), lengths.pop()


def attention_part(layer: tuple[A, ...]) -> tuple[A, ...]:
    """Return a layer's keys and values, or nothing where it keeps none."""
    return layer[:2] if layer and layer[0].ndim == 3 else ()


def layout_of(form: Form, counts: Sequence[int], num_virtual_tokens: int) -> dict[str, Any]:
    """Return what a prompt is beside its values and facts, as plain data."""
    return {"form": form, "counts": list(counts), "num_virtual_tokens": num_virtual_tokens}


def hash_with(values: str, arrays: Sequence[Any], layout: Mapping[str, Any]) -> str:
    """Return the hash of values, and of their layout where they do not tell it, as P of recurrent
    states.
    """
    are_pairs = set(layout["counts"]) == {2} and all(array.ndim == 3 for array in arrays)
    if layout["form"] == "embeddings" or are_pairs:
        return values
    return hashlib.sha256(f"{values} {dict(layout)}".encode()).hexdigest()


def _check_layer(index: int, layer: tuple[A, ...], count: int) -> None:
    dimensions = [array.ndim for array in layer]
    rest = dimensions[2:] if dimensions[:2] == [3, 3] else dimensions
    # A window has two dimensions; at most one recurrent state of three follows it.
    is_known = not rest or (rest[0] == 2 and "33" not in "".join(map(str, rest)))
    is_whole = len(layer) == count and all(0 not in array.shape for array in layer)
    if not (is_known and is_whole and set(rest) <= {2, 3}):
        shapes = [list(array.shape) for array in layer]
        raise InputError(
            f"layer {index}: expected keys and values [N, P, D], or a window [C, K] with its "
            f"recurrent state, or both, got {shapes}"
        )
