"""Batching: rows of token ids as padded tensors, and the shuffled order of an epoch.

In: rows. Out: `Batch`, `[B, T]` with masks. Knows no model and no device.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from foreword.data.encoding import Row
from foreword.data.target import Target
from foreword.errors import DataError


@dataclass(frozen=True, eq=False)
class Batch:
    """Right-padded rows.

    Attributes:
        input_ids: int64 `[B, T]`.
        attention_mask: int64 `[B, T]`, 1 at real tokens.
        label_mask: bool `[B, T]`, True where `input_ids` holds a token to be predicted.
        media: the rows' images and sounds, one after another, by the model's argument names.
        tasks: what each row is a row of.
        targets: what a teacher says at each row's labels; none where labels are learned.
        weights: how much each label of a row counts; none where all count alike.
        rows: as they were given; of pairs the first halves, then the second ones.
    """

    input_ids: Tensor
    attention_mask: Tensor
    label_mask: Tensor
    media: Mapping[str, Tensor] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ()
    weights: tuple[float, ...] = ()
    rows: tuple[Row, ...] = ()


def collate(rows: Sequence[Row], pad_id: int) -> Batch:
    """Pad rows on the right to a batch `[B, T]`; any valid id pads, even one that is a label. Rows
    that they are preferred to stand behind them.
    """
    rows = (*rows, *(row.rejected for row in rows if row.rejected is not None))
    shape = len(rows), max(len(row.input_ids) for row in rows)
    input_ids = torch.full(shape, pad_id, device="cpu")
    attention_mask = torch.zeros(shape, dtype=torch.int64, device="cpu")
    label_mask = torch.zeros(shape, dtype=torch.bool, device="cpu")
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        input_ids[index, :length] = torch.tensor(row.input_ids, device="cpu")
        attention_mask[index, :length] = 1
        label_mask[index, length - row.num_labels : length] = True
    tasks = tuple(row.task for row in rows)
    weights = tuple(row.weight for row in rows) if any(row.weight != 1 for row in rows) else ()
    media, targets = collate_media(rows), row_targets(rows)
    return Batch(input_ids, attention_mask, label_mask, media, tasks, targets, weights, rows)


def row_targets(rows: Sequence[Row]) -> tuple[Target, ...]:
    """Return the targets of rows; nothing where none has one.

    Raises:
        DataError: some have none, so that their losses are not of one kind.
    """
    found = tuple(row.target for row in rows if row.target is not None)
    if found and len(found) < len(rows):
        bare = next(row for row in rows if row.target is None)
        raise DataError(f"{bare.source}: has no teacher's target, and other rows have one")
    return found


def collate_media(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Lay the media of rows one after another, as processors do.

    Raises:
        DataError: features of different sizes.
    """
    found: dict[str, Tensor] = {}
    for row in rows:
        for name, value in row.media.tensors.items() if row.media else ():
            before = found.get(name)
            if before is not None and before.shape[1:] != value.shape[1:]:
                raise DataError(
                    f"{row.source}: {name} is {list(value.shape)}, and that of a row before "
                    f"{list(before.shape)}: let the processor pad to one size"
                )
            found[name] = value if before is None else torch.cat([before, value])
    return found


def epoch_order(rows: Sequence[Row], batch_size: int, seed: int, epoch: int) -> list[list[Row]]:
    """Return random batches that hold every row once; the last may be smaller.

    Each is sorted by length, so that the micro-batches it is cut into pad little. Rows are not
    grouped by length: length often tells the kind of a row, and a step should see all kinds.
    """
    shuffled = random.Random(f"{seed}/{epoch}").sample(rows, len(rows))
    batches = [shuffled[cut : cut + batch_size] for cut in range(0, len(rows), batch_size)]
    return [sorted(batch, key=lambda row: len(row.input_ids)) for batch in batches]
