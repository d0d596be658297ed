"""The loss: cross entropy of label tokens, and nothing else is computed.

In: a batch's ids and label mask `[B, T]`. Out: for each label its loss, and whether it is what
greedy decoding would say. The head is applied to the positions before labels only, in chunks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from foreword.backbone import Backbone
from foreword.data.batches import Batch
from foreword.prompt.prefix import PrefixBatch

MAX_LOGITS = 1 << 26  # numbers in one chunk of logits: 256 MB in float32


@dataclass(frozen=True, eq=False)
class LabelScores:
    """What the model says of a batch's labels.

    Attributes:
        losses: cross entropy of each label `[N]`, in nats, row after row.
        is_best: whether each label is the model's first choice, `[N]`; not looked for in a pass
            with gradient.
        rows: the row of each label, `[N]`.
    """

    losses: Tensor
    is_best: Tensor | None
    rows: Tensor


def score_labels(backbone: Backbone, prefixes: PrefixBatch, batch: Batch) -> LabelScores:
    """Score every label of a batch from the token before it.

    A row's first token has none before it (a prefix keeps no hidden state), so it cannot be a
    label.
    """
    states, labels, rows = backbone.label_states(prefixes, batch)
    size = max(1, MAX_LOGITS // backbone.capabilities.vocab_size)
    chunks = list(zip(states.split(size), labels.split(size), strict=True))
    is_kept = len(chunks) == 1 or not torch.is_grad_enabled()
    scores = [
        # The logits of several chunks are not kept for the way back: that is what they are cut for.
        _score(backbone, *chunk)
        if is_kept
        else checkpoint(_score, backbone, *chunk, use_reentrant=False)
        for chunk in chunks
    ]
    losses = torch.cat([losses for losses, _ in scores])
    found = [is_best for _, is_best in scores if is_best is not None]
    return LabelScores(losses, torch.cat(found) if found else None, rows)


def _score(backbone: Backbone, states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return each label's loss and, without gradient, whether it is the first choice, from states
    `[N, H]`.
    """
    logits = backbone.head(states)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return losses, None if torch.is_grad_enabled() else logits.argmax(-1) == labels
