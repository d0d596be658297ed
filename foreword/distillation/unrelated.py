"""Unrelated text: rows at which a distilled prompt is to change nothing.

In: a backbone, how many rows. Out: rows whose teacher is the model without any prompt. Those that
are trained on are written by that model itself, from nothing: as many as are wished, each of them
another, in its languages and kinds of text. Those that tell what a prompt changes are text that
comes with foreword, and nobody trains on it. Anything that stands before a text changes it: one
start token tells how much. Trains nothing.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from foreword import chat
from foreword.backbone import Backbone
from foreword.config import DistillConfig
from foreword.data import encoding
from foreword.data.row import Row
from foreword.distillation.teacher import targets_of
from foreword.evaluation.forgetting import unrelated_text, windows
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.training.sampling import drawing_from

WINDOW = 64  # tokens of a row
NUM_TOLD = 8  # rows that tell
SOURCE = "unrelated text"


def told_rows(
    backbone: Backbone, config: DistillConfig, room: int = encoding.NO_LIMIT
) -> list[Row]:
    """Return the rows that tell what a prompt changes, with the targets of the bare model; none
    where `room`, the tokens that fit behind the prompt, is too small for any.
    """
    num_start = len(encoding.start_ids(backbone.tokenizer))
    size = min(WINDOW + num_start, room)
    if size < num_start + 2:
        return []
    rows = [row for row in windows(backbone, unrelated_text(), size) if len(row.input_ids) == size]
    return _with_targets(backbone, rows[-NUM_TOLD:], config)


def written_rows(
    backbone: Backbone,
    count: int,
    config: DistillConfig,
    seed: int,
    room: int = encoding.NO_LIMIT,
) -> list[Row]:
    """Return `count` rows of text that the bare model writes, drawn at temperature 1 from a seed,
    with its targets; none where `room` is too small for any. Each begins as a text of the tokenizer
    does.
    """
    start = tuple(encoding.start_ids(backbone.tokenizer))
    opening = Row(start or _beginning(backbone), 1, SOURCE)
    rows: list[Row] = []
    length = min(WINDOW, room - len(opening.input_ids))
    if length < 2:
        return []
    with drawing_from(seed, backbone.device):
        while len(rows) < count:
            size = min(config.answer_batch, count - len(rows))
            texts = chat.answer_rows(
                backbone, None, [opening] * size, [[]] * size,
                max_new_tokens=length, do_sample=True, temperature=1.0,
            )  # fmt: skip
            # Its first token is no label: where nothing stands before it, nothing predicts it.
            rows += [Row((*start, *one.ids), len(one.ids) - 1, SOURCE) for one in texts]
    return _with_targets(backbone, rows, config)


def start_token(backbone: Backbone) -> SoftPrompt:
    """Return a prompt of one start token. What it changes of unrelated text, any prefix changes: a
    text behind it no longer begins at nothing.
    """
    start = encoding.start_ids(backbone.tokenizer) or _beginning(backbone)
    ids = torch.tensor(start[:1], device=backbone.device)
    return SoftPrompt.from_embeddings(backbone.embed(ids))


def _beginning(backbone: Backbone) -> tuple[int, ...]:
    """Return what a text is drawn behind where the tokenizer puts nothing before one: its token for
    the start of a text or, as between the texts of pretraining, for the end of one.
    """
    tokenizer = backbone.tokenizer
    known = (tokenizer.bos_token_id, tokenizer.eos_token_id, backbone.padding_id)
    return (next(one for one in known if one is not None),)


def _with_targets(backbone: Backbone, rows: Sequence[Row], config: DistillConfig) -> list[Row]:
    size, found = config.answer_batch, list[Row]()
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        targets = targets_of(backbone, None, part, config.top_k, config.keep_mass)
        found += [replace(row, target=one) for row, one in zip(part, targets, strict=True)]
    return found
