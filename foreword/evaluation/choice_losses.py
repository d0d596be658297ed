"""Losses of several answers to one question: the question is read once, and all answers behind it.

In: a backbone, rows that begin alike and end in different answers. Out: the summed loss of each
answer. Where a question cannot be read apart from its answer, whole rows are scored.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from foreword.backbone import Backbone
from foreword.config import EvalConfig
from foreword.data.row import Row
from foreword.evaluation.losses import mixed_losses
from foreword.model.decoder import Decoder
from foreword.prompt.prefix import Prefix
from foreword.prompt.soft_prompt import SoftPrompt

MIN_SHARED = 8  # leading ids below which a pass of their own saves nothing


def choice_losses(
    backbone: Backbone,
    prompts: Sequence[SoftPrompt | Prefix | None],
    rows: Sequence[Row],
    num_choices: int,
    config: EvalConfig,
) -> list[float]:
    """Return the summed loss of each row's labels, in nats, behind the mean of the prompts.

    Args:
        backbone: the model.
        prompts: one, or several whose probabilities are averaged.
        rows: `num_choices` for each question, which differ in their answers.
        num_choices: answers to a question.
        config: how many rows are a batch.
    """
    groups = [rows[start : start + num_choices] for start in range(0, len(rows), num_choices)]
    if backbone.reads_apart or any(row.media is not None for row in rows):
        return [loss for loss, _ in mixed_losses(backbone, prompts, rows, config)]
    found: list[float] = []
    for group in groups:
        shared = num_shared(group)
        if shared < MIN_SHARED:
            found += [loss for loss, _ in mixed_losses(backbone, prompts, group, config)]
            continue
        ids = torch.tensor([group[0].input_ids[:shared]], device=backbone.device)
        read = [_read(backbone, prompt, ids) for prompt in prompts]
        ends = [replace(row, input_ids=row.input_ids[shared:]) for row in group]
        found += [loss for loss, _ in mixed_losses(backbone, read, ends, config)]
    return found


def num_shared(rows: Sequence[Row]) -> int:
    """Return how many leading ids rows have in common, before the token that stands before the
    first label of any.
    """
    most = min(len(row.input_ids) - row.num_labels - 1 for row in rows)
    columns = zip(*(row.input_ids[: max(most, 0)] for row in rows), strict=True)
    return next((count for count, ids in enumerate(columns) if len(set(ids)) > 1), max(most, 0))


def _read(backbone: Backbone, prompt: SoftPrompt | Prefix | None, ids: torch.Tensor) -> Prefix:
    """Return the state after a prompt and the leading ids `[1, T]`, as a prefix."""
    [prefix] = backbone.batch_of(prompt, 1).prefixes
    passes = backbone.passes
    assert isinstance(passes, Decoder)  # of an encoder, rows are scored whole
    with torch.no_grad():
        states, _ = passes.prefill_row(prefix, ids, {})
    return Prefix(states, "a question")
