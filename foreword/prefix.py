"""A compiled prompt: the model's own state after reading `P` virtual tokens, at batch size one.

In: each layer's keys and values `[N, P, D]`. Out: an immutable `Prefix`, and a `PrefixBatch` that
lays the prefixes of a batch's rows side by side. Knows nothing of how the state was computed or of
the cache that it will start.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foreword.prompt import KeyValues, SoftPrompt


@dataclass(frozen=True, eq=False)
class Prefix:
    """The state that every row starts from. Computed once, reused for any number of rows and calls.

    Attributes:
        key_values: for each layer the cached keys and values, `[N, P, D]` each.
        content_hash: hash of the prompt that it was compiled from.
        facts: what the prompt knows of itself.
    """

    key_values: KeyValues
    content_hash: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_virtual_tokens(self) -> int:
        """P."""
        return self.key_values[0][0].shape[1]

    @property
    def num_bytes(self) -> int:
        """Size of the keys and values in bytes."""
        return sum(t.numel() * t.element_size() for pair in self.key_values for t in pair)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the prefix as a CARTRIDGE adapter, with which stock PEFT generates right.

        A prefix whose layers differ in shape is written so that only foreword reads it.

        Raises:
            StorageError: no space or no permission; what was there before is kept.
        """
        prompt = SoftPrompt.from_key_values(self.key_values, facts=self.facts)
        prompt._save(directory, "CARTRIDGE", {"num_frozen_tokens": 0})

    def __repr__(self) -> str:
        return f"Prefix(P={self.num_virtual_tokens}, {self.num_bytes:,} bytes)"


@dataclass(frozen=True, eq=False)
class PrefixBatch:
    """The prefixes of a batch's rows; None where a row has no prompt. Rows may differ in P."""

    prefixes: tuple[Prefix | None, ...]

    @property
    def num_virtual(self) -> tuple[int, ...]:
        """Virtual tokens of each row."""
        return tuple(p.num_virtual_tokens if p else 0 for p in self.prefixes)

    @property
    def num_slots(self) -> int:
        """S: the slots that each row keeps for virtual tokens."""
        return max(self.num_virtual)

    @property
    def identity(self) -> tuple[str | None, ...]:
        """The content hash of each row's prompt: what a cache was started from."""
        return tuple(p.content_hash if p else None for p in self.prefixes)

    def expanded(self, num_rows: int) -> "PrefixBatch":
        """Repeat each row for its beams or returned sequences, up to `num_rows` rows."""
        repeats = num_rows // len(self.prefixes)
        if repeats == 1:
            return self
        return PrefixBatch(tuple(p for p in self.prefixes for _ in range(repeats)))

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Return one layer's keys and values `[B, N, S, D]`: a view where a prefix is shared."""
        found = [p for p in self.prefixes if p is not None]
        keys, values = found[0].key_values[index]
        if all(p is found[0] for p in self.prefixes):
            rows = len(self.prefixes)
            return keys.expand(rows, *keys.shape), values.expand(rows, *values.shape)
        return self._stack(index, 0, keys), self._stack(index, 1, values)

    def _stack(self, index: int, side: int, like: Tensor) -> Tensor:
        """Right-align rows of different P; their empty slots are never attended to."""
        heads, _, size = like.shape
        rows = []
        for prefix in self.prefixes:
            part = prefix.key_values[index][side] if prefix else like.new_zeros(heads, 0, size)
            empty = like.new_zeros(heads, self.num_slots - part.shape[1], size)
            rows.append(torch.cat([empty, part], dim=1))
        return torch.stack(rows)


def no_prefixes(num_rows: int) -> PrefixBatch:
    """Return the batch of a bare model."""
    return PrefixBatch((None,) * num_rows)


def same_prefix(prefix: Prefix, num_rows: int) -> PrefixBatch:
    """Return a batch whose rows all start from one prefix."""
    return PrefixBatch((prefix,) * num_rows)
