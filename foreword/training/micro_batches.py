"""Micro-batches: the rows of a step or of a validation as the batches that one process runs.

In: rows, the same in every process. Out: this process's share, as padded batches of at most a given
number of rows. Knows no loss.
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

# Tokens of a micro-batch. Half as many take half the memory, and a tenth more time.
TOKENS_ON_CPU: dict[Form, int] = {"embeddings": 512, "key_values": 256}
# Tokens of a packed sequence that holds the virtual tokens and all rows of a step, and their share
# of the tokens that a prompt before every row would make: twice the memory, with its logits.
PACKED_TOKENS, PACKED_SHARE = 1280, 0.65


def default_size(backbone: Backbone, lengths: Sequence[int], most: int, prompt: SoftPrompt) -> int:
    """Return how many rows of these lengths, in tokens, a micro-batch holds by default: `most`, or
    fewer on a CPU.
    """
    if backbone.device.type != "cpu":
        return most
    length, num_virtual = sorted(lengths)[len(lengths) // 2], prompt.num_virtual_tokens
    whole = num_virtual + most * length
    is_packed = backbone.passes.is_packed and prompt.form == "embeddings"
    if is_packed and whole <= min(PACKED_TOKENS, PACKED_SHARE * most * (num_virtual + length)):
        return most
    return max(1, min(most, TOKENS_ON_CPU[prompt.form] // length))


def micro_batches(backbone: Backbone, ranks: Ranks, rows: Sequence[Row], size: int) -> list[Batch]:
    """Return this process's share of rows in batches of at most `size`, as many as others have."""
    pad_id = backbone.padding_id
    parts = ranks.micro_batches(rows, size)
    return [batches.collate(part, pad_id) if part else _idle(rows, pad_id) for part in parts]


def _idle(rows: Sequence[Row], pad_id: int) -> Batch:
    """Return a batch without labels, for a process that has no rows where others have some."""
    batch = batches.collate(rows[:1], pad_id)
    return replace(batch, label_mask=torch.zeros_like(batch.label_mask), rows=())
