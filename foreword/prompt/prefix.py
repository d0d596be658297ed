"""Compiled prompts: a prefix is the model's state after `P` virtual tokens, for one row.

In: each layer's state, `[N, P, D]` for keys and values. Out: an immutable `Prefix`; a `PrefixBatch`
that stacks the prefixes of a batch's rows; `CompiledPrefixes`, an LRU cache by content. Does not
know how a state was computed, nor the KV cache that starts from it.
"""

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foreword import notebook
from foreword.errors import FormError
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.prompt.states import (
    DeferredPrompt,
    KeyValues,
    LayerState,
    PrefixStates,
    States,
    attention_part,
)


@dataclass(frozen=True, eq=False)
class Prefix:
    """The state that every row starts from. Computed once, reused for any number of rows and calls.

    Attributes:
        states: each layer's state, keys and values `[N, P, D]` where it attends; or, beside an
            encoder, embeddings that run with each row.
        content_hash: hash of the prompt that it was compiled from.
        facts: what the prompt knows of itself.
    """

    states: PrefixStates
    content_hash: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_virtual_tokens(self) -> int:
        """P."""
        return self.states.num_virtual_tokens

    @property
    def num_bytes(self) -> int:
        """Size of the states in bytes."""
        return self.states.num_bytes

    @property
    def key_values(self) -> KeyValues:
        """Each layer's keys and values `[N, P, D]`, of a model without recurrent layers."""
        return self.cached.key_values

    @property
    def cached(self) -> States:
        """The states of a prefix that has run already, as on every model without an encoder.

        Raises:
            FormError: it runs with each row.
        """
        if isinstance(self.states, DeferredPrompt):
            raise FormError("this prefix runs with each row, beside an encoder: it has no states")
        return self.states

    @property
    def weights(self) -> str | None:
        """What tells the weights that computed it from others, as its facts hold it."""
        known = (self.facts.get("base") or {}).get("fingerprint")
        return None if known is None else json.dumps(known, sort_keys=True)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the prefix as a CARTRIDGE adapter, with which stock PEFT generates right.

        A prefix whose layers differ in shape is written so that only foreword reads it.

        Raises:
            StorageError: no space or no permission; what was there before is kept.
            InputError: as `SoftPrompt.save`; nothing is written.
        """
        if isinstance(self.states, DeferredPrompt):
            SoftPrompt.from_embeddings(self.states.embeddings, facts=self.facts).save(directory)
            return
        SoftPrompt.from_states(self.states, facts=self.facts).write(directory, is_cartridge=True)

    def _repr_html_(self) -> str:
        base = (self.facts.get("base") or {}).get("name") or "not recorded"
        size = f"{self.num_bytes / 1e6:.2f} MB"
        return notebook.table(
            "Prefix", {"base": base, "virtual tokens": self.num_virtual_tokens, "size": size}
        )

    def __repr__(self) -> str:
        return f"Prefix(P={self.num_virtual_tokens}, {self.num_bytes:,} bytes)"


@dataclass(frozen=True, eq=False)
class PrefixBatch:
    """The prefixes of a batch's rows; None where a row has no prompt. Rows may differ in P.

    Attributes:
        prefixes: one for each row.
        unseen: the virtual tokens that a row's real tokens do not attend to, `[B, S]`; None: they
            attend to all. Only for models without recurrent layers and without an encoder.
    """

    prefixes: tuple[Prefix | None, ...]
    unseen: Tensor | None = None

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

    @property
    def weights(self) -> tuple[str | None, ...]:
        """What tells the weights that computed each row's prefix from others, where it is known."""
        known = {id(p): p.weights for p in self.prefixes if p}
        return tuple(known.get(id(p)) for p in self.prefixes)

    def expanded(self, num_rows: int) -> "PrefixBatch":
        """Repeat each row for its beams or returned sequences, up to `num_rows` rows."""
        repeats = num_rows // len(self.prefixes)
        if repeats == 1:
            return self
        unseen = None if self.unseen is None else self.unseen.repeat_interleave(repeats, dim=0)
        return PrefixBatch(tuple(p for p in self.prefixes for _ in range(repeats)), unseen)

    def layer(self, index: int) -> LayerState:
        """Return one layer's state with a row for each of the batch: keys and values
        `[B, N, S, D]`, then windows `[B, C, K]` and recurrent states.

        A view where one prefix is shared by all rows.
        """
        found = [p for p in self.prefixes if p is not None]
        state = found[0].cached.layers[index]
        if all(p is not None and p.states is found[0].states for p in self.prefixes):
            return tuple(t.expand(len(self.prefixes), *t.shape) for t in state)
        num_sided = len(attention_part(state))
        return tuple(
            self._stack(index, part, tensor, has_length=part < num_sided)
            for part, tensor in enumerate(state)
        )

    def _stack(self, index: int, part: int, like: Tensor, *, has_length: bool) -> Tensor:
        """Stack the rows' tensors: keys and values of different P right-aligned, their empty slots
        never attended to; a row without a prompt starts from a state of zeros, as the model does.
        """
        rows = []
        for prefix in self.prefixes:
            found = prefix.cached.layers[index][part] if prefix else like.new_zeros(like.shape)
            if has_length:
                heads, _, size = like.shape
                found = found if prefix else found[:, :0]
                empty = like.new_zeros(heads, self.num_slots - found.shape[1], size)
                found = torch.cat([empty, found], dim=1)
            rows.append(found)
        return torch.stack(rows)


def no_prefixes(num_rows: int) -> PrefixBatch:
    """Return the batch of a bare model."""
    return PrefixBatch((None,) * num_rows)


def same_prefix(prefix: Prefix, num_rows: int) -> PrefixBatch:
    """Return a batch whose rows all start from one prefix."""
    return PrefixBatch((prefix,) * num_rows)


class CompiledPrefixes:
    """Up to `limit` prefixes by what they were computed from; the least recently used goes first.

    Threads may ask at once; two that ask for the same new key may both compute it. A copy, also in
    another process, begins with none.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._known: OrderedDict[Hashable, Prefix] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> int:
        return self.limit

    def __setstate__(self, limit: int) -> None:
        CompiledPrefixes.__init__(self, limit)

    def get(self, key: Hashable, compute: Callable[[], Prefix]) -> Prefix:
        """Return the prefix under a key; compute it where it is missing."""
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        prefix = compute()
        with self._lock:
            self._known[key] = prefix
            while len(self._known) > self.limit:
                self._known.popitem(last=False)
        return prefix
