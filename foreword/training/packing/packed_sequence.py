"""Where every token of a line stands and what it attends to: rows one behind the other, no padding.

In: the lengths of a batch's rows, all behind one prefix of `P` virtual tokens, which may stand at
the head of the line. Out: a `Line`: positions, the places of what precedes labels, and attention
that takes queries, keys and values `[1, N, tokens, D]` apart into rows and lays its output together
again. Between two attentions a model computes token by token, so that a line is as good as a batch.
Knows no model: what attends is given.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from foreword.data.batches import Batch
from foreword.model.capabilities import Capabilities, Reach
from foreword.model.masks import Span, place

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Queries `[B, N, T, D]`, keys and values `[B, K, S, D]` and a mask to `[B, T, N, D]`."""


@dataclass(frozen=True)
class Group:
    """Rows alike: `count` of `length` tokens, the last `num_labels` of each its labels."""

    count: int
    length: int
    num_labels: int

    def queries(self, is_narrow: bool) -> tuple[int, int]:
        """Return which tokens of a row attend, from the first to one behind the last."""
        return (
            (self.length - self.num_labels - 1, self.length - 1) if is_narrow else (0, self.length)
        )


@dataclass(frozen=True, eq=False)
class Line:
    """The rows of a batch behind one prefix, one behind the other.

    Attributes:
        num_virtual: P.
        num_ahead: virtual tokens at the head of the line: P, or 0 where keys alone tell of them.
        order: the batch's rows, in the order of the line.
        groups: the same rows by length.
        input_ids: of real tokens, `[N]`.
        labels: ids of the labels, row after row.
        places: the token of the line before each label.
        positions: `[num_ahead + N]`.
        masks: for each reach what a row's token attends to, `[1, 1, T, P + T]`, of the longest row;
            shorter ones take its first lines and columns.
        masks_ahead: the same of the virtual tokens themselves; None where causal is right.
        seen: the reaches of the layers that have attended, if somebody asks.
    """

    num_virtual: int
    num_ahead: int
    order: tuple[int, ...]
    groups: tuple[Group, ...]
    input_ids: Tensor
    labels: Tensor
    places: Tensor
    positions: Tensor
    masks: tuple[Tensor | None, ...]
    masks_ahead: tuple[Tensor | None, ...]
    seen: list[int]

    @property
    def num_tokens(self) -> int:
        """All tokens of the line."""
        return len(self.positions)

    @property
    def rows(self) -> Tensor:
        """The batch's row of each label."""
        counts = [group.num_labels for group in self.groups for _ in range(group.count)]
        return torch.tensor(self.order).repeat_interleave(torch.tensor(counts))

    def has_tokens(self, value: Any) -> bool:
        """Return whether a value holds a tensor of all tokens, `[B, tokens, ...]`."""
        parts = value if isinstance(value, list | tuple) else [value]
        return any(self._is_of_tokens(part) for part in parts)

    def before_labels(self, value: Any) -> Any:
        """Take what is before labels from every tensor `[B, tokens, ...]` in a value."""
        if isinstance(value, list | tuple):
            return type(value)(self.before_labels(part) for part in value)
        return value[:, self.places] if self._is_of_tokens(value) else value

    def _is_of_tokens(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == self.num_tokens

    def attend(
        self, run: Attention, query: Tensor, keys: Tensor, values: Tensor, reach: int, narrow: bool
    ) -> Tensor:
        """Return `[1, tokens, N, D]`: every row attends to the prefix and to itself.

        `query` is of the line, or, `narrow`, of the tokens before labels alone; `keys` and `values`
        are of P virtual tokens and of all rows.
        """
        virtual, ahead = self.num_virtual, 0 if narrow else self.num_ahead
        spans = [group.queries(narrow) for group in self.groups]
        counts = [group.count for group in self.groups]
        sizes = [count * (last - first) for count, (first, last) in zip(counts, spans, strict=True)]
        key_sizes = [virtual, *(group.count * group.length for group in self.groups)]
        # Cut once, not part by part: the way back lays the parts together in one go.
        own_query, *queries = query.split([ahead, *sizes], dim=2)
        (own_keys, *row_keys), (own_values, *row_values) = (
            tensor.split(key_sizes, dim=2) for tensor in (keys, values)
        )
        # Copies: parts that are kept for the way back would keep the keys of the whole line.
        own_keys, own_values = own_keys.clone(), own_values.clone()
        outputs = []
        if ahead:
            outputs.append(run(own_query, own_keys, own_values, self.masks_ahead[reach]))
        mask = self.masks[reach]
        assert mask is not None, "rows behind a prefix have a mask"
        for index, group in enumerate(self.groups):
            first, last = spans[index]
            output = run(
                _parted(queries[index], group.count),
                _behind(own_keys, row_keys[index], group.count),
                _behind(own_values, row_values[index], group.count),
                mask[:, :, first:last, : virtual + group.length],
            )
            outputs.append(output.flatten(0, 1)[None])
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def _parted(tokens: Tensor, count: int) -> Tensor:
    """Turn `[1, N, count * T, D]` into `[count, N, T, D]`, without a copy."""
    heads, num_tokens, size = tokens.shape[1:]
    return tokens.view(heads, count, num_tokens // count, size).transpose(0, 1)


def _behind(virtual: Tensor, rows: Tensor, count: int) -> Tensor:
    """Return the keys or values of the prefix followed by those of each of `count` rows."""
    return torch.cat([virtual.expand(count, -1, -1, -1), _parted(rows, count)], dim=2)


def lay(
    batch: Batch,
    num_virtual: int,
    is_ahead: bool,
    capabilities: Capabilities,
    dtype: torch.dtype,
    device: torch.device,
) -> Line:
    """Lay the rows of a padded batch in a line, sorted by length and number of labels.

    Every row must end with its labels, at least one of them, and begin with another token.
    """
    lengths, counts = batch.attention_mask.sum(1).tolist(), batch.label_mask.sum(1).tolist()
    order = tuple(sorted(range(len(lengths)), key=lambda row: (lengths[row], counts[row], row)))
    sizes = [(lengths[row], counts[row]) for row in order]
    groups = tuple(Group(len(list(same)), *size) for size, same in groupby(sizes))
    ahead = num_virtual if is_ahead else 0
    ids = [batch.input_ids[row][batch.attention_mask[row].bool()] for row in order]
    starts = torch.tensor([ahead, *(length for length, _ in sizes)]).cumsum(0)
    places = [
        torch.arange(stop - count - 1, stop - 1)
        for stop, (_, count) in zip(starts[1:].tolist(), sizes, strict=True)
    ]
    positions, masks = _placed(num_virtual, max(lengths), capabilities, dtype, device)
    own_positions, own_masks = _placed(0, num_virtual, capabilities, dtype, device)
    parts = [own_positions] if is_ahead else []
    return Line(
        num_virtual=num_virtual,
        num_ahead=ahead,
        order=order,
        groups=groups,
        input_ids=torch.cat(ids).to(device),
        labels=torch.cat([row[-n:] for row, (_, n) in zip(ids, sizes, strict=True)]).to(device),
        places=torch.cat(places).to(device),
        positions=torch.cat(parts + [positions[:length] for length, _ in sizes]),
        masks=masks,
        masks_ahead=own_masks if is_ahead else (),
        seen=[],
    )


def reaches_of(capabilities: Capabilities) -> list[Reach]:
    """Return the reaches of a model's layers, each once: a line numbers them in this order."""
    return list(dict.fromkeys(capabilities.reaches))


def _placed(
    num_virtual: int,
    num_new: int,
    capabilities: Capabilities,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Return the positions `[T]` of a single row and its mask for each reach."""
    span = Span((num_virtual,), num_virtual, 0, num_new, num_virtual + num_new)
    positions, masks = place(span, None, capabilities, dtype, device)
    if not isinstance(masks, dict):
        return positions[0], (masks,)
    return positions[0], tuple(masks[reach.name] for reach in reaches_of(capabilities))


_current: ContextVar[tuple[Line, bool] | None] = ContextVar("line", default=None)


@contextmanager
def in_line(line: Line, *, is_narrow: bool = False) -> Iterator[None]:
    """Let the attention of this context's passes be that of a line."""
    token = _current.set((line, is_narrow))
    try:
        yield
    finally:
        _current.reset(token)


def current() -> tuple[Line, bool]:
    """Return the line that this context passes, and whether only tokens before labels attend."""
    found = _current.get()
    assert found is not None, "a pass in a line says which"
    return found
