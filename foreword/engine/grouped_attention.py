"""Grouped attention: rows of one pass attend in groups of like length, none over another's slots.

In: a decoder, the tokens that each row of a pass holds. Out: a view of the decoder whose attention
takes a pass apart by rows, so that short rows do not pay for a long one beside them. All else of
the pass, which reads the weights, stays one. Left out are slots alone that a row's mask hides.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from foreword.compat.transformers_api import ALL_ATTENTION_FUNCTIONS
from foreword.model.attention_view import own_attention, with_attention

NAME = "foreword_grouped"  # of the attention that takes the rows of a pass apart
MAX_PADDING = 512  # slots of a group that no row of it holds: about what one more call costs

Groups = Sequence[tuple[slice, int]]
"""Rows that follow each other, and the most tokens that one of them holds."""

_groups: ContextVar[Groups] = ContextVar("attention_groups", default=())


def groups_of(lengths: Sequence[int]) -> Groups:
    """Return rows in groups of so like length that little padding is read; `lengths` are tokens."""
    groups: list[tuple[slice, int]] = []
    start, total, longest = 0, 0, 0
    for index, length in enumerate(lengths):
        most = max(longest, length)
        if most * (index + 1 - start) - (total + length) > MAX_PADDING:
            groups.append((slice(start, index), longest))
            start, total, most = index, 0, length
        total, longest = total + length, most
    return [*groups, (slice(start, len(lengths)), longest)]


def grouped(decoder: Any) -> Any:
    """Return a view of a decoder whose attention goes by the groups of its pass."""
    return with_attention(decoder, NAME)


@contextmanager
def attending(groups: Groups) -> Iterator[None]:
    """Let the attention of this context's passes go by these groups."""
    token = _groups.set(groups)
    try:
        yield
    finally:
        _groups.reset(token)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **kwargs: Any
) -> tuple[Tensor, None]:
    """Let each group of rows attend with the family's own attention, over its own slots."""
    own = own_attention(module)
    parts = [
        own(
            module,
            query[rows],
            key[rows, :, :width],
            value[rows, :, :width],
            attention_mask[rows, ..., :width],
            **kwargs,
        )[0]
        for rows, width in _groups.get()
    ]
    return torch.cat(parts), None


ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
