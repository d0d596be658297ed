"""Validation: a prompt's loss and exact answers on rows that it was not trained on.

In: a backbone, a prompt, held-out rows. Out: their loss and the share that greedy decoding would
answer right, in one teacher-forced pass. Knows nothing of training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from foreword.backbone import Backbone
from foreword.data.encoding import Row
from foreword.prompt.prefix import PrefixBatch
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.training.distributed import ALONE, Ranks
from foreword.training.loss import score_labels
from foreword.training.micro_batches import micro_batches


@dataclass(frozen=True)
class Validation:
    """What the prompt does on rows that it was not trained on.

    Attributes:
        loss: mean cross entropy of a label, in nats.
        exact: share of rows whose greedy answer is the label, token for token.
    """

    loss: float
    exact: float


def validate(
    backbone: Backbone,
    prompt: SoftPrompt | Mapping[str, SoftPrompt],
    rows: Sequence[Row],
    batch_size: int,
    ranks: Ranks = ALONE,
) -> Validation:
    """Score held-out rows: teacher-forced, so one pass tells the loss and what greedy decoding
    answers. Of several tasks' prompts, each row gets its own task's.
    """
    prompts = {"": prompt} if isinstance(prompt, SoftPrompt) else prompt
    known = {name: backbone.compile(one.detached()) for name, one in prompts.items()}
    ordered = sorted(rows, key=lambda row: len(row.input_ids))
    totals = torch.zeros(3, dtype=torch.float64)  # loss, labels, rows that are exact
    with torch.no_grad():
        for batch in micro_batches(backbone, ranks, ordered, batch_size):
            names = ("",) * len(batch.tasks) if "" in known else batch.tasks
            scores = score_labels(backbone, PrefixBatch(tuple(known[n] for n in names)), batch)
            assert scores.is_best is not None
            num_wrong = len(scores.rows[~scores.is_best].unique())
            num_exact = len(scores.rows.unique()) - num_wrong
            found = float(scores.losses.double().sum()), len(scores.losses), num_exact
            totals += torch.tensor(found, dtype=torch.float64)
    ranks.add_up([totals])
    loss, num_labels, exact = totals.tolist()
    return Validation(loss=loss / num_labels, exact=exact / len(ordered))
