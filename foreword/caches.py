"""Caches that start from a prefix, on transformers' own cache classes.

In: a batch of prefixes, and the kind of cache that the caller asked for. Out: a `PrefixedCache`: to
`generate` it is a cache of real tokens only, to the model it is an ordinary cache whose first slots
hold the virtual ones. Every layer keeps its full length, also where attention is sliding: the
masks, computed by position, do the sliding.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    StaticLayer,
)

from foreword.capabilities import SHARED_LAYER
from foreword.errors import InputError, MismatchError, UnsupportedError
from foreword.placeholders import Memory
from foreword.prefix import PrefixBatch

ROOM = 64  # tokens that a growing layer reserves ahead
MARK = "_foreword"  # attribute under which a caller's cache remembers its PrefixedCache


class GrowingLayer(DynamicLayer):
    """A dynamic layer that writes new tokens into reserved room, where transformers copies the
    whole cache.
    """

    def __init__(self) -> None:
        super().__init__()
        self._room: tuple[Tensor, Tensor] | None = None
        self._views: tuple[Tensor, Tensor] | None = None

    def start(self, keys: Tensor, values: Tensor) -> None:
        """Begin with the virtual tokens `[B, N, S, D]`; they are copied at the first update."""
        self.dtype, self.device = keys.dtype, keys.device
        self.keys, self.values = keys, values
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append `[B, N, T, D]` and return all keys and values so far."""
        if not self.is_initialized:
            self.start(key_states[:, :, :0], value_states[:, :, :0])
        length = self.keys.shape[2] + key_states.shape[2]
        if not self._has_room(length):
            self._reserve(key_states, value_states, length)
        assert self._room is not None
        start = length - key_states.shape[2]
        self._room[0][:, :, start:length] = key_states
        self._room[1][:, :, start:length] = value_states
        self._views = (self._room[0][:, :, :length], self._room[1][:, :, :length])
        self.keys, self.values = self._views
        return self._views

    def _has_room(self, length: int) -> bool:
        # Cropping and reordering replace the views; the room behind them is stale then.
        is_current = self._views is not None and self.keys is self._views[0]
        return is_current and self._room is not None and length <= self._room[0].shape[2]

    def _reserve(self, key_states: Tensor, value_states: Tensor, length: int) -> None:
        rooms = []
        for old, new in ((self.keys, key_states), (self.values, value_states)):
            rows, heads, _, size = new.shape
            room = new.new_empty(rows, heads, length + max(ROOM, length // 2), size)
            room[:, :, : old.shape[2]] = old
            rooms.append(room)
        self._room = (rooms[0], rooms[1])


class SharedLayer(DynamicLayer):
    """A layer that stores nothing: every update sees the prefix and the new tokens, and carries
    gradient.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the prefix followed by `[B, N, T, D]`."""
        keys = torch.cat([self.keys.to(key_states.device), key_states], dim=2)
        return keys, torch.cat([self.values.to(value_states.device), value_states], dim=2)


class ExactPrefixLayer(CacheLayerMixin):
    """A layer that keeps the prefix in full precision in front of a quantized one."""

    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, inner: CacheLayerMixin) -> None:
        super().__init__()
        self._prefix = (keys, values)
        self.inner = inner

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Leave it to the inner layer's first update."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append to the inner layer and return the prefix followed by what it holds."""
        keys, values = self.inner.update(key_states, value_states, *args, **kwargs)
        return (
            torch.cat([self._prefix[0].to(keys), keys], dim=2),
            torch.cat([self._prefix[1].to(values), values], dim=2),
        )

    def get_seq_length(self) -> int:
        """Return virtual and real tokens together."""
        return int(self._prefix[0].shape[2] + self.inner.get_seq_length())

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the length of the keys after `query_length` more tokens, and their offset."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """Return -1: there is no maximum."""
        return -1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the inner layer; beams of one row share its prefix."""
        self.inner.reorder_cache(beam_idx)

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: a quantized layer cannot forget its last tokens."""
        if tokens_to_remove:
            raise UnsupportedError(
                "a quantized cache cannot drop rejected candidates; use the dynamic cache for "
                "assisted decoding and prompt lookup"
            )


class PrefixedCache(Cache):
    """A cache of real tokens, as `generate` and its caller see it, over `model_cache`, as the model
    sees it.

    Give it back with the next turn: it knows which prompts it was started from and refuses others.
    """

    def __init__(self, model_cache: Cache, batch: PrefixBatch) -> None:
        super().__init__(layers=model_cache.layers)
        self.model_cache = model_cache
        self.identity = batch.identity
        self.num_slots = batch.num_slots
        # Set by a pass with padding: the next turn must bring the mask again.
        self.is_padded = False
        self.memory: Memory | None = None  # of the media that it holds

    @property
    def is_compileable(self) -> bool:
        """False: `generate` hands the two-dimensional mask on, from which the masks by position are
        made.
        """
        return False

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse to be read by a model directly: it would not see the virtual tokens.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            "this cache starts with virtual tokens; give it back to Backbone.generate, not to the "
            "model itself"
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of real tokens."""
        return max(int(self.model_cache.get_seq_length(layer_idx)) - self.num_slots, 0)

    def check(self, batch: PrefixBatch, num_real: int) -> None:
        """Refuse to go on with other prompts than the cache was started from, or past a static
        cache's end.

        Raises:
            MismatchError: names the first row that differs.
            InputError: the static cache is too short for `num_real` tokens.
        """
        limit = self.model_cache.get_max_length()
        if 0 <= limit < num_real + self.num_slots:
            raise InputError(
                f"the static cache holds {limit - self.num_slots} real tokens, this turn needs "
                f"{num_real}; make it larger or use the dynamic cache"
            )
        if len(batch.identity) != len(self.identity):
            raise MismatchError(
                f"past_key_values holds {len(self.identity)} rows, the call has "
                f"{len(batch.identity)}; give each batch its own cache"
            )
        for row, (old, new) in enumerate(zip(self.identity, batch.identity, strict=True)):
            if old != new:
                raise MismatchError(
                    f"row {row}: past_key_values was started from another prompt "
                    f"({_short(old)}) than the call names ({_short(new)}); start a new cache"
                )


def uncached(batch: PrefixBatch, num_layers: int) -> Cache:
    """Return a cache for one pass that keeps nothing and carries the prefixes' gradient."""
    if not batch.num_slots:
        return Cache(layers=[DynamicLayer() for _ in range(num_layers)])
    return Cache(layers=[SharedLayer(*batch.layer(i)) for i in range(num_layers)])


def start(cache: Cache, batch: PrefixBatch, num_layers: int, num_real: int) -> PrefixedCache:
    """Lay the prefixes into an empty cache of transformers, or go on with one that already holds
    them.

    `num_real` is how many real tokens the cache must be able to hold.

    Raises:
        MismatchError: the cache holds tokens that were read with other prompts.
        UnsupportedError: a kind of cache that cannot hold a prefix exactly.
    """
    known = cache if isinstance(cache, PrefixedCache) else getattr(cache, MARK, None)
    if known is not None and int(known.model_cache.get_seq_length()) > 0:
        known.check(batch, num_real)
        return known
    held = int(cache.get_seq_length()) if cache.layers else 0
    if held and batch.num_slots:
        raise MismatchError(
            f"past_key_values already holds {held} tokens read without this prompt; start with an "
            "empty cache, or give back the one that generate returned"
        )
    if known is not None:
        cache = known.model_cache
    if held:
        _check_foreign(cache)
    else:
        _fill(cache, batch, num_layers, num_real)
    prefixed = PrefixedCache(cache, batch)
    setattr(cache, MARK, prefixed)
    return prefixed


def _check_foreign(cache: Cache) -> None:
    for layer in cache.layers:
        if type(layer) not in (DynamicLayer, GrowingLayer, StaticLayer, SHARED_LAYER):
            raise UnsupportedError(
                f"past_key_values was filled elsewhere into a {type(layer).__name__}, which drops "
                "old tokens; start with an empty cache"
            )


def _fill(cache: Cache, batch: PrefixBatch, num_layers: int, num_real: int) -> None:
    old = [layer for layer in cache.layers if not isinstance(layer, SHARED_LAYER)]
    old = old or [DynamicLayer() for _ in range(num_layers)]
    if len(old) != num_layers:
        raise MismatchError(
            f"past_key_values has {len(old)} layers, the model has {num_layers}; make the cache "
            "from this model's configuration"
        )
    if cache.offloading and not torch.accelerator.is_available():
        raise UnsupportedError(
            "an offloaded cache moves layers between an accelerator and the CPU, and there is no "
            "accelerator; use the dynamic cache"
        )
    # A sliding static layer forgets the length that it was made for; the others remember it.
    length = max(num_real, cache.get_max_length() if cache.layers else 0)
    for index, layer in enumerate(old):
        old[index] = _layer(layer, batch, index, length, cache.offloading)
    cache.layers[:num_layers] = old
    cache.layer_class_to_replicate = None


def _layer(
    old: Any, batch: PrefixBatch, index: int, length: int, is_offloaded: bool
) -> CacheLayerMixin:
    """Return an empty layer of the same kind that starts with the virtual tokens."""
    virtual = batch.layer(index) if batch.num_slots else None
    if hasattr(old, "_quantize"):
        return ExactPrefixLayer(*virtual, old) if virtual else old
    if isinstance(old, StaticLayer):
        static = StaticLayer(length + batch.num_slots)
        if virtual:
            static.update(*virtual)
        return static
    if not isinstance(old, DynamicLayer):
        raise UnsupportedError(
            f"a cache of {type(old).__name__} cannot hold a prefix exactly; use the dynamic, "
            "static or quantized cache"
        )
    grown = DynamicLayer() if is_offloaded else GrowingLayer()
    if virtual:
        grown.lazy_initialization(*virtual)
        grown.keys, grown.values = virtual
    return grown


def _short(identity: str | None) -> str:
    return identity[:12] if identity else "none"
