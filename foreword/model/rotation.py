"""Rotary re-rotation: keys of a KV cache as they would be at other positions.

In: a decoder, keys `[N, P, D]` with where they stand and where they go. Out: the keys there. A key
at position p is a rotation of the key of the same hidden state at position 0 (RoPE, Su et al. 2021,
arXiv:2104.09864), so that moving it is one more rotation. Which frequencies a layer has, how it
pairs its dimensions and which it leaves alone is not told by a family's name: it is tried on the
model with one token at several positions, layer by layer, and what fits none is refused.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foreword.compat.error_lines import typed_line
from foreword.compat.transformers_api import DynamicCache
from foreword.errors import UnsupportedError
from foreword.model.decoder import Decoder
from foreword.prompt.states import States

PROBED = (1, 5, 37)  # positions at which a token is tried beside position 0
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}  # of a key's norm; else 2e-2


@dataclass(frozen=True, eq=False)
class Rotation:
    """How one layer rotates its keys.

    Attributes:
        frequencies: of each pair of dimensions, radians a position, `[R / 2]`; empty where keys do
            not rotate.
        start: the first dimension that rotates.
        is_interleaved: whether neighbours are a pair, not the two halves.
    """

    frequencies: Tensor
    start: int = 0
    is_interleaved: bool = False

    def moved(self, keys: Tensor, distances: Tensor) -> Tensor:
        """Return keys `[N, P, D]` (or queries), each moved by a number of positions `[P]`."""
        count = 2 * len(self.frequencies)
        if not count:
            return keys
        angles = distances.to(keys.device).double()[:, None] * self.frequencies.double()
        cos, sin = angles.cos(), angles.sin()
        part = keys[..., self.start : self.start + count].double()
        if self.is_interleaved:
            one, two = part[..., 0::2], part[..., 1::2]
        else:
            one, two = part.chunk(2, dim=-1)
        pair = one * cos - two * sin, two * cos + one * sin
        turned = torch.stack(pair, -1).flatten(-2) if self.is_interleaved else torch.cat(pair, -1)
        moved = keys.clone()
        moved[..., self.start : self.start + count] = turned.to(keys.dtype)
        return moved


def rotations_of(decoder: Decoder) -> list[Rotation]:
    """Return how each layer of a decoder rotates its keys, proved on the model.

    Raises:
        UnsupportedError: a layer that keeps no keys, whose keys are no rotation of those at
            position 0, or whose rotation changes with the length of the text.
    """
    capabilities = decoder.capabilities
    name = capabilities.model_type
    if capabilities.rope_switch is not None:
        raise UnsupportedError(
            f"{name}: the rotation of its keys changes with the length of the text, so that none "
            "can be moved"
        )
    with torch.no_grad():
        probed = [_state_at(decoder, position) for position in (0, *PROBED)]
    candidates = list(_frequencies(decoder.module))
    return [
        _found(name, index, [layers[index] for layers in probed], candidates)
        for index in range(capabilities.num_layers)
    ]


def moved(states: States, rotations: Sequence[Rotation], distances: Tensor) -> States:
    """Return states whose keys are each moved by a number of positions, `[P]`; values stay."""
    layers = tuple(
        (rotation.moved(layer[0], distances), *layer[1:])
        for layer, rotation in zip(states.layers, rotations, strict=True)
    )
    return States(layers, states.num_virtual_tokens)


def joined(first: States, second: States, rotations: Sequence[Rotation]) -> States:
    """Return the keys and values of two prompts side by side, the keys of the second moved behind
    the first; with gradient to both.
    """
    length = first.num_virtual_tokens
    behind = moved(
        second, rotations, torch.full((second.num_virtual_tokens,), length, device="cpu")
    )
    layers = tuple(
        tuple(torch.cat(pair, dim=1) for pair in zip(one, other, strict=True))
        for one, other in zip(first.layers, behind.layers, strict=True)
    )
    return States(layers, length + second.num_virtual_tokens)


def _state_at(decoder: Decoder, position: int) -> list[tuple[Tensor, Tensor]]:
    """Return each layer's key and value of one token that stands alone at a position, `[N, 1, D]`.

    Raises:
        UnsupportedError: a layer keeps something else.
    """
    name = decoder.capabilities.model_type
    cache = DynamicCache()
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 1, decoder.capabilities.hidden_size, generator=generator, device="cpu")
    hidden = hidden.to(decoder.model.device, decoder.model.dtype)
    try:
        decoder.module(
            inputs_embeds=hidden,
            position_ids=torch.full((1, 1), position, device=hidden.device),
            use_cache=True,
            **{decoder.capabilities.cache_argument: cache},
        )
    except Exception as error:  # a family's code may do anything with what it does not expect
        raise UnsupportedError(
            f"{name}: a token cannot be tried at position {position}: {typed_line(error)}"
        ) from None
    found = list[tuple[Tensor, Tensor]]()
    for index in range(decoder.capabilities.num_layers):
        layer = cache.layers[index] if index < len(cache.layers) else None
        key, value = getattr(layer, "keys", None), getattr(layer, "values", None)
        if key is None or value is None or key.ndim != 4:
            raise UnsupportedError(f"{name}: layer {index} keeps no keys that could be moved")
        found.append((key[0], value[0]))
    return found


def _frequencies(module: torch.nn.Module) -> Iterator[Tensor]:
    """Yield the different frequencies that a model's modules hold, and none at all."""
    yield torch.empty(0, device="cpu")
    seen: list[Tensor] = []
    for name, buffer in module.named_buffers():
        if not name.endswith("inv_freq") or "original" in name or buffer.ndim != 1:
            continue
        if not any(torch.equal(buffer, one) for one in seen):
            seen.append(buffer)
            yield buffer


def _found(
    name: str, index: int, probed: list[tuple[Tensor, Tensor]], candidates: Sequence[Tensor]
) -> Rotation:
    """Return the rotation that leads from a layer's key at position 0 to those at the others."""
    keys, values = zip(*probed, strict=True)
    for frequencies in candidates if all(_is_near(values[0], one) for one in values) else ():
        rest = keys[0].shape[-1] - 2 * len(frequencies)
        for first in sorted({0, rest}) if rest >= 0 else ():
            for is_interleaved in (False, True):
                one = Rotation(frequencies.to(keys[0].device), first, is_interleaved)
                there = [
                    one.moved(keys[0], torch.tensor([place], device="cpu")) for place in PROBED
                ]
                if all(_is_near(a, b) for a, b in zip(there, keys[1:], strict=True)):
                    return one
    raise UnsupportedError(
        f"{name}: the keys of layer {index} at one position are no rotation of those at another, "
        "so that none can be moved"
    )


def _is_near(one: Tensor, other: Tensor) -> bool:
    limit = TOLERANCE.get(one.dtype, 2e-2)
    return bool((one - other).norm() <= limit * one.norm())
