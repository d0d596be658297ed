"""Forward pass: its arguments (tokens, positions, masks, cache and media), and the pass itself.

In: a batch of prefixes, a cache, tokens. Out: the arguments of a decoder's forward pass, in which
every token stands after its row's prefix; its output. Knows no decoding strategy and no loss.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from foreword.compat.error_lines import first_line
from foreword.errors import InputError, UnsupportedError
from foreword.model import media
from foreword.model.capabilities import Capabilities
from foreword.model.masks import Span, check_slots, place
from foreword.model.media import Reading
from foreword.model.placeholders import Item, Turn
from foreword.prompt.prefix import PrefixBatch


def model_inputs(
    capabilities: Capabilities,
    batch: PrefixBatch,
    cache: Any,
    tokens: Tensor,
    attention_mask: Tensor | None,
    num_cached: int,
    dtype: torch.dtype,
    reading: Reading | None = None,
) -> dict[str, Any]:
    """Return positions, masks, cache and media for one pass of the model over `tokens` `[B, T]` or
    `[B, T, H]`.
    """
    if not capabilities.attention_patterns:  # recurrent layers know neither positions nor masks
        return {capabilities.cache_argument: cache, "use_cache": True}
    num_new = tokens.shape[1]
    if capabilities.counts_slots:
        if batch.unseen is not None:
            raise UnsupportedError(
                f"{capabilities.model_type} places tokens by their slots, and hides none of them; "
                "use a method that hides no virtual token"
            )
        num_slots = batch.num_slots + num_cached + num_new
        mask = torch.ones(tokens.shape[0], num_slots, dtype=torch.long, device=tokens.device)
        return {"attention_mask": mask, capabilities.cache_argument: cache, "use_cache": True}
    span = Span(
        num_virtual=batch.num_virtual,
        num_slots=batch.num_slots,
        num_cached=num_cached,
        num_new=num_new,
        capacity=int(cache.get_mask_sizes(num_new, 0)[0]),
        unseen=batch.unseen,
    )
    items = _items(reading, attention_mask, num_cached, tokens) if reading else []
    blocks = None
    if reading is not None and items and capabilities.has_image_blocks:
        blocks = reading.blocks(attention_mask, num_cached + num_new, tokens.shape[0])
        blocks = blocks.to(tokens.device)
    positions, masks = place(span, attention_mask, capabilities, dtype, tokens.device, blocks)
    check_slots(span, attention_mask, positions, capabilities)
    positions = positions.expand(tokens.shape[0], -1) + capabilities.first_position
    if isinstance(masks, Tensor):  # some families' code takes no mask of one row for all
        masks = masks.expand(tokens.shape[0], -1, -1, -1)
    placed = {"attention_mask": masks, capabilities.cache_argument: cache, "use_cache": True}
    if reading is not None and items:
        placed |= reading.features(items)
        placed["input_ids"] = media.without_padding(reading, tokens, attention_mask)
    if capabilities.num_axes == 1:
        return placed | {"position_ids": positions}
    if reading is None:
        return placed | {"position_ids": positions[None].expand(capabilities.num_axes, -1, -1)}
    virtual = torch.tensor(batch.num_virtual, device=tokens.device)[:, None]
    return placed | {"position_ids": reading.positions(positions, virtual)}


def _items(
    reading: Reading, attention_mask: Tensor | None, num_cached: int, tokens: Tensor
) -> list[Item]:
    """Return the media of a pass over columns `num_cached` and on."""
    if not reading.items or num_cached >= reading.num_columns:
        return []
    rows, num_new = tokens.shape[:2]
    if attention_mask is None:
        return reading.read_in([num_cached] * rows, [num_cached + num_new] * rows)
    starts = attention_mask[:, :num_cached].sum(1)
    stops = starts + attention_mask[:, num_cached : num_cached + num_new].sum(1)
    return reading.read_in(starts.tolist(), stops.tolist())


def run_pass(run: Any, inputs: dict[str, Any]) -> Any:
    """Run one forward pass of a model or its decoder; one error line where its media does not fit.

    Raises:
        InputError: what the model itself says of the media.
    """
    has_media = any(name in inputs for name in ("pixel_values", "input_features"))
    try:
        return run(**inputs)
    except ValueError as error:
        if not has_media:
            raise
        reason = first_line(error)
        raise InputError(
            f"the model cannot read the media of input_ids: {reason}; give what the processor "
            "returns, and let no generated token be a placeholder"
        ) from error


def read_media(
    model: Any, capabilities: Capabilities, turn: Turn, found: Mapping[str, Tensor]
) -> Reading:
    """Return the media of a call's passes, on the device and in the precision of the model."""
    moved = {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for name, value in found.items()
    }
    return media.read(getattr(model, capabilities.decoder), capabilities, turn, moved)
