"""Both ends of a model: what it makes of ids before its layers, and of hidden states after them.

In: a transformers model. Out: the scale that it applies to the embeddings of ids alone; logits by
its own head. Runs no layer but to measure the scale, and changes nothing of the model.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers.modeling_outputs import BaseModelOutputWithPast

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


def decoder_scale(model: Any, facts: Capabilities) -> float:
    """Return what a decoder multiplies the embeddings of ids by, and not given ones."""
    decoder = getattr(model, facts.decoder)
    ids = torch.arange(4, device=model.device)[None]  # several: that of padding may be zeros

    def read(**tokens: Tensor) -> Tensor:
        hidden: Tensor = decoder(**tokens, use_cache=False).last_hidden_state
        return hidden

    return applied_scale(
        getattr(decoder.config, "embedding_multiplier", None),
        lambda: read(input_ids=ids),
        lambda by: read(inputs_embeds=model.get_input_embeddings()(ids) * by),
    )


def logits(model: Any, facts: Capabilities, hidden: Tensor) -> Tensor:
    """Turn hidden states `[..., H]` into logits `[..., V]` with the model's own head, scale and
    soft cap.
    """
    decoder = _Given(hidden.reshape(1, -1, hidden.shape[-1]), getattr(model, facts.decoder))
    head = copy.copy(model)
    head.__dict__["_modules"] = dict(model._modules) | {facts.decoder: decoder}
    given: dict[str, Any] = {"inputs_embeds": decoder.hidden}
    if facts.encoder:
        given = {"decoder_inputs_embeds": decoder.hidden, "encoder_outputs": (decoder.hidden,)}
    found: Tensor = type(model).forward(head, **given, use_cache=False).logits
    return found.reshape(*hidden.shape[:-1], found.shape[-1])


class _Given(Module):
    """Stands for a decoder whose hidden states are known, so that a model's own head can be applied
    to them.
    """

    def __init__(self, hidden: Tensor, decoder: Any) -> None:
        super().__init__()
        self.hidden = hidden
        self.__dict__["decoder"] = decoder  # not a submodule

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["decoder"], name)  # heads read multipliers off it

    def forward(self, *args: Any, **kwargs: Any) -> "_Hidden":
        return _Hidden(last_hidden_state=self.hidden)


class _Hidden(BaseModelOutputWithPast):
    """A decoder's output of which only the hidden states are known: all else is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
