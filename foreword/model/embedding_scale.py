"""Embedding scale: the factor that a model applies to the embeddings of ids, not to given ones.

In: a transformers model. Out: a number, measured by running the model on a few ids. Knows no
prompt.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from foreword.model.capabilities import Capabilities


def applied_scale(
    scale: float | None, run_ids: Callable[[], Tensor], run_scaled: Callable[[float], Tensor]
) -> float:
    """Return the scale that a model applies to the embeddings of ids alone: the one that its
    configuration names, or 1 where the model applies that to given embeddings, too.

    Args:
        scale: as the configuration names it, if it does.
        run_ids: returns the hidden states of some ids.
        run_scaled: returns those of the ids' embeddings, times a number.
    """
    if scale in (None, 1):
        return 1.0
    assert scale is not None
    with torch.no_grad():
        expected, plain, scaled = run_ids(), run_scaled(1.0), run_scaled(float(scale))
    is_plain = (plain - expected).float().norm() <= (scaled - expected).float().norm()
    return 1.0 if is_plain else float(scale)


def decoder_scale(model: Any, capabilities: Capabilities) -> float:
    """Return what a decoder multiplies the embeddings of ids by, and not given ones."""
    decoder = getattr(model, capabilities.decoder)
    ids = torch.arange(4, device=model.device)[None]  # several: that of padding may be zeros

    def run(**tokens: Tensor) -> Tensor:
        hidden: Tensor = decoder(**tokens, use_cache=False).last_hidden_state
        return hidden

    return applied_scale(
        getattr(decoder.config, "embedding_multiplier", None),
        lambda: run(input_ids=ids),
        lambda by: run(inputs_embeds=model.get_input_embeddings()(ids) * by),
    )
