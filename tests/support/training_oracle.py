"""The obvious gradient: one unpadded, concatenated row at a time, and what is compared with it."""

from collections.abc import Callable

import oracle
import pytest
import tiny_models
import torch
from torch import Tensor

from foreword import Backbone, Row, SoftPrompt, TrainConfig
from foreword.data.batches import collate
from foreword.training.methods.direct import Direct
from foreword.training.step import _backward, accumulate, detached, prefix_states

ROWS = [
    Row.from_ids(tiny_models.ids(length).tolist(), tiny_models.ids(answer, seed=5).tolist())
    for length, answer in ((4, 3), (9, 1), (6, 5), (5, 2))
]
FAST = TrainConfig(
    form="embeddings", num_virtual_tokens=4, init="vocabulary", batch_size=4, num_steps=3
)


def obvious_loss(model: torch.nn.Module, prompt: SoftPrompt, rows: list[Row]) -> Tensor:
    """Return the mean label loss, one unpadded concatenated row at a time."""
    losses = []
    for row in rows:
        ids = torch.tensor(row.input_ids)
        logits = oracle.row_logits(model, prompt, ids)[-row.num_labels - 1 : -1]
        labels = ids[-row.num_labels :]
        losses.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
    return torch.cat(losses).mean()


def check_gradient(
    family: str,
    form: str,
    micro_batch_size: int,
    change: Callable[[Backbone], Backbone] = lambda backbone: backbone,
    rows: list[Row] = ROWS,
) -> Backbone:
    """Compare the shared prefix's gradient with that of one concatenated row at a time; return the
    changed backbone.
    """
    model = tiny_models.with_exact_norms(tiny_models.build(family))
    backbone = Backbone(model)
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(model, 6))
    if form == "key_values":
        prompt = SoftPrompt.from_states(backbone.compile(prompt).states)
    ours, theirs = Direct.begin(prompt, torch.float64), prompt.trainable(torch.float64)

    backbone = change(backbone)
    batches = [
        collate(rows[i : i + micro_batch_size], 0) for i in range(0, len(rows), micro_batch_size)
    ]
    states = prefix_states(backbone, ours, batches)
    leaves = [detached(one) for one in states]
    loss = accumulate(backbone, leaves, batches)
    _backward(states, leaves)
    expected = obvious_loss(model, theirs, rows)
    expected.backward()

    tolerance = tiny_models.GRADIENT_TOLERANCES.get(family, 1e-9)
    assert loss == pytest.approx(expected.item(), rel=tolerance)
    for mine, obvious in zip(ours.tensors, theirs.tensors, strict=True):
        difference = (mine.grad - obvious.grad).norm() / obvious.grad.norm().clamp_min(1e-12)
        assert difference < tolerance
    return backbone
