"""Rows as the batches that one process passes through the model.

In: the rows of a step or of a validation, the same in every process. Out: this process's share, as
padded batches of a given number of rows. Knows no prompt and no loss.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from foreword.backbone import Backbone
from foreword.config import Form
from foreword.data import batches
from foreword.data.batches import Batch
from foreword.data.encoding import Row
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.training.distributed import Ranks

# Tokens of a pass. Half as many take half the memory, and a tenth more time.
TOKENS_ON_CPU: dict[Form, int] = {"embeddings": 512, "key_values": 256}
# Tokens of a line that holds the virtual tokens and all rows of a step, and of their share of the
# tokens that a prompt before every row would make: that takes twice the memory, with its logits.
TOKENS_OF_LINE, SHARE_OF_LINE = 1280, 0.65


def default_size(backbone: Backbone, rows: Sequence[Row], most: int, prompt: SoftPrompt) -> int:
    """Return how many rows a pass holds where nobody says: `most`, or fewer on a CPU."""
    if backbone.device.type != "cpu":
        return most
    lengths = sorted(len(row.input_ids) for row in rows)
    length, num_virtual = lengths[len(lengths) // 2], prompt.num_virtual_tokens
    whole = num_virtual + most * length
    is_line = backbone.passes.is_packed and prompt.form == "embeddings"
    if is_line and whole <= min(TOKENS_OF_LINE, SHARE_OF_LINE * most * (num_virtual + length)):
        return most
    return max(1, min(most, TOKENS_ON_CPU[prompt.form] // length))


def batches_of(backbone: Backbone, ranks: Ranks, rows: Sequence[Row], size: int) -> list[Batch]:
    """Return this process's share of rows in batches of at most `size`, as many as others have."""
    pad_id = backbone.padding_id
    passes = ranks.passes(rows, size)
    return [batches.collate(part, pad_id) if part else _idle(rows, pad_id) for part in passes]


def _idle(rows: Sequence[Row], pad_id: int) -> Batch:
    """Return a batch without labels, for a process that has no rows where others have some."""
    batch = batches.collate(rows[:1], pad_id)
    return replace(batch, label_mask=torch.zeros_like(batch.label_mask))
