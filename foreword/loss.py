"""The loss of a batch: cross entropy of label tokens, and nothing else is computed.

In: a batch's ids and label mask `[B, T]`. Out: for each label its loss, and
whether it is what greedy decoding would say. The head is applied to the positions before labels
only, in chunks.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.encoding import Batch
from foreword.prefix import PrefixBatch

MAX_LOGITS = 1 << 26  # numbers in one chunk of logits: 256 MB in float32


@dataclass(frozen=True, eq=False)
class LabelScores:
    """What the model says of a batch's labels.

    Attributes:
        losses: cross entropy of each label `[N]`, in nats, row after row.
        is_best: whether each label is the model's first choice, `[N]`.
        rows: the row of each label, `[N]`.
    """

    losses: Tensor
    is_best: Tensor
    rows: Tensor


def score_labels(
    backbone: Backbone, prefixes: PrefixBatch, batch: Batch, **media: Any
) -> LabelScores:
    """Score every label of a batch from the token before it.

    A row's first token has none before it (a prefix keeps no hidden state), so it cannot be a
    label. `media` is what an encoder that hears or sees takes.
    """
    states, labels, rows = backbone.label_states(prefixes, batch, **media)
    size = max(1, MAX_LOGITS // backbone.capabilities.vocab_size)
    losses, is_best = [], []
    for part, target in zip(states.split(size), labels.split(size), strict=True):
        logits = backbone.head(part)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        losses.append(torch.nn.functional.cross_entropy(logits, target, reduction="none"))
        is_best.append(logits.detach().argmax(-1) == target)
    return LabelScores(torch.cat(losses), torch.cat(is_best), rows)
