"""The loss: cross entropy of label tokens, or divergence from what a teacher says there.

In: a batch's ids and label mask `[B, T]`, and targets if its rows have some. Out: for each label
its loss, and whether it is what greedy decoding would say. The head is applied to the positions
before labels only, in chunks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from foreword.backbone import Backbone
from foreword.data.batches import Batch
from foreword.data.target import Target, joined
from foreword.prompt.prefix import PrefixBatch

MAX_LOGITS = 1 << 26  # numbers in one chunk of logits: 256 MB in float32


@dataclass(frozen=True, eq=False)
class LabelScores:
    """What the model says of a batch's labels.

    Attributes:
        losses: cross entropy of each label `[N]`, or divergence from its target, in nats.
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
    target = joined(batch.targets, rows)
    parts, own = states.split(size), labels.split(size)  # one, if an empty one, without labels
    targets = [None] * len(parts) if target is None else _split(target, size, len(parts))
    chunks = list(zip(parts, own, targets, strict=True))
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


def score_states(backbone: Backbone, states: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the losses of labels `[N]` and whether each is the first choice, without gradient,
    from the states before them `[N, H]`.
    """
    size = max(1, MAX_LOGITS // backbone.capabilities.vocab_size)
    with torch.no_grad():
        parts = zip(states.split(size), labels.split(size), strict=True)
        losses, best = zip(*(_score(backbone, *part, None) for part in parts), strict=True)
    return torch.cat(losses), torch.cat(best)


def _split(target: Target, size: int, count: int) -> list[Target]:
    return [target.part(slice(part * size, (part + 1) * size)) for part in range(count)]


def _score(
    backbone: Backbone, states: Tensor, labels: Tensor, target: Target | None
) -> tuple[Tensor, Tensor | None]:
    """Return each label's loss and, without gradient, whether it is the first choice, from states
    `[N, H]`.
    """
    logits = backbone.head(states)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if target is None:
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    else:
        losses = divergence(logits, target)
    return losses, None if torch.is_grad_enabled() else logits.argmax(-1) == labels


def divergence(logits: Tensor, target: Target) -> Tensor:
    """Return the Kullback-Leibler divergence of a model from its teacher at each label, in nats.

    The kept ids K count one by one, and all other ids as one: a lower bound of the whole
    divergence, and 0 only where both agree on the kept ids. With the teacher's probabilities p and
    the model's q, p_rest and q_rest those of all ids outside K:

        forward, K the teacher's:  sum_K p log(p / q) + p_rest log(p_rest / q_rest)
        reverse, K the model's:    sum_K q log(q / p) + q_rest log(q_rest / p_rest)

    The reverse one is that of on-policy context distillation (OPCD, arXiv:2602.12275), taken at
    labels whose target has a `log_rest`.

    Args:
        logits: of the model, `[N, V]`.
        target: of the same labels, K ids each.
    """
    log_whole = logits.logsumexp(-1)
    kept = logits.gather(-1, target.ids) - log_whole[:, None]
    taught = target.log_probabilities.to(logits.dtype)
    is_kept = taught > -torch.inf
    p, taught = taught.exp(), taught.masked_fill(~is_kept, 0)
    log_rest = None
    if target.ids.shape[-1] < logits.shape[-1]:
        log_rest = logits.scatter(-1, target.ids, -torch.inf).logsumexp(-1) - log_whole
    found = (p * (taught - kept)).sum(-1)
    if log_rest is not None:
        rest = (1 - p.sum(-1)).clamp_min(0)
        found = found + torch.xlogy(rest, rest) - rest * log_rest
    if target.log_rest is None:
        return found
    theirs = target.log_rest.to(logits.dtype)
    reverse = (kept.exp() * is_kept * (kept - taught)).sum(-1)
    if log_rest is not None:
        reverse = reverse + log_rest.exp() * (log_rest - theirs.nan_to_num())
    return torch.where(theirs.isnan(), found, reverse)
