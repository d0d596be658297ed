"""Placeholder tokens: a row of real ids with room for the virtual tokens before it.

In: ids, and a prompt's embeddings or only their number. Out: ids with placeholders, embeddings with
rows of zeros for the real tokens, and which is which. Knows torch, and nothing of vLLM.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Mixed:
    """One row of virtual tokens and real ones.

    Attributes:
        ids: `[P + T]`, placeholders first.
        is_real: `[P + T]`, False at placeholders.
        embeddings: `[P + T, H]`, zeros at real tokens, which the engine looks up itself.
    """

    ids: list[int]
    is_real: list[bool]
    embeddings: Tensor


def placeholder(ids: Sequence[int], repetition_penalty: float | None) -> int:
    """Return the id that stands in the place of virtual tokens.

    A repetition penalty counts every id before the answer. Under one it is the row's own first id,
    so that no further id is penalized; otherwise it is always the same, so that rows with different
    beginnings share the cached blocks of virtual tokens.
    """
    return 0 if repetition_penalty in (None, 1.0) else ids[0]


def with_placeholders(ids: Sequence[int], num_virtual: int, stand_in: int) -> list[int]:
    """Return a row's ids behind `num_virtual` placeholders."""
    return [stand_in] * num_virtual + list(ids)


def mixed(ids: Sequence[int], embeddings: Tensor, stand_in: int) -> Mixed:
    """Return a row behind a prompt's embeddings `[P, H]`, in their dtype."""
    num_virtual, size = embeddings.shape
    whole = torch.zeros(num_virtual + len(ids), size, dtype=embeddings.dtype)
    whole[:num_virtual] = embeddings
    is_real = [False] * num_virtual + [True] * len(ids)
    return Mixed(with_placeholders(ids, num_virtual, stand_in), is_real, whole)
