"""Padding in what `generate` is given: found, moved before each row's tokens, and put back.

In: ids and masks as a caller pads them. Out: rows whose padding stands on the left, as transformers
generates, and processors that read each row's history without it. Knows no model but its settings.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from foreword.errors import InputError
from foreword.model import checks
from foreword.model.capabilities import Capabilities

# Processors that read a row's history: in a padded batch they would read its padding too.
HISTORY_PROCESSORS = (
    RepetitionPenaltyLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    NoBadWordsLogitsProcessor,
    SequenceBiasLogitsProcessor,
)


def infer_mask(
    model: Any, capabilities: Capabilities, input_ids: Tensor | None, kwargs: dict[str, Any]
) -> Tensor | None:
    """Infer the mask from padding ids, as transformers does: where they mean nothing else.

    Raises:
        InputError: the padding id is also a placeholder's.
    """
    config = kwargs.get("generation_config") or model.generation_config
    pad = kwargs.get("pad_token_id", config.pad_token_id)
    eos = kwargs.get("eos_token_id", config.eos_token_id)
    ends = eos if isinstance(eos, list) else [eos]
    if input_ids is None or pad is None or pad in ends or not bool((input_ids == pad).any()):
        return None
    if any(pad == modality.token_id for modality in capabilities.modalities):
        raise InputError(
            f"id {pad} pads and stands for media too; give attention_mask to tell them apart"
        )
    return input_ids.ne(pad).long()


def align_right(attention_mask: Tensor, num_rows: int, num_inputs: int, num_cached: int) -> Tensor:
    """Return the order that moves each row's padding before its new tokens, `[B, T new]`."""
    checks.check_mask(attention_mask, num_rows, num_inputs, num_cached)
    is_whole = attention_mask.shape[1] == num_inputs
    num_new = num_inputs - num_cached if is_whole else num_inputs
    if num_new < 1:
        raise InputError(
            f"{num_inputs} tokens were given and {num_cached} are cached: there is no new one; "
            "give the conversation so far and the next turn"
        )
    return torch.argsort(attention_mask[:, -num_new:].bool().int(), dim=1, stable=True)


def reorder(inputs: Tensor, order: Tensor, seen: int) -> Tensor:
    index = order if inputs.ndim == 2 else order[..., None].expand(-1, -1, inputs.shape[2])
    return torch.cat([inputs[:, :seen], inputs[:, seen:].gather(1, index)], dim=1)


def restore(output: Any, given: Tensor) -> Any:
    """Put the ids back as they were given, at the start of every returned sequence."""
    sequences = output if isinstance(output, Tensor) else output.sequences
    copies = sequences.shape[0] // given.shape[0]
    restored = torch.cat(
        [given.repeat_interleave(copies, 0).to(sequences.device), sequences[:, given.shape[1] :]], 1
    )
    if isinstance(output, Tensor):
        return restored
    output.sequences = restored
    return output


def on_own_tokens(processor: LogitsProcessor, kept: Tensor) -> LogitsProcessor:
    """Return a processor that reads each row's own tokens alone, if it reads a history."""
    if type(processor) not in HISTORY_PROCESSORS:
        return processor
    # Newer releases tell the repetition penalty where each row begins: but not of padding inside.
    if isinstance(getattr(processor, "prompt_ignore_length", None), Tensor):
        processor = RepetitionPenaltyLogitsProcessor(processor.penalty)
    return UnpaddedHistory(processor, kept)


class UnpaddedHistory(LogitsProcessor):
    """Apply a processor row by row, each on its own tokens without padding, wherever it stands.

    `kept` is bool `[B, T]` over the tokens that `generate` was given: what is no padding.
    """

    def __init__(self, inner: LogitsProcessor, kept: Tensor) -> None:
        self.inner = inner
        self.kept = kept

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the processed scores `[B, V]`."""
        (num_rows, num_given), rows = self.kept.shape, []
        kept, copies = self.kept.to(input_ids.device), input_ids.shape[0] // num_rows
        for row, ids in enumerate(input_ids):
            history = torch.cat([ids[:num_given][kept[row // copies]], ids[num_given:]])
            rows.append(self.inner(history[None], scores[row : row + 1]))
        return torch.cat(rows)
