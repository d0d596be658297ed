"""Reference model: what the frozen model says of rows behind the prompt that training starts from.

In: a prompt, rows. Out: the log probability of each label. It is computed once for a run, kept in
its training state, and costs no second model: a reference is the same weights behind another
prompt.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.data.row import Row, every
from foreword.data.target import in_order_of_labels
from foreword.prompt.prefix import Prefix
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.training.distributed import ALONE, Ranks
from foreword.training.validation import scored_batches


def log_probabilities(
    backbone: Backbone,
    prompt: SoftPrompt | Prefix,
    rows: Sequence[Row],
    batch_size: int = 16,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Return the log probability of each label behind a prompt, in nats, row after row: float64
    `[labels of all rows]`. Several processes share the rows; every one gets all.
    """
    counts = [row.num_labels for row in rows]
    found = torch.zeros(sum(counts), dtype=torch.float64, device="cpu")
    own = torch.arange(len(found), device="cpu").split(counts)
    for places, scores in scored_batches(backbone, {"": prompt}, rows, batch_size, ranks):
        where = torch.cat([own[one] for one in places])[in_order_of_labels(scores.rows)]
        found[where] = -scores.losses.double().cpu()
    ranks.add_up([found])
    return found


def with_reference(rows: Sequence[Row], reference: Tensor) -> list[Row]:
    """Return rows, and those that they are preferred to, that know what the reference says of them.

    Args:
        rows: to be told.
        reference: log probabilities of the labels of `every(rows)`, one after another.
    """
    parts = iter(reference.double().split([row.num_labels for row in every(rows)]))
    found = []
    for row in rows:
        own, other = tuple(next(parts).tolist()), row.rejected
        if other is not None:
            other = replace(other, reference=tuple(next(parts).tolist()))
        found.append(replace(row, reference=own, rejected=other))
    return found
