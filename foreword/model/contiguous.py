"""Contiguous rows: padded and mixed rows of a model that places tokens by their slots.

Some models take no positions: they count the slots before a token, or measure distances between
slots, so that padding and empty slots would move it. In: one pass over padded rows, and the cache
before it. Out: the rows in groups that have equally many virtual, cached and new tokens, each with
a cache of its own without holes. Slower, as the cache is copied at each pass; exact for whatever a
model does with slots. Knows no model.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foreword.compat.transformers_api import Cache, StaticLayer
from foreword.model.cache_layers import one_pass_layer
from foreword.model.capabilities import Capabilities
from foreword.model.recurrent import LengthGroup
from foreword.prompt.prefix import PrefixBatch


@dataclass(frozen=True, eq=False)
class ContiguousGroup(LengthGroup):
    """Rows of one pass that have equally many virtual, cached and new tokens.

    Attributes:
        num_cached: real tokens of each row that are cached.
        slots: the slots of each row's virtual and cached tokens, `[rows, K]`.
        columns: the columns of each row's new tokens in the pass, `[rows, num_new]`.
    """

    num_cached: int
    slots: Tensor
    columns: Tensor


def is_contiguous(batch: PrefixBatch, cache: Any, mask: Tensor | None) -> bool:
    """Return whether no row has a hole before or among its tokens."""
    is_even = len(set(batch.num_virtual)) == 1
    is_growing = not any(isinstance(layer, StaticLayer) for layer in cache.layers)
    return is_even and is_growing and (mask is None or bool(mask.all()))


def groups(
    batch: PrefixBatch, mask: Tensor | None, num_rows: int, num_cached: int, num_new: int
) -> Iterator[ContiguousGroup]:
    """Yield the rows of a pass over `num_new` columns, those without new tokens left out.

    `mask` is `[B, num_cached + num_new]`, or None where no row is padded.
    """
    if mask is None:
        mask = torch.ones(num_rows, num_cached + num_new, dtype=torch.long, device="cpu")
    seen = mask.bool().cpu()
    keys = [
        (num_virtual, int(row[:num_cached].sum()), int(row[num_cached:].sum()))
        for num_virtual, row in zip(batch.num_virtual, seen, strict=True)
    ]
    for key in sorted(set(keys)):
        num_virtual, num_held, num_given = key
        if num_given == 0:
            continue
        rows = [row for row, found in enumerate(keys) if found == key]
        virtual = torch.arange(batch.num_slots - num_virtual, batch.num_slots, device="cpu")
        held = torch.stack([seen[row, :num_cached].nonzero()[:, 0] for row in rows])
        columns = torch.stack([seen[row, num_cached:].nonzero()[:, 0] for row in rows])
        slots = torch.cat([virtual.expand(len(rows), -1), held + batch.num_slots], 1)
        yield ContiguousGroup(rows, num_given, num_held, slots, columns)


def cache_of(cache: Cache, group: ContiguousGroup, capabilities: Capabilities) -> Cache:
    """Return a cache for one pass of a group's rows, which holds their tokens before."""
    layers = []
    for layer, kept in zip(cache.layers, capabilities.layers, strict=False):
        state: tuple[Tensor, ...] = ()
        if kept.pattern is not None and group.slots.shape[1] and layer.keys is not None:
            state = tuple(_taken(side, group) for side in (layer.keys, layer.values))
        if kept.num_recurrences:
            state += tuple(
                tensor[torch.tensor(group.rows, device=tensor.device)] for tensor in layer.states()
            )
        layers.append(one_pass_layer(kept, state))
    return Cache(layers=layers)


def _taken(side: Tensor, group: ContiguousGroup) -> Tensor:
    """Return the slots of a group's rows out of keys or values `[B, N, S, D]`."""
    rows = side[torch.tensor(group.rows, device=side.device)]
    index = group.slots.to(side.device)[:, None, :, None]
    return rows.gather(2, index.expand(-1, side.shape[1], -1, side.shape[3]))
