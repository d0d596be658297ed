"""The embedding scale: what a model multiplies the embeddings of ids by, and not given ones.

In: a transformers model. Out: a number, measured by running the model on a few ids.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from foreword.model.capabilities import Capabilities


def applied_scale(
    scale: float | None, read_ids: Callable[[], Tensor], read_scaled: Callable[[float], Tensor]
) -> float:
    """Return whether a model applies the scale that its configuration names to ids alone: the
    scale, or 1 where it applies it to given embeddings, too.

    Args:
        scale: as the configuration names it, if it does.
        read_ids: hidden states of some ids.
        read_scaled: those of the ids' embeddings, times a number.
    """
    if scale in (None, 1):
        return 1.0
    assert scale is not None
    with torch.no_grad():
        expected, plain, scaled = read_ids(), read_scaled(1.0), read_scaled(float(scale))
    is_plain = (plain - expected).norm() <= (scaled - expected).norm()
    return 1.0 if is_plain else float(scale)


def decoder_scale(model: Any, capabilities: Capabilities) -> float:
    """Return what a decoder multiplies the embeddings of ids by, and not given ones."""
    decoder = getattr(model, capabilities.decoder)
    ids = torch.arange(4, device=model.device)[None]  # several: that of padding may be zeros

    def read(**tokens: Tensor) -> Tensor:
        hidden: Tensor = decoder(**tokens, use_cache=False).last_hidden_state
        return hidden

    return applied_scale(
        getattr(decoder.config, "embedding_multiplier", None),
        lambda: read(input_ids=ids),
        lambda by: read(inputs_embeds=model.get_input_embeddings()(ids) * by),
    )
