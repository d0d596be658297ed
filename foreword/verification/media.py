"""The self-test of media: a family that no test covers proves itself on the first it is given.

In: a backbone and what a call gives it. Out: nothing, or an `UnsupportedError`. One row runs twice:
by the model alone, as it runs any row, behind five tokens of text; and behind the prefix that these
five tokens compile to, in a padded batch. No names of families, and nothing is left on the model.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from foreword.compat.error_lines import first_line
from foreword.errors import UnsupportedError
from foreword.model.capabilities import Capabilities
from foreword.model.forward import read_media
from foreword.model.placeholders import Turn
from foreword.prompt.prefix import Prefix, PrefixBatch
from foreword.verification.frozen_model import FrozenModel

NUM_TEXT = 5


def prove(
    backbone: FrozenModel,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    media: dict[str, Tensor],
) -> None:
    """Compare the first row that holds media, and refuse the family where the two readings differ.

    Raises:
        UnsupportedError: they differ, or cannot be made. InputError: the call itself is wrong.
    """
    capabilities: Capabilities = backbone.capabilities
    row, given = _first_row(backbone, input_ids, attention_mask, media)
    try:
        with torch.no_grad():
            found = _behind_prefix(backbone, row, given)
            expected = _by_itself(backbone.model, capabilities, row, given)
            limit = _limit(backbone, row, given, expected)
    except torch.OutOfMemoryError:
        raise
    except Exception as failure:  # of whatever type a class raises
        reason = first_line(failure) or type(failure).__name__
        raise UnsupportedError(
            f"{capabilities.model_type}: its media cannot be read behind a prefix as known "
            f"families do ({reason}); give it text alone"
        ) from failure
    error = (found - expected).abs().max().item()
    if not error <= limit:
        raise UnsupportedError(
            f"{capabilities.model_type}: media behind a prefix and behind the text that it stands "
            f"for give logits that differ by {error:.2g}; give it text alone"
        )


def _limit(
    backbone: FrozenModel, row: Tensor, given: Mapping[str, Tensor], expected: Tensor
) -> float:
    """Return the largest difference that is rounding: in half precision, three times what moving
    every feature by a unit of its last place does to the model's own logits.
    """
    limit = 1e-3 * expected.abs().max().item()
    if backbone.dtype in (torch.float32, torch.float64):
        return limit
    moved = {
        name: value * (1 + 2 * torch.finfo(value.dtype).eps) if value.is_floating_point() else value
        for name, value in given.items()
    }
    other = _by_itself(backbone.model, backbone.capabilities, row, moved)
    return max(limit, 3 * (other - expected).abs().max().item())


def _first_row(
    backbone: FrozenModel,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    media: dict[str, Tensor],
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Return the ids `[T]` of the first row with media, and its part of them."""
    zeros = (0,) * len(input_ids)
    turn = Turn(input_ids, attention_mask, 0, 0, zeros, None)
    reading = read_media(backbone.model, backbone.capabilities, turn, media)
    number = min(item.row for item in reading.items)
    part = reading.features([item for item in reading.items if item.row == number])
    return input_ids[number][turn.new(number).to(input_ids.device)].to(backbone.device), part


def _text(capabilities: Capabilities, device: torch.device) -> Tensor:
    """Return ids that stand for nothing but text."""
    taken = {modality.token_id for modality in capabilities.modalities}
    ids = [number for number in range(1, capabilities.vocab_size) if number not in taken]
    step = max(1, len(ids) // (NUM_TEXT + 1))
    return torch.tensor(ids[step::step][:NUM_TEXT], device=device)


def _behind_prefix(backbone: FrozenModel, row: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    """Return the logits `[T, V]` of a row behind a prefix, beside a shorter row of text."""
    text = _text(backbone.capabilities, row.device)
    prefix = Prefix(backbone.passes.prefill(backbone.embed(text)), "self-test")
    ids, mask = torch.stack([row, row]), torch.ones(2, len(row), dtype=torch.long, device="cpu")
    ids[1, -1], mask[1, :-1] = text[0], 0
    states = backbone.passes.hidden(PrefixBatch((prefix, prefix)), ids, mask.to(row.device), given)
    logits: Tensor = backbone.head(states)[0]
    return logits


def _by_itself(
    model: Any, capabilities: Capabilities, row: Tensor, given: Mapping[str, Tensor]
) -> Tensor:
    """Return the logits `[T, V]` of a row behind text, all else left to the model."""
    whole = torch.cat([_text(capabilities, row.device), row])[None]
    extra = dict(given)
    if capabilities.types:
        types = torch.zeros_like(whole)
        for modality in capabilities.modalities:
            types[whole == modality.token_id] = {"image": 1, "audio": 3}[modality.name]
        extra[capabilities.types] = types
    # Copies of the outer modules: what a model notes on itself is lost with them.
    alone, decoder = copy.copy(model), copy.copy(getattr(model, capabilities.decoder))
    alone.__dict__["_modules"] = dict(model._modules) | {capabilities.decoder: decoder}
    output = alone(input_ids=whole, attention_mask=torch.ones_like(whole), use_cache=False, **extra)
    logits: Tensor = output.logits[0, NUM_TEXT:]
    return logits
