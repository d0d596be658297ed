"""Prefixed KV cache: transformers' own cache classes, starting from a prefix.

In: a batch of prefixes, and the kind of cache that the caller asked for. Out: a `PrefixedCache`: to
`generate` it is a cache of real tokens only, to the model it is an ordinary cache whose first slots
hold the virtual ones. Knows no positions and no masks.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from foreword.compat.transformers_api import (
    KEYLESS_LAYER,
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    StaticLayer,
)
from foreword.errors import InputError, MismatchError, UnsupportedError
from foreword.model.cache_layers import (
    ExactPrefixLayer,
    GrowingLayer,
    attention_layer,
    one_pass_layer,
    state_layer,
)
from foreword.model.cached_tokens import CachedTokens
from foreword.model.capabilities import Capabilities, LayerKind
from foreword.model.placeholders import Memory
from foreword.prompt.prefix import PrefixBatch

MARK = "_foreword"  # attribute under which a caller's cache remembers its PrefixedCache
ROW_MOVES = ("reorder_cache", "batch_select_indices", "batch_repeat_interleave")


class PrefixedCache(Cache):
    """A cache of real tokens, as `generate` and its caller see it, over `model_cache`, as the model
    sees it.

    Give it back with the next turn: it knows which prompts it was started from and refuses others.
    """

    def __init__(self, model_cache: Cache, batch: PrefixBatch) -> None:
        super().__init__(layers=model_cache.layers)
        self.model_cache = model_cache
        self.begin(batch)
        self.num_computed = 0  # real tokens of the passes so far
        self.tokens = CachedTokens()
        self.is_whole = True  # False from the start of a pass to its end
        self.memory: Memory | None = None  # of the media that it holds

    def begin(self, batch: PrefixBatch) -> None:
        """Start, without any real token, from the prefixes that were laid into `model_cache`."""
        self.layers = self.model_cache.layers
        self.identity, self.num_slots = batch.identity, batch.num_slots
        self.weights = batch.weights

    @property
    def is_compileable(self) -> bool:
        """False: `generate` hands the two-dimensional mask on, from which the masks by position are
        made.
        """
        return False

    @property
    def is_linear(self) -> list[bool]:
        """False for each layer: unlike transformers' own, it tells how many tokens recurrent
        layers hold, so that `generate` leaves them out of the next turn.
        """
        return [False] * len(self.layers)

    @property
    def is_padded(self) -> bool:
        """Whether it holds padding, so that the next turn must bring the mask again."""
        return self.tokens.mask is not None and not bool(self.tokens.mask.all())

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse to be used by a model directly: it would not see the virtual tokens.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            "this cache starts with virtual tokens; give it back to Backbone.generate, not to the "
            "model itself"
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of real tokens."""
        if not any(isinstance(layer, CacheLayerMixin) for layer in self.layers):
            return self.num_computed  # recurrent states do not tell
        return max(int(self.model_cache.get_seq_length(layer_idx)) - self.num_slots, 0)

    @property
    def is_filled(self) -> bool:
        """Whether it holds any token, virtual or real."""
        return self.num_computed > 0 or num_held(self.model_cache) > 0

    def read(self, tokens: Tensor, mask: Tensor | None) -> None:
        """Take note of a pass that has ended, over ids `[B, T]` or embeddings `[B, T, H]`."""
        self.num_computed += tokens.shape[1]
        self.tokens.read(tokens, mask)
        self.is_whole = True

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens."""
        super().crop(tokens_to_remove)
        self.num_computed -= abs(tokens_to_remove)
        self.tokens.drop_last(abs(tokens_to_remove))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Put other rows in the rows' places, as other beams."""
        super().reorder_cache(beam_idx)
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order.

        Raises:
            UnsupportedError: a layer cannot.
        """
        self._check_rows_move()
        super().batch_select_indices(indices)
        self._select(torch.as_tensor(indices))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row.

        Raises:
            UnsupportedError: a layer cannot.
        """
        self._check_rows_move()
        super().batch_repeat_interleave(repeats)
        self._select(torch.arange(len(self.identity), device="cpu").repeat_interleave(repeats))

    def _check_rows_move(self) -> None:
        for layer in self.layers:
            if not isinstance(layer, DynamicLayer) or hasattr(layer, "_quantize"):
                raise UnsupportedError(
                    f"the rows of a {type(layer).__name__} cannot be chosen or repeated; use the "
                    "dynamic cache, or give the whole conversation without a cache"
                )
        if self.memory is not None and self.memory.has_media:
            raise UnsupportedError(
                "the rows of a cache that holds media cannot be chosen or repeated; give the whole "
                "conversation without a cache"
            )

    def _select(self, rows: Tensor) -> None:
        self.tokens.select(rows)
        # Beams are of one row: what they stand behind is the same, and not asked of a device.
        if len(set(self.identity)) > 1 or len(rows) != len(self.identity):
            chosen = rows.tolist()
            self.identity = tuple(self.identity[row] for row in chosen)
            self.weights = tuple(self.weights[row] for row in chosen)

    def reset(self) -> None:
        """Forget all tokens, virtual ones included: the next turn begins as in a new cache."""
        cache = self.model_cache
        for index, layer in enumerate(cache.layers):
            if isinstance(layer, ExactPrefixLayer):
                cache.layers[index] = layer.inner
            cache.layers[index].reset()
        self.num_computed, self.tokens, self.memory = 0, CachedTokens(), None
        self.is_whole = True

    def check_whole(self) -> None:
        """Refuse to go on where a pass has ended in an error.

        Raises:
            InputError: it has.
        """
        if not self.is_whole:
            raise InputError(
                "past_key_values was left half filled by a call that failed; start a new cache"
            )

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
        if self.weights != batch.weights:
            raise MismatchError(
                "past_key_values was filled by another model, or by other weights than the model "
                "has now; start a new cache"
            )


def known(cache: Any) -> Any:
    """Return the prefixed cache behind a cache that the caller holds, or the cache itself.

    One whose layers the caller has emptied, or replaced by none, starts anew.
    """
    found = getattr(cache, MARK, cache)
    if found is not cache and cache.layers is not found.layers:  # other layers, by the caller
        found.layers = found.model_cache.layers = cache.layers
    if isinstance(found, PrefixedCache) and found.num_computed and not num_held(found.model_cache):
        found.reset()
    return found


def uncached(batch: PrefixBatch, capabilities: Capabilities) -> Cache:
    """Return a cache for one pass that carries the prefixes' gradient, and keeps nothing behind a
    prefix.
    """
    layers = []
    for index, layer in enumerate(capabilities.layers):
        state = batch.layer(index) if batch.num_slots else ()
        layers.append(one_pass_layer(layer, state))
    return Cache(layers=layers)


def num_held(cache: Cache) -> int:
    """Return the tokens that a cache holds; 1 where it holds some and cannot tell how many."""
    if not cache.layers:
        return 0
    if any(isinstance(layer, CacheLayerMixin) for layer in cache.layers):
        return int(cache.get_seq_length())
    return int(cache.has_previous_state())


def start(
    cache: Cache, batch: PrefixBatch, capabilities: Capabilities, num_real: int
) -> PrefixedCache:
    """Lay the prefixes into an empty cache of transformers, or go on with one that already holds
    them.

    `num_real` is how many real tokens the cache must be able to hold.

    Raises:
        MismatchError: the cache holds tokens that follow other prompts.
        UnsupportedError: a kind of cache that cannot hold a prefix exactly.
    """
    found = known(cache)
    if isinstance(found, PrefixedCache) and found.is_filled:
        found.check(batch, num_real)
        return found
    held = num_held(cache)
    if held and batch.num_slots:
        raise MismatchError(
            f"past_key_values already holds {held} tokens read without this prompt; start with an "
            "empty cache, or give back the one that generate returned"
        )
    if isinstance(found, PrefixedCache):
        cache = found.model_cache
    if held:
        _check_foreign(cache)
    else:
        fill(cache, batch, capabilities, num_real)
    if isinstance(found, PrefixedCache):
        found.begin(batch)
        return found
    # Over a copy with the same layers: were it `cache` itself, each would hold the other, and its
    # memory would stay taken until the garbage collector runs.
    prefixed = PrefixedCache(copy.copy(cache), batch)
    setattr(cache, MARK, prefixed)
    for name in ROW_MOVES:  # the rows' prompts move with them
        setattr(cache, name, getattr(prefixed, name))
    return prefixed


def _check_foreign(cache: Cache) -> None:
    for layer in cache.layers:
        if type(layer) not in (DynamicLayer, GrowingLayer, StaticLayer, KEYLESS_LAYER):
            raise UnsupportedError(
                f"past_key_values was filled elsewhere into a {type(layer).__name__}, which does "
                "not keep every token; start with an empty cache"
            )


def fill(cache: Cache, batch: PrefixBatch, capabilities: Capabilities, num_real: int) -> None:
    """Let the layers of an empty cache start from the prefixes."""
    num_layers = capabilities.num_layers
    # Made from a configuration, a cache may have as many layers as an encoder beside the decoder,
    # or layers that use the keys of others.
    if any(not isinstance(layer, KEYLESS_LAYER) for layer in cache.layers[num_layers:]):
        cache.layers = cache.layers[:num_layers]
    old = cache.layers[:num_layers]
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
        state = batch.layer(index) if batch.num_slots else ()
        if capabilities.layers[index] == LayerKind(None):
            continue
        if capabilities.layers[index].num_recurrences:
            old[index] = state_layer(
                layer, capabilities.layers[index], state, length + batch.num_slots
            )
        else:
            old[index] = attention_layer(layer, state, length + batch.num_slots, cache.offloading)
    cache.layers[:num_layers] = old
    cache.layer_class_to_replicate = None


def _short(identity: str | None) -> str:
    return identity[:12] if identity else "none"
