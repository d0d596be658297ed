"""KV cache layers: transformers' own layer classes, starting from a prefix.

In: a layer's state with a row for each of the batch, and the kind of layer that the caller asked
for. Out: a layer of that kind whose first slots hold the virtual tokens. Every layer keeps its full
length, also where attention is sliding: the masks, computed by position, do the sliding. Recurrent
states are replaced, never written into. Knows no cache as a whole and no prompt.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from foreword.compat.transformers_api import (
    KEYLESS_LAYER,
    CacheLayerMixin,
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndStaticFullAttentionLayer,
    LinearAttentionLayer,
    StaticLayer,
)
from foreword.errors import UnsupportedError
from foreword.model.capabilities import LayerKind
from foreword.prompt.states import LayerState

ROOM = 64  # tokens that a growing layer reserves ahead
LASTING = functools.partial(torch.inference_mode, False)
"""Around the making of what later calls write into, which torch refuses of its inference mode."""


class GrowingLayer(DynamicLayer):
    """A dynamic layer that writes new tokens into reserved room, where transformers copies the
    whole cache.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
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

    def reset(self) -> None:
        """Forget all tokens; never write into them, which may be a prefix's own."""
        self._room = self._views = None
        self.is_initialized = False  # so that a release that fills tensors with zeros does not
        super().reset()
        self.keys = self.values = None  # type: ignore[assignment]

    def _has_room(self, length: int) -> bool:
        # Cropping and reordering replace the views; the room behind them is stale then.
        is_current = self._views is not None and self.keys is self._views[0]
        return is_current and self._room is not None and length <= self._room[0].shape[2]

    def _reserve(self, key_states: Tensor, value_states: Tensor, length: int) -> None:
        rooms = []
        for old, new in ((self.keys, key_states), (self.values, value_states)):
            rows, heads, _, size = new.shape
            with LASTING():
                room = new.new_empty(rows, heads, length + max(ROOM, length // 2), size)
            room[:, :, : old.shape[2]] = old
            rooms.append(room)
        self._room = (rooms[0], rooms[1])


class SharedLayer(DynamicLayer):
    """A layer that appends nothing to its prefix: every update returns the prefix and the new
    tokens, with gradient.
    """

    def __init__(self, keys: Tensor, values: Tensor, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the prefix followed by `[B, N, T, D]`."""
        self.newest = (key_states, value_states)
        keys = torch.cat([self.keys.to(key_states.device), key_states], dim=2)
        return keys, torch.cat([self.values.to(value_states.device), value_states], dim=2)


class SinglePassLayer(DynamicLayer):
    """A layer for one pass without a prefix: it returns what it is given, and keeps it the first
    time only. Gradient checkpointing, which runs the model's layer again, finds it unchanged.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._is_filled = False

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return `[B, N, T, D]` as they are."""
        if not self._is_filled:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.keys, self.values = key_states, value_states
            self.is_initialized = self._is_filled = True
        return key_states, value_states


class PassingLayer(DynamicLayer):
    """A layer for one pass that keeps nothing: every update returns the prefix, if there is one,
    and what it is given.
    """

    def __init__(self, virtual: LayerState, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if virtual:
            self.keys, self.values = virtual
            self.dtype, self.device = self.keys.dtype, self.keys.device
            self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the prefix, if there is one, followed by `[B, N, T, D]`."""
        if not self.is_initialized:
            return key_states, value_states
        keys = torch.cat([self.keys.to(key_states.device), key_states], dim=2)
        return keys, torch.cat([self.values.to(value_states.device), value_states], dim=2)


class RecurrentStates:
    """What recurrent layers keep, on top of transformers' own layer of such states.

    transformers copies a new state into the old one's memory. Here the new tensor replaces the old
    one: autograd may still need that, and rows that share a prefix share its memory. In a layer for
    one pass the new state is laid aside: gradient checkpointing, which runs the model's layer
    again, finds the old one.
    """

    is_single_pass = False
    conv_states: dict[int, Any]
    recurrent_states: dict[int, Any]
    conv_kernel_size: dict[int, Any]
    has_previous_state: dict[int, bool]
    is_conv_states_initialized: dict[int, bool]
    is_recurrent_states_initialized: dict[int, bool]

    def begin(self, states: LayerState) -> None:
        """Begin with each recurrence's window `[B, C, K]` and its state, if it has one."""
        index = -1
        for tensor in states:
            index += tensor.ndim == 3
            # A copy: the step of a single token writes into the state that it is given.
            if tensor.ndim == 3:
                self._keep_window(index, tensor.clone(), tensor.shape[-1])
            else:
                self.update_recurrent_state(tensor.clone(), index)

    def states(self) -> LayerState:
        """Return what `begin` takes."""
        found, aside = [], self.__dict__.get("_aside", {})
        for index, window in self.conv_states.items():
            found.append(aside.get(("window", index), window))
            found.append(aside.get(("state", index), self.recurrent_states[index]))
        return tuple(tensor for tensor in found if tensor is not None)

    def _lay_aside(self, name: str, index: int, value: Tensor) -> None:
        self.__dict__.setdefault("_aside", {}).setdefault((name, index), value)

    def update_conv_state(
        self,
        conv_states: Tensor,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return the old window followed by `[B, C, T]`, and keep the last K of both."""
        size = conv_kernel_size or self.conv_kernel_size[state_idx] or conv_states.shape[-1]
        if self.has_previous_state[state_idx]:
            conv_states = torch.cat([self.conv_states[state_idx], conv_states], dim=-1)
        missing = max(size - conv_states.shape[-1], 0)
        conv_states = torch.nn.functional.pad(conv_states, (missing, 0))
        window = conv_states[..., -size:].clone()
        if self.is_single_pass:
            self._lay_aside("window", state_idx, window)
        else:
            self._keep_window(state_idx, window, size)
        return conv_states

    def update_recurrent_state(
        self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: Any
    ) -> Tensor:
        """Keep a new state in the old one's place, or beside it."""
        if self.is_single_pass:
            self._lay_aside("state", state_idx, recurrent_states)
            return recurrent_states
        self.recurrent_states[state_idx] = recurrent_states
        self.is_recurrent_states_initialized[state_idx] = True
        return recurrent_states

    def _keep_window(self, index: int, window: Tensor, size: int) -> None:
        self.dtype, self.device = window.dtype, window.device
        self.conv_states[index], self.conv_kernel_size[index] = window, size
        self.has_previous_state[index] = self.is_conv_states_initialized[index] = True


class StateLayer(RecurrentStates, LinearAttentionLayer):
    """A layer of recurrent states alone."""


class GrowingStateLayer(RecurrentStates, GrowingLayer, LinearAttentionAndFullAttentionLayer):
    """Recurrent states beside keys and values that grow."""


class SinglePassStateLayer(RecurrentStates, SinglePassLayer, LinearAttentionAndFullAttentionLayer):
    """Recurrent states beside keys and values of a pass without a prefix."""


class SharedStateLayer(RecurrentStates, SharedLayer, LinearAttentionAndFullAttentionLayer):
    """Recurrent states beside keys and values of which nothing new is stored."""


class StaticStateLayer(RecurrentStates, LinearAttentionAndStaticFullAttentionLayer):
    """Recurrent states beside keys and values of a fixed length."""


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


def one_pass_layer(kind: LayerKind, state: LayerState) -> Any:
    """Return a layer for one pass behind a batched state, or behind none."""
    virtual, states = _parts(kind, state)
    count = kind.num_recurrences
    layer: Any
    if kind.pattern is None:
        layer = StateLayer(number_of_states=count) if count else stateless_layer()
    elif virtual:
        layer = (
            SharedStateLayer(*virtual, number_of_states=count) if count else SharedLayer(*virtual)
        )
    else:
        layer = SinglePassStateLayer(number_of_states=count) if count else SinglePassLayer()
    if count:
        layer.begin(states)
        layer.is_single_pass = True
    return layer


def stateless_layer() -> Any:
    """Return a layer that keeps nothing, and is known to hold nothing."""
    layer = KEYLESS_LAYER() if KEYLESS_LAYER else DynamicLayer()
    layer.is_initialized = False
    return layer


def state_of(layer: Any) -> LayerState:
    """Return a layer's state with its rows: what `one_pass_layer` takes."""
    has_keys = isinstance(layer, CacheLayerMixin) and layer.keys is not None
    sides = (layer.keys, layer.values) if has_keys else ()
    return sides + layer.states() if isinstance(layer, RecurrentStates) else sides


def whole_state_of(layer: Any) -> LayerState:
    """Return the same of a layer for one pass, the prefix that it shares included."""
    if not isinstance(layer, SharedLayer):
        return state_of(layer)
    sides = zip((layer.keys, layer.values), layer.newest, strict=True)
    whole = tuple(torch.cat([old.to(new.device), new], dim=2) for old, new in sides)
    return whole + (layer.states() if isinstance(layer, RecurrentStates) else ())


def _parts(kind: LayerKind, state: LayerState) -> tuple[LayerState, LayerState]:
    """Split a batched state into keys and values, and recurrent states."""
    count = 2 if kind.pattern is not None else 0
    return state[:count], state[count:]


def state_layer(old: Any, kind: LayerKind, state: LayerState, length: int) -> Any:
    """Return a layer of the same kind that starts with a recurrent state, or with none."""
    virtual, states = _parts(kind, state)
    layer: Any
    if kind.pattern is None:
        layer = StateLayer(number_of_states=kind.num_recurrences)
    elif isinstance(old, StaticLayer):
        layer = StaticStateLayer(length, number_of_states=kind.num_recurrences)
        if virtual:
            layer.update(*virtual)
    elif isinstance(old, DynamicLayer) and not hasattr(old, "_quantize"):
        layer = GrowingStateLayer(number_of_states=kind.num_recurrences)
        if virtual:
            layer.start(*virtual)
    else:
        raise UnsupportedError(
            f"a cache of {type(old).__name__} cannot hold recurrent states; use the dynamic or "
            "static cache"
        )
    layer.begin(states)
    return layer


def attention_layer(
    old: Any, virtual: LayerState, length: int, is_offloaded: bool
) -> CacheLayerMixin:
    """Return an empty layer of the same kind that starts with the virtual tokens, if any."""
    if hasattr(old, "_quantize"):
        return ExactPrefixLayer(virtual[0], virtual[1], old) if virtual else old
    if isinstance(old, StaticLayer):
        static = StaticLayer(length)
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
