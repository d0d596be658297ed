"""Packing: rows one behind the other in one sequence, where each token stands and what it sees.

In: a batch's rows behind one prefix of `P` virtual tokens. Out: a `PackedSequence`: positions, the
place before each label, and attention that takes queries, keys and values apart into rows and puts
its output together again. Between two attentions a model computes token by token, so that a packed
sequence is as good as a batch. Three rows a, b, c of 2, 3 and 3 tokens behind P = 2, whose last
token is a label, run as:

    index      0  1    2  3    4  5  6    7  8  9      the prefix runs along only where it is
    token      v0 v1   a0 a1   b0 b1 b2   c0 c1 c2     embeddings; where it is keys and values,
    position   0  1    2  3    2  3  4    2  3  4      the sequence begins with a0
    group      prefix  1 x 2   2 x 3 tokens            rows of one length attend in one call
    places             2          5          8         the tokens before labels

    queries a0 a1           attend to keys  v0 v1 a0 a1              by the mask of a row of 2
    queries b0 b1 b2        attend to keys  v0 v1 b0 b1 b2           by the mask of a row of 3
    queries c0 c1 c2        attend to keys  v0 v1 c0 c1 c2           in the same call

Knows no model: what attends is given.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from foreword.data.batches import Batch
from foreword.model.capabilities import AttentionPattern, Capabilities
from foreword.model.masks import Span, place

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Queries `[B, N, T, D]`, keys and values `[B, K, S, D]` and a mask to `[B, T, N, D]`."""


@dataclass(frozen=True)
class RowGroup:
    """Rows alike: `count` of `length` tokens, the last `num_labels` of each its labels."""

    count: int
    length: int
    num_labels: int


@dataclass(frozen=True, eq=False)
class PackedSequence:
    """The rows of a batch behind one prefix, packed.

    Attributes:
        num_virtual: P.
        num_ahead: virtual tokens at the head: P, or 0 where keys alone tell of them.
        order: the batch's rows, in the order of the sequence.
        groups: the same rows by length.
        input_ids: of real tokens, `[N]`.
        labels: ids of the labels, row after row.
        places: the token before each label.
        positions: `[num_ahead + N]`.
        masks: for each pattern what a row attends to, `[1, 1, T, P + T]`, of the longest row;
            shorter ones take its first lines and columns.
        masks_ahead: the same of the virtual tokens themselves; None where causal is right.
        seen: the patterns of the layers that have attended, if somebody asks.
    """

    num_virtual: int
    num_ahead: int
    order: tuple[int, ...]
    groups: tuple[RowGroup, ...]
    input_ids: Tensor
    labels: Tensor
    places: Tensor
    positions: Tensor
    masks: tuple[Tensor | None, ...]
    masks_ahead: tuple[Tensor | None, ...]
    seen: list[int]

    @property
    def rows(self) -> Tensor:
        """The batch's row of each label."""
        counts = [group.num_labels for group in self.groups for _ in range(group.count)]
        return torch.tensor(self.order, device="cpu").repeat_interleave(
            torch.tensor(counts, device="cpu")
        )

    def attend(
        self, run: Attention, query: Tensor, keys: Tensor, values: Tensor, pattern: int
    ) -> Tensor:
        """Return `[1, tokens, N, D]`: every row attends to the prefix and to itself.

        `query` is of all tokens of the sequence; `keys` and `values` are of P virtual tokens and of
        all rows.
        """
        sizes = [group.count * group.length for group in self.groups]
        # Cut once, not part by part: the way back lays the parts together in one go.
        own_query, *queries = query.split([self.num_ahead, *sizes], dim=2)
        (own_keys, *row_keys), (own_values, *row_values) = (
            tensor.split([self.num_virtual, *sizes], dim=2) for tensor in (keys, values)
        )
        # Copies: parts that are kept for the way back would keep the keys of the whole sequence.
        own_keys, own_values = own_keys.clone(), own_values.clone()
        outputs = []
        if self.num_ahead:
            outputs.append(run(own_query, own_keys, own_values, self.masks_ahead[pattern]))
        mask = self.masks[pattern]
        assert mask is not None, "rows behind a prefix have a mask"
        for index, group in enumerate(self.groups):
            output = run(
                _parted(queries[index], group.count),
                _behind(own_keys, row_keys[index], group.count),
                _behind(own_values, row_values[index], group.count),
                mask[:, :, : group.length, : self.num_virtual + group.length],
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


def pack(
    batch: Batch,
    num_virtual: int,
    is_ahead: bool,
    capabilities: Capabilities,
    dtype: torch.dtype,
    device: torch.device,
) -> PackedSequence:
    """Pack the rows of a padded batch, sorted by length and number of labels.

    Every row must end with its labels, at least one of them, and begin with another token.
    """
    lengths, counts = batch.attention_mask.sum(1).tolist(), batch.label_mask.sum(1).tolist()
    order = tuple(sorted(range(len(lengths)), key=lambda row: (lengths[row], counts[row], row)))
    sizes = [(lengths[row], counts[row]) for row in order]
    groups = tuple(RowGroup(len(list(same)), *size) for size, same in groupby(sizes))
    ahead = num_virtual if is_ahead else 0
    ids = [batch.input_ids[row][batch.attention_mask[row].bool()] for row in order]
    starts = torch.tensor([ahead, *(length for length, _ in sizes)], device="cpu").cumsum(0)
    places = [
        torch.arange(stop - count - 1, stop - 1, device="cpu")
        for stop, (_, count) in zip(starts[1:].tolist(), sizes, strict=True)
    ]
    positions, masks = _placed(num_virtual, max(lengths), capabilities, dtype, device)
    own_positions, own_masks = _placed(0, num_virtual, capabilities, dtype, device)
    parts = [own_positions] if is_ahead else []
    return PackedSequence(
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


def patterns_of(capabilities: Capabilities) -> list[AttentionPattern]:
    """Return a model's patterns, each once: packed sequences number them in this order."""
    return list(dict.fromkeys(capabilities.attention_patterns))


def _placed(
    num_virtual: int,
    num_new: int,
    capabilities: Capabilities,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Return the positions `[T]` of a single row and its mask for each pattern."""
    span = Span((num_virtual,), num_virtual, 0, num_new, num_virtual + num_new)
    positions, masks = place(span, None, capabilities, dtype, device)
    if not isinstance(masks, dict):
        return positions[0], (masks,)
    return positions[0], tuple(masks[pattern.name] for pattern in patterns_of(capabilities))


_current: ContextVar[PackedSequence | None] = ContextVar("packed_sequence", default=None)


@contextmanager
def running(sequence: PackedSequence) -> Iterator[None]:
    """Let the attention of this context's passes be that of a packed sequence."""
    token = _current.set(sequence)
    try:
        yield
    finally:
        _current.reset(token)


def current() -> PackedSequence:
    """Return the packed sequence that this context runs."""
    found = _current.get()
    assert found is not None, "a pass over a packed sequence says which"
    return found
