"""Losses: the summed cross entropy of each row's labels behind a prompt, or behind several.

In: a backbone, prompts, encoded rows. Out: for each row its loss in nats and how many labels it
has. Generates nothing.
"""

import math
from collections.abc import Sequence

import torch

from foreword.backbone import Backbone
from foreword.chat import OTHER_DTYPE
from foreword.config import EvalConfig
from foreword.data import batches
from foreword.data.row import Row
from foreword.errors import InputError
from foreword.prompt.prefix import Prefix
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.training.loss import score_labels

_DEFAULTS = EvalConfig()


def label_losses(
    backbone: Backbone,
    prompt: SoftPrompt | Prefix | None,
    rows: Sequence[Row],
    config: EvalConfig = _DEFAULTS,
) -> list[tuple[float, int]]:
    """Return for each row the summed loss of its labels, in nats, and their number.

    Raises:
        InputError: the model's numbers are not finite.
    """
    return mixed_losses(backbone, (prompt,), rows, config)


def mixed_losses(
    backbone: Backbone,
    prompts: Sequence[SoftPrompt | Prefix | None],
    rows: Sequence[Row],
    config: EvalConfig = _DEFAULTS,
) -> list[tuple[float, int]]:
    """Return the same for the mean of the prompts' probabilities of each label.

    Raises:
        InputError: the model's numbers are not finite.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    found: dict[int, tuple[float, int]] = {}
    for start in range(0, len(rows), config.batch_size):
        part = order[start : start + config.batch_size]
        batch = batches.collate([rows[index] for index in part], backbone.padding_id)
        with torch.no_grad():
            scores = [
                score_labels(backbone, backbone.batch_of(prompt, len(part)), batch)
                for prompt in prompts
            ]
        losses = torch.stack([one.losses.double().cpu() for one in scores])
        mixed = math.log(len(prompts)) - (-losses).logsumexp(dim=0)
        sums = torch.zeros(len(part), dtype=torch.float64, device="cpu")
        sums.index_add_(0, scores[0].rows.cpu(), mixed)
        check_losses(backbone, sums.tolist(), [rows[index].source for index in part])
        found |= {
            index: (total, rows[index].num_labels)
            for index, total in zip(part, sums.tolist(), strict=True)
        }
    return [found[index] for index in range(len(rows))]


def check_losses(backbone: Backbone, losses: Sequence[float], sources: Sequence[str]) -> None:
    """Refuse losses of rows that are no numbers: nothing can be compared with them.

    Raises:
        InputError: names the first such row, and the dtype.
    """
    for loss, source in zip(losses, sources, strict=True):
        if not math.isfinite(loss):
            raise InputError(
                f"{source}: expected a finite loss, got {loss} in {str(backbone.dtype)[6:]}: the "
                f"model's numbers are not finite there; {OTHER_DTYPE}"
            )
