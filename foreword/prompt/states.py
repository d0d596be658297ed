"""Cache states: what each layer of a model keeps of the tokens before, as tensors of one row.

In: tensors. Out: `States`, the value that prompts, prefixes, caches and training pass around. A
layer that attends keeps keys and values `[N, P, D]`; a recurrent layer keeps a window of its
convolution `[C, K]` and, where it has one, a recurrent state of three dimensions; some layers keep
both, and some nothing. Knows no model and no cache.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foreword.errors import FormError
from foreword.prompt.layout import attention_part as attention_part
from foreword.prompt.layout import grouped

LayerState = tuple[Tensor, ...]
"""Keys and values where the layer attends, then window and state of each recurrence."""

KeyValues = tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True, eq=False)
class States:
    """Every layer's state after `num_virtual_tokens` tokens."""

    layers: tuple[LayerState, ...]
    num_virtual_tokens: int

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, layer after layer."""
        return [tensor for layer in self.layers for tensor in layer]

    @property
    def num_bytes(self) -> int:
        """Size in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def is_recurrent(self) -> bool:
        """Whether any layer keeps more than keys and values."""
        return any(recurrent_part(layer) for layer in self.layers)

    @property
    def key_values(self) -> KeyValues:
        """Each layer's keys and values `[N, P, D]`.

        Raises:
            FormError: a layer is recurrent, or keeps nothing.
        """
        if self.is_recurrent or not all(self.layers):
            raise FormError("these states are not keys and values alone; use .states")
        return tuple((layer[0], layer[1]) for layer in self.layers)

    def map(self, change: Callable[[Tensor], Tensor]) -> "States":
        """Return states whose every tensor is changed."""
        layers = tuple(tuple(change(tensor) for tensor in layer) for layer in self.layers)
        return replace(self, layers=layers)

    def __iter__(self) -> Iterator[LayerState]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)


@dataclass(frozen=True, eq=False)
class DeferredPrompt:
    """Virtual tokens `[P, H]` that run with each row, because their state depends on the row:
    before an encoder, which attends in both directions, or before a decoder that attends to its
    output. Also where they run in one pass with the rows of a training step.
    """

    embeddings: Tensor

    @property
    def num_virtual_tokens(self) -> int:
        """P."""
        return len(self.embeddings)

    @property
    def tensors(self) -> list[Tensor]:
        """The embeddings alone."""
        return [self.embeddings]

    @property
    def num_bytes(self) -> int:
        """Size in bytes."""
        return self.embeddings.nbytes

    def map(self, change: Callable[[Tensor], Tensor]) -> "DeferredPrompt":
        """Return other embeddings."""
        return DeferredPrompt(change(self.embeddings))


PrefixStates = States | DeferredPrompt
"""What rows start from."""


def recurrent_part(layer: LayerState) -> LayerState:
    """Return a layer's windows `[C, K]`, each followed by its recurrent state if it has one."""
    return layer[len(attention_part(layer)) :]


def row_major(tensor: Tensor) -> Tensor:
    """Return a copy without gradient, in memory of its own and in row-major order, as a file gives
    it back: the last bits of a sum depend on the order in which it reads memory.
    """
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def regroup(
    tensors: Sequence[Tensor], counts: Iterable[int], num_virtual_tokens: int | None = None
) -> States:
    """Lay a flat list of tensors out as layers of `counts` tensors each.

    Raises:
        InputError: a layer that is no known state, layers that differ in P, or no P at all.
    """
    return States(*grouped(tensors, counts, num_virtual_tokens))
