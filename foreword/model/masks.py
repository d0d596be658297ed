"""Position ids and attention masks: where tokens stand and what they attend to.

In: for each row the number of its virtual tokens, and the attention mask of its real tokens. Out:
`position_ids` and masks in the form that transformers' decoders take. Slots of the cache are `[S
virtual | real]`: a row with fewer than `S` virtual tokens leaves the first slots of that part
empty. Because a mask compares *positions*, never slots, padding on either side, holes, windows,
chunks and mixed prompts are all exact. Pure functions of small integer tensors: knows no model.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from foreword.errors import UnsupportedError
from foreword.model.capabilities import STATE_KINDS, AttentionPattern, Capabilities

Masks = Tensor | dict[str, Tensor | None] | None


@dataclass(frozen=True)
class Span:
    """The slots that one forward pass touches.

    Attributes:
        num_virtual: virtual tokens of each row, one number or one per row.
        num_slots: S, the slots kept for virtual tokens: the largest of `num_virtual`.
        num_cached: real tokens already in the cache.
        num_new: tokens of this pass.
        capacity: slots of the keys that attention will see, empty ones included.
        unseen: slots of virtual tokens that a row does not attend to, `[B, num_slots]`.
    """

    num_virtual: tuple[int, ...]
    num_slots: int
    num_cached: int
    num_new: int
    capacity: int
    unseen: Tensor | None = None

    @property
    def is_uniform(self) -> bool:
        """Whether all rows have the same number of virtual tokens, so that one mask serves them
        all.
        """
        return all(count == self.num_slots for count in self.num_virtual)


def place(
    span: Span,
    attention_mask: Tensor | None,
    capabilities: Capabilities,
    dtype: torch.dtype,
    device: torch.device,
    blocks: Tensor | None = None,
) -> tuple[Tensor, Masks]:
    """Return position ids `[B, T]` and the masks of one pass.

    `attention_mask` is `[B, num_cached + num_new]`, or None where no row is padded. Position ids of
    padding are harmless numbers. A mask is None where the model's own causal rule is already right.
    `blocks` `[B, num_cached + num_new]` numbers tokens that attend to each other both ways; -1 is
    none.
    """
    num_real = span.num_cached + span.num_new
    virtual = torch.tensor(span.num_virtual, device=device)[:, None]
    if span.is_uniform and attention_mask is None and span.unseen is None:
        virtual = virtual[:1]
        real = torch.arange(num_real, device=device)[None] + virtual
    elif attention_mask is None:
        real = torch.arange(num_real, device=device)[None] + virtual
    else:
        real = (attention_mask.to(device).long().cumsum(-1) - 1).clamp_min(0) + virtual
    positions = real[:, span.num_cached :]
    masks: dict[str, Tensor | None] = {
        pattern.name: _mask(
            span, attention_mask, virtual, real, pattern, dtype, capabilities.attention, blocks
        )
        for pattern in dict.fromkeys(capabilities.attention_patterns)
    }
    if capabilities.is_recurrent:
        # The input of recurrent layers holds no padding: they need no mask.
        return positions, masks | dict.fromkeys(STATE_KINDS)
    return positions, masks if len(masks) > 1 else next(iter(masks.values()))


def _mask(
    span: Span,
    attention_mask: Tensor | None,
    virtual: Tensor,
    real: Tensor,
    pattern: AttentionPattern,
    dtype: torch.dtype,
    attention: str,
    blocks: Tensor | None,
) -> Tensor | None:
    """Return what each new token may attend to, `[B or 1, 1, T, capacity]`, or None for plain
    causal.
    """
    total = span.num_slots + span.num_cached + span.num_new
    is_plain = attention_mask is None and span.is_uniform and span.capacity == total
    is_plain &= blocks is None and span.unseen is None
    # Without a mask, sdpa applies the causal rule of an empty cache, and eager attention none.
    is_causal_right = span.num_new == 1 or (attention == "sdpa" and total == span.num_new)
    if is_plain and is_causal_right and (pattern.size is None or total <= pattern.size):
        return None
    allowed = _allowed(span, attention_mask, virtual, real, pattern, blocks)[:, None]
    return _in_form(allowed, dtype, attention)


def _allowed(
    span: Span,
    attention_mask: Tensor | None,
    virtual: Tensor,
    real: Tensor,
    pattern: AttentionPattern,
    blocks: Tensor | None,
) -> Tensor:
    """Return `[B, T, capacity]`: a token sees the keys at its own position and before, inside its
    window or its chunk, and the keys of its own block.
    """
    device, rows = real.device, real.shape[0]
    slot = torch.arange(span.num_slots, device=device)[None] - (span.num_slots - virtual)
    empty = span.capacity - span.num_slots - real.shape[1]
    keys = torch.cat([slot, real, real.new_zeros(rows, empty)], dim=1)
    is_real = torch.ones_like(real, dtype=torch.bool)
    if attention_mask is not None:
        is_real = attention_mask.to(device).bool()
    is_virtual = slot >= 0
    if span.unseen is not None:
        is_virtual = is_virtual & ~span.unseen.to(device)
    is_key = torch.cat([is_virtual, is_real, is_real.new_zeros(rows, empty)], dim=1)
    queries = real[:, span.num_cached :, None]
    allowed = keys[:, None] <= queries
    if blocks is not None:
        allowed = allowed | _same_block(span, blocks)
    allowed = is_key[:, None] & allowed
    size = pattern.size
    if size is not None and pattern.name == "chunked_attention":
        allowed &= queries // size == keys[:, None] // size
    elif size is not None:
        allowed &= queries - keys[:, None] < size
    # A padding token has no key of its own: it sees itself, so that no row of the softmax is empty.
    own = span.num_slots + span.num_cached + torch.arange(span.num_new, device=device)
    is_own = torch.arange(span.capacity, device=device)[None] == own[:, None]
    return allowed | is_own[None]


def _same_block(span: Span, blocks: Tensor) -> Tensor:
    """Return `[B, T, capacity]`: whether a new token and a key are of one block."""
    before = blocks.new_full((blocks.shape[0], span.num_slots), -1)
    after = blocks.new_full((blocks.shape[0], span.capacity - span.num_slots - blocks.shape[1]), -1)
    keys = torch.cat([before, blocks, after], dim=1)
    queries = blocks[:, span.num_cached :, None]
    return (queries == keys[:, None]) & (queries >= 0)


def place_in_slots(
    positions: Tensor, width: int, capabilities: Capabilities, dtype: torch.dtype, *, is_even: bool
) -> Masks:
    """Return the masks of a pass over rows whose tokens each lie in the slot of their position.

    `positions` is `[B, T]`, `width` the slots that attention will see. `is_even` says that the pass
    is of one token for each row and that all of them are at `width - 1`: full attention needs no
    mask then. Slots after a token's own are empty or of another row's past: it never sees them.
    """
    keys = torch.arange(width, device=positions.device)
    queries = positions[:, None, :, None]
    masks: dict[str, Tensor | None] = {}
    for pattern in dict.fromkeys(capabilities.attention_patterns):
        is_whole = is_even and (pattern.size is None or width <= pattern.size)
        if is_whole and capabilities.attention == "sdpa":
            masks[pattern.name] = None
            continue
        allowed = keys <= queries
        if pattern.size is not None and pattern.name == "chunked_attention":
            allowed &= queries // pattern.size == keys // pattern.size
        elif pattern.size is not None:
            allowed &= queries - keys < pattern.size
        masks[pattern.name] = _in_form(allowed, dtype, capabilities.attention)
    if capabilities.is_recurrent:
        # Rows of a pass are equally long: recurrent layers need no mask.
        return masks | dict.fromkeys(STATE_KINDS)
    return masks if len(masks) > 1 else next(iter(masks.values()))


def _in_form(allowed: Tensor, dtype: torch.dtype, attention: str) -> Tensor:
    """Turn a boolean mask into what an attention implementation takes."""
    if attention == "sdpa":
        return allowed
    lowest = torch.finfo(dtype).min
    return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, lowest)


def check_slots(
    span: Span, attention_mask: Tensor | None, positions: Tensor, capabilities: Capabilities
) -> None:
    """Refuse a pass in which a model scales queries by slot, and that differs from scaling them by
    position.

    Raises:
        UnsupportedError: a padded or mixed batch past the length where the scale begins.
    """
    scale = capabilities.slot_scale
    if scale is None or span.num_slots + span.num_cached + span.num_new < scale:
        return
    first = span.num_slots + span.num_cached
    slots = first + torch.arange(span.num_new, device=positions.device)
    differs = (positions + 1) // scale != (slots + 1) // scale
    if attention_mask is not None:
        differs = differs & attention_mask[:, -span.num_new :].to(differs.device).bool()
    if bool(differs.any()):
        raise UnsupportedError(
            f"{capabilities.model_type} scales its attention every {scale} tokens by where they "
            "lie in the cache, padding included; give one row at a time, or rows of one length "
            "behind prompts of one length"
        )
