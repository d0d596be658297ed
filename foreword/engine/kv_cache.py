"""KV cache: the keys and values of all requests in the batch, in fixed slots.

In: passes of the model over some requests. Out: a cache that transformers' decoders take. For each
layer there is one tensor `[rows, N, capacity, D]` for keys and one for values, and a token lies in
the slot of its position, virtual tokens first: so a pass writes in place, attention reads views,
and masks compare positions. Rows in use are kept together, so that a decoding pass is a view of the
first rows and copies nothing. Recurrent layers keep one state for each row beside it. What fails
for want of memory leaves what was there as it was. Knows nothing of requests, ids or prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foreword.compat.transformers_api import Cache, CacheLayerMixin
from foreword.engine.limits import EngineLimits
from foreword.engine.recurrent_rows import RecurrentRows
from foreword.model.cache_layers import LASTING, stateless_layer
from foreword.model.capabilities import LayerKind

BLOCK = 64  # slots by which the capacity grows

CachedState = tuple[tuple[Tensor, ...], ...]
"""For each layer its tensors of one row: keys and values `[N, T, D]` where it attends, then what
its recurrences keep, whatever T."""


@dataclass(frozen=True)
class ForwardBatch:
    """Where one pass of the model reads and writes.

    Attributes:
        rows: the slot rows that the pass is over, in order.
        starts: tokens that each row holds before it, virtual ones included.
        counts: tokens that each row reads; rows that read fewer than the most are padded behind.
        shifts: rotary position minus slot of each row's tokens.
    """

    rows: Sequence[int]
    starts: Sequence[int]
    counts: Sequence[int]
    shifts: Sequence[int] = ()

    @property
    def num_new(self) -> int:
        """T, the most tokens that a row reads."""
        return max(self.counts)

    @property
    def lengths(self) -> list[int]:
        """The tokens that each row holds afterwards."""
        return [start + count for start, count in zip(self.starts, self.counts, strict=True)]

    @property
    def width(self) -> int:
        """W, the slots that attention sees: the most tokens that a row holds afterwards."""
        return max(self.lengths)

    @property
    def is_even(self) -> bool:
        """Whether every row reads one token, and all are equally long."""
        return self.num_new == 1 and min(self.starts) == max(self.starts)

    @property
    def are_rows_consecutive(self) -> bool:
        """Whether the rows are neighbours, so that a view holds them."""
        return list(self.rows) == list(range(self.rows[0], self.rows[0] + len(self.rows)))

    def positions(self, device: torch.device) -> Tensor:
        """Return position ids `[B, T]`; padding repeats that of its row's last token."""
        starts = torch.tensor(list(self.starts), device=device)[:, None]
        if self.num_new == 1:
            return starts
        last = torch.tensor(list(self.counts), device=device)[:, None] - 1
        return starts + torch.minimum(torch.arange(self.num_new, device=device), last)


class KVCacheLayer(CacheLayerMixin):
    """One layer's slots; `update` writes the tokens of the current pass where they belong."""

    is_sliding = False

    def __init__(self, kv_cache: "KVCache") -> None:
        super().__init__()
        self.kv_cache = kv_cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the slots, once the first token says what a layer caches."""
        size = self.kv_cache.target
        self.keys, self.values = (_empty(one, *size) for one in (key_states, value_states))
        self.is_initialized = True

    def resize(self, num_rows: int, capacity: int) -> None:
        """Take other numbers of rows and of slots, and keep what lies in both."""
        if not self.is_initialized:
            return
        made = []
        for old in _pair(self):
            new = _empty(old, num_rows, capacity)
            kept = old[:num_rows, :, :capacity]
            new[: kept.shape[0], :, : kept.shape[2]] = kept
            made.append(new)
        self.keys, self.values = made

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write `[B, N, T, D]` of the current pass; return all that its rows hold, `[B, N, W,
        D]`.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = _pair(self)
        return self.kv_cache.write(keys, key_states), self.kv_cache.write(values, value_states)

    def get_seq_length(self) -> int:
        """Return the slots before the tokens of the current pass, in its longest row."""
        return self.kv_cache.num_before

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the width of the current pass, and no offset."""
        return self.kv_cache.width, 0

    def get_max_length(self) -> int:
        """Return -1: there is no maximum."""
        return -1


class HybridLayer(RecurrentRows, KVCacheLayer):
    """One layer's slots, and the states of its recurrences beside them."""

    def __init__(self, kv_cache: "KVCache", num_recurrences: int) -> None:
        KVCacheLayer.__init__(self, kv_cache)
        RecurrentRows.__init__(self, kv_cache, num_recurrences)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Make the slots; states are made when a pass is written back."""
        KVCacheLayer.lazy_initialization(self, *args, **kwargs)


class SlotCache(Cache):
    """The cache that the model sees: its length is that of the pass, whatever its layers keep."""

    def __init__(self, layers: list[Any], kv_cache: "KVCache") -> None:
        super().__init__(layers=layers)
        self.kv_cache = kv_cache

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the slots before the tokens of the current pass, in its longest row."""
        return self.kv_cache.num_before


class KVCache:
    """All layers' slots and states, and the pass that is under way.

    Args:
        kinds: what each layer keeps.
        limits: how much memory is made.
    """

    def __init__(self, kinds: Sequence[LayerKind], limits: EngineLimits | None = None) -> None:
        self.kinds, self.limits = tuple(kinds), limits or EngineLimits()
        self.target = (0, 0)  # rows and slots of the layers that are made from now on
        self._make()
        self._rows = torch.empty(0, dtype=torch.long, device="cpu")
        self.width = self.num_before = 0
        self._source: tuple[Any, ...] = ()
        self._target: tuple[Any, ...] = ()
        self._view = slice(0)
        self._gathered: Tensor | None = None

    @property
    def num_rows(self) -> int:
        """Rows that every layer has."""
        made = (*self._tensors(), *self._states())
        return min(self.target[0], *(tensor.shape[0] for tensor in made), 1 << 62)

    @property
    def capacity(self) -> int:
        """Slots of a row that every layer has."""
        return min(self.target[1], *(tensor.shape[2] for tensor in self._tensors()), 1 << 62)

    @property
    def num_bytes(self) -> int:
        """Size in bytes of all slots and states, used or not."""
        return sum(tensor.nbytes for tensor in (*self._tensors(), *self._states()))

    @property
    def token_bytes(self) -> int:
        """Size in bytes of one token's slots in all layers."""
        return sum(t.shape[1] * t.shape[3] * t.element_size() for t in self._tensors())

    @property
    def state_bytes(self) -> int:
        """Size in bytes of what the recurrences of one row keep in all layers."""
        return sum(tensor[0].nbytes for tensor in self._states())

    def reserve(self, num_rows: int, capacity: int) -> None:
        """Make room for rows of up to `capacity` tokens, those in use included: nothing is kept of
        further rows and slots where both do not fit the limit of slots together.

        Layers that are already made anew when memory runs out keep their new size, which no number
        promises yet; the next call goes on with them.
        """
        if num_rows <= self.num_rows and capacity <= self.capacity:
            return
        size = self._size(num_rows, capacity)
        for layer in self._slots():
            layer.resize(*size)
        for recurrent in self._recurrent():
            recurrent.resize_rows(size[0])
        self.target = size

    def _size(self, num_rows: int, capacity: int) -> tuple[int, int]:
        """Return rows and slots for so many, in steps, so that not every request copies them all;
        what there is stays where the limit of slots allows it.
        """
        limit = max(self.limits.max_slots, num_rows * capacity)
        slots = min(-(-capacity // BLOCK) * BLOCK, limit // num_rows)
        rows = max(1 << (num_rows - 1).bit_length(), self.num_rows)
        rows = max(num_rows, min(rows, self.limits.max_rows, limit // slots))
        return rows, max(slots, min(self.capacity, limit // rows))

    def release(self) -> None:
        """Give all memory back; no row may be in use."""
        self.target = (0, 0)
        self._make()

    def _make(self) -> None:
        self.layers = [self._layer(kind) for kind in self.kinds]
        self.cache = SlotCache(list(self.layers), self)

    def _layer(self, kind: LayerKind) -> Any:
        if kind.pattern is not None and kind.num_recurrences:
            return HybridLayer(self, kind.num_recurrences)
        if kind.num_recurrences:
            return RecurrentRows(self, kind.num_recurrences)
        return KVCacheLayer(self) if kind.pattern is not None else stateless_layer()

    def put(self, row: int, state: CachedState, length: int) -> None:
        """Copy the first `length` tokens of a state into a row; a recurrent one holds no others."""
        for layer, tensors in zip(self.layers, state, strict=True):
            held = tensors[:2] if isinstance(layer, KVCacheLayer) else ()
            if held and not layer.is_initialized:
                layer.lazy_initialization(*(tensor[None] for tensor in held))
            for slots, tensor in zip(_pair(layer) if held else (), held, strict=True):
                slots[row, :, :length] = tensor[:, :length]
            if isinstance(layer, RecurrentRows):
                layer.put_row(row, tensors[len(held) :])

    def begin_row(self, row: int) -> None:
        """Let a row begin with nothing read, whatever another has left there."""
        for layer in self._recurrent():
            layer.put_row(row, ())

    def get(self, row: int, length: int) -> CachedState:
        """Return a copy of the first `length` tokens of a row."""
        found = []
        for layer in self.layers:
            is_made = isinstance(layer, KVCacheLayer) and layer.is_initialized
            state = tuple(t[row, :, :length].clone() for t in _pair(layer)) if is_made else ()
            found.append(state + (layer.get_row(row) if isinstance(layer, RecurrentRows) else ()))
        return tuple(found)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a row's first `length` tokens over another row."""
        if source != target:
            for tensor in self._tensors():
                tensor[target, :, :length] = tensor[source, :, :length]
            for state in self._states():
                state[target] = state[source]

    def clear(self, row: int) -> None:
        """Fill a row with zeros: values that are not finite would reach the next request."""
        for tensor in (*self._tensors(), *self._states()):
            tensor[row] = 0

    def begin(self, current: ForwardBatch, positions: Tensor) -> None:
        """Say what the next updates of all layers are about."""
        device = positions.device
        self.width, self.num_before = current.width, current.width - current.num_new
        self._rows = rows = torch.tensor(list(current.rows), device=device)
        for layer in self._recurrent():
            layer.take(rows)
        self._gathered = None if current.are_rows_consecutive else rows
        self._view = slice(current.rows[0], current.rows[0] + len(current.rows))
        if current.num_new == 1:
            self._source = (slice(None), slice(None), 0)
            self._target = (rows, slice(None), positions[:, 0])
            return
        counts = torch.tensor(list(current.counts), device=device)[:, None]
        index, token = (torch.arange(current.num_new, device=device) < counts).nonzero(
            as_tuple=True
        )
        self._source = (index, slice(None), token)
        self._target = (rows[index], slice(None), positions[index, token])

    def end(self) -> None:
        """Keep the states that the pass has made; without this, its rows have the old ones."""
        layers = self._recurrent()
        for layer in layers:  # all, before any is changed
            layer.make()
        for layer in layers:
            layer.write_back(self._rows)

    def write(self, slots: Tensor, states: Tensor) -> Tensor:
        """Write the current pass's `[B, N, T, D]` into slots; return its rows `[B, N, W, D]`."""
        slots[self._target] = states[self._source]
        if self._gathered is not None:
            return slots[:, :, : self.width].index_select(0, self._gathered)
        return slots[self._view, :, : self.width]

    def _slots(self) -> list[KVCacheLayer]:
        return [layer for layer in self.layers if isinstance(layer, KVCacheLayer)]

    def _recurrent(self) -> list[RecurrentRows]:
        return [layer for layer in self.layers if isinstance(layer, RecurrentRows)]

    def _tensors(self) -> list[Tensor]:
        return [t for layer in self._slots() if layer.is_initialized for t in _pair(layer)]

    def _states(self) -> list[Tensor]:
        return [tensor for layer in self._recurrent() for tensor in layer.rows]


def _empty(like: Tensor, num_rows: int, capacity: int) -> Tensor:
    # Zeros: what a masked slot holds is multiplied by zero, which NaN would survive.
    with LASTING():
        return like.new_zeros(num_rows, like.shape[1], capacity, like.shape[3])


def _pair(layer: KVCacheLayer) -> tuple[Tensor, Tensor]:
    assert layer.keys is not None and layer.values is not None
    return layer.keys, layer.values
