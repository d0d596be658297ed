"""Output head: hidden states to logits, by the model's own head, scale and soft cap.

In: a transformers model, hidden states `[..., H]`. Out: logits `[..., V]`. Runs no layer, changes
nothing of the model, and knows no prompt.
"""

import copy
from typing import Any

from torch import Tensor
from torch.nn import Module

from foreword.compat.transformers_api import (
    BaseModelOutput,
    BaseModelOutputWithPast,
    PreTrainedModel,
)
from foreword.model.capabilities import Capabilities


def logits(model: Any, capabilities: Capabilities, hidden: Tensor) -> Tensor:
    """Turn hidden states `[..., H]` into logits `[..., V]` with the model's own head, scale and
    soft cap.
    """
    decoder = _Given(hidden.reshape(1, -1, hidden.shape[-1]), getattr(model, capabilities.decoder))
    head = copy.copy(model)
    head.__dict__["_modules"] = dict(model._modules) | {capabilities.decoder: decoder}
    given: dict[str, Any] = {"inputs_embeds": decoder.hidden}
    if capabilities.encoder:
        output = BaseModelOutput(last_hidden_state=decoder.hidden)
        given = {"decoder_inputs_embeds": decoder.hidden, "encoder_outputs": output}
    found: Tensor = type(model).forward(head, **given, use_cache=False).logits
    return found.reshape(*hidden.shape[:-1], found.shape[-1])


class _Given(Module):
    """Stands for a decoder whose hidden states are known, so that a model's own head can be applied
    to them.
    """

    def __init__(self, hidden: Tensor, decoder: Any) -> None:
        super().__init__()
        self.hidden = hidden
        self.__dict__["_own"] = decoder  # not a submodule

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.__dict__["_own"], name)  # heads look multipliers up there
        # Some heads run the layers below this module: it stands for them, too.
        return self if isinstance(found, PreTrainedModel) else found

    def forward(self, *args: Any, **kwargs: Any) -> "_Hidden":
        return _Hidden(last_hidden_state=self.hidden)


class _Hidden(BaseModelOutputWithPast):
    """A decoder's output of which only the hidden states are known: all else is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
