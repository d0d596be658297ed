"""Padding for recurrent layers: padded rows run so that no padding enters a state.

In: one pass over padded rows, and the cache before it. Out: the rows in groups of equal length,
each with a cache of its own to run without padding, and that cache's content written back to the
batch's. Where nothing is kept between passes, rows are shifted to the left instead: padding behind
a row changes nothing before it. Knows no model.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foreword.compat.transformers_api import Cache, CacheLayerMixin
from foreword.model.cache_layers import RecurrentStates, SharedLayer, one_pass_layer
from foreword.model.capabilities import Capabilities, LayerKind
from foreword.prompt.prefix import PrefixBatch
from foreword.prompt.states import LayerState


def shift_left(attention_mask: Tensor) -> Tensor:
    """Return the order that moves each row's real tokens before its padding, `[B, T]`."""
    return torch.argsort(attention_mask.bool().logical_not().int(), dim=1, stable=True)


def has_padding(attention_mask: Tensor | None, num_new: int) -> bool:
    """Whether any of a pass's own tokens is padding."""
    return attention_mask is not None and not bool(attention_mask[:, -num_new:].all())


@dataclass(frozen=True)
class LengthGroup:
    """Rows of one pass that have equally many new tokens.

    Attributes:
        rows: their indices in the batch.
        num_new: new tokens of each, the last of the pass.
    """

    rows: list[int]
    num_new: int


def groups(attention_mask: Tensor, num_new: int) -> Iterator[LengthGroup]:
    """Yield the rows of a pass over `num_new` slots by how many of them are real, rows without any
    left out.
    """
    counts = attention_mask[:, -num_new:].sum(1).tolist()
    for count in sorted(set(counts) - {0}):
        yield LengthGroup([row for row, found in enumerate(counts) if found == count], count)


def part_of(batch: PrefixBatch, group: LengthGroup) -> PrefixBatch:
    """Return the prefixes of a group's rows, and what these do not attend to."""
    unseen = None if batch.unseen is None else batch.unseen[group.rows]
    return PrefixBatch(tuple(batch.prefixes[row] for row in group.rows), unseen)


def cache_of(cache: Cache, group: LengthGroup, capabilities: Capabilities, num_empty: int) -> Cache:
    """Return a cache for one pass of a group's rows, which holds their tokens before, without the
    first `num_empty` slots.
    """
    layers = []
    for layer, kept in zip(cache.layers, capabilities.layers, strict=False):
        layers.append(one_pass_layer(kept, _state_of(layer, kept, group, num_empty)))
    return Cache(layers=layers)


def _state_of(layer: Any, kept: LayerKind, group: LengthGroup, num_empty: int) -> LayerState:
    rows = torch.tensor(group.rows, device="cpu")
    state: tuple[Tensor, ...] = ()
    if kept.pattern is not None and layer.keys is not None:
        filled = int(layer.get_seq_length())
        state = tuple(side[:, :, num_empty:filled] for side in (layer.keys, layer.values))
    if kept.num_recurrences:
        state += layer.states()
    return tuple(tensor[rows.to(tensor.device)] for tensor in state)


def lay_back(
    cache: Cache, pairs: list[tuple[LengthGroup, Cache]], num_rows: int, num_new: int
) -> None:
    """Write the groups' new states into the batch's cache, right-aligned in `num_new` slots."""
    # Layers without states of their own may follow those of the parts.
    for index, layer in enumerate(cache.layers[: len(pairs[0][1].layers)]):
        parts = [(group, part.layers[index]) for group, part in pairs]
        if isinstance(layer, CacheLayerMixin):
            sides = zip(*(_newest(part) for _, part in parts), strict=True)
            layer.update(*(_aligned(pairs, side, num_rows, num_new) for side in sides))
        if isinstance(layer, RecurrentStates):
            _replace_states(layer, parts, num_rows)


def _newest(layer: Any) -> tuple[Tensor, Tensor]:
    """Return the keys and values that a layer's only pass has added."""
    return layer.newest if isinstance(layer, SharedLayer) else (layer.keys, layer.values)


def _aligned(
    pairs: list[tuple[LengthGroup, Cache]], parts: tuple[Tensor, ...], num_rows: int, num_new: int
) -> Tensor:
    _, heads, _, size = parts[0].shape
    whole = parts[0].new_zeros(num_rows, heads, num_new, size)
    for (group, _), part in zip(pairs, parts, strict=True):
        whole[group.rows, :, num_new - group.num_new :] = part
    return whole


def _replace_states(layer: Any, parts: list[tuple[LengthGroup, Any]], num_rows: int) -> None:
    old: LayerState = layer.states()
    if not old:  # an empty cache: rows without tokens so far start from zeros later
        old = tuple(t.new_zeros(num_rows, *t.shape[1:]) for t in parts[0][1].states())
    new = [tensor.clone() for tensor in old]
    for group, part in parts:
        for whole, state in zip(new, part.states(), strict=True):
            whole[group.rows] = state.to(whole.dtype)
    layer.begin(tuple(new))
