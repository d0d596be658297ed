"""Padding in what `generate` is given: found, moved before each row's tokens, and put back.

In: ids and masks as a caller pads them. Out: rows whose padding stands on the left, as transformers
generates, and processors and criteria that read each row's history without it. Knows no model but
its settings.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    ForcedBOSTokenLogitsProcessor,
    LogitsProcessor,
    MinLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    StoppingCriteria,
    StopStringCriteria,
    SuppressTokensAtBeginLogitsProcessor,
    WatermarkLogitsProcessor,
)

from foreword.errors import InputError
from foreword.model import checks
from foreword.model.argument_types import ids_of
from foreword.model.capabilities import Capabilities

# Processors that read a row's history, or count it: in a padded batch its padding too.
HISTORY_PROCESSORS = (
    RepetitionPenaltyLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    NoBadWordsLogitsProcessor,
    SequenceBiasLogitsProcessor,
    MinLengthLogitsProcessor,
    ForcedBOSTokenLogitsProcessor,
    WatermarkLogitsProcessor,
)
# Processors that are made of all given tokens, or of their number.
GIVEN_PROCESSORS = (
    EncoderRepetitionPenaltyLogitsProcessor,
    EncoderNoRepeatNGramLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
)


def infer_mask(
    model: Any, capabilities: Capabilities, input_ids: Tensor | None, kwargs: dict[str, Any]
) -> Tensor | None:
    """Infer the mask from padding ids, as transformers does: where they mean nothing else.

    Raises:
        InputError: the padding id is also a placeholder's.
    """
    pad = checks.setting("pad_token_id", kwargs, model.generation_config)
    ends = ids_of(checks.setting("eos_token_id", kwargs, model.generation_config))
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


def reorder(inputs: Tensor, order: Tensor) -> Tensor:
    """Return ids `[B, T]` or embeddings `[B, T, H]` in another order `[B, T]` of their columns."""
    order = order.to(inputs.device)
    index = order if inputs.ndim == 2 else order[..., None].expand(-1, -1, inputs.shape[2])
    return inputs.gather(1, index)


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


def on_own_tokens(
    processor: LogitsProcessor, given: Tensor, kept: Tensor, *, is_start_forced: bool
) -> LogitsProcessor:
    """Return a processor that reads each row's own tokens alone, if it reads or counts any.

    Args:
        processor: one of those that `generate` has made, or was given.
        given: the ids that `generate` was given, `[B, T]`.
        kept: bool `[B, T]`, what of them is no padding.
        is_start_forced: whether the id after a row's only one is forced, and counts as given.
    """
    # Newer releases tell the repetition penalty where each row begins: but not of padding inside.
    if isinstance(getattr(processor, "prompt_ignore_length", None), Tensor):
        processor = RepetitionPenaltyLogitsProcessor(processor.penalty)
    if type(processor) in HISTORY_PROCESSORS:
        return UnpaddedHistory([processor] * len(kept), kept)
    if type(processor) not in GIVEN_PROCESSORS:
        return processor
    rows = []
    for ids, own in zip(given, kept.to(given.device), strict=True):
        made: Any = copy.copy(processor)
        if isinstance(made, EncoderNoRepeatNGramLogitsProcessor):
            made = EncoderNoRepeatNGramLogitsProcessor(made.ngram_size, ids[own][None])
        elif isinstance(made, EncoderRepetitionPenaltyLogitsProcessor):
            made.encoder_input_ids = ids[own][None]
        else:
            length = int(own.sum())
            made.begin_index = length + (is_start_forced and length == 1)
        rows.append(made)
    return UnpaddedHistory(rows, kept)


def criterion_on_own_tokens(criterion: StoppingCriteria, kept: Tensor) -> StoppingCriteria:
    """Return a criterion that reads each row's own tokens alone, if it is one of stop strings."""
    return UnpaddedEnd(criterion, kept) if type(criterion) is StopStringCriteria else criterion


def allowed_on_own_tokens(
    allowed: Callable[[int, Tensor], list[int]], kept: Tensor
) -> Callable[[int, Tensor], list[int]]:
    """Return a `prefix_allowed_tokens_fn` that is told each row's own tokens alone."""
    return lambda row, ids: allowed(row, _history(ids, kept[row]))


def _history(ids: Tensor, kept: Tensor) -> Tensor:
    """Return the ids of one row without the padding among the first, `kept` bool `[T]`."""
    return torch.cat([ids[: len(kept)][kept.to(ids.device)], ids[len(kept) :]])


class UnpaddedHistory(LogitsProcessor):
    """Apply processors row by row, each on its own tokens without padding, wherever it stands.

    `inner` has one for each row of `kept`, bool `[B, T]` over the tokens that `generate` was given:
    what is no padding.
    """

    def __init__(self, inner: Sequence[LogitsProcessor], kept: Tensor) -> None:
        self.inner = inner
        self.kept = kept

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the processed scores `[B, V]`."""
        copies, rows = input_ids.shape[0] // len(self.kept), []
        for index, ids in enumerate(input_ids):
            row = index // copies
            history = _history(ids, self.kept[row])[None]
            rows.append(self.inner[row](history, scores[index : index + 1]))
        return torch.cat(rows)


class UnpaddedEnd(StoppingCriteria):
    """Ask a criterion row by row, each on its own tokens without padding."""

    def __init__(self, inner: StoppingCriteria, kept: Tensor) -> None:
        self.inner = inner
        self.kept = kept

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Return which rows have ended, bool `[B]`."""
        copies = input_ids.shape[0] // len(self.kept)
        histories = [_history(ids, self.kept[i // copies]) for i, ids in enumerate(input_ids)]
        return torch.cat([self.inner(ids[None], None, **kwargs) for ids in histories])


class StreamOfGiven:
    """Tell a streamer the ids as they were given, wherever `generate` has moved their padding."""

    def __init__(self, streamer: Any, given: Tensor) -> None:
        self.streamer, self.given = streamer, given
        self._is_told = False

    def put(self, value: Tensor) -> None:
        """Pass on what `generate` tells; its first is what it was given."""
        if not self._is_told:
            value = self.given.repeat_interleave(len(value) // len(self.given), 0).cpu()
        self._is_told = True
        self.streamer.put(value)

    def end(self) -> None:
        """Pass on the end."""
        self.streamer.end()
