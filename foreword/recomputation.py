"""A view of a backbone whose layers are computed again on the way back, instead of being kept.

In: a backbone. Out: another one over the same weights, whose decoder keeps each layer's input
alone. The user's model is neither patched nor switched: the view has its own list of layers. Exact
because the caches of a training pass store nothing: a layer that runs twice sees the same.
"""

import copy
from typing import Any

from torch.nn import Module, ModuleList
from torch.utils.checkpoint import checkpoint

from foreword.backbone import Backbone
from foreword.errors import UnsupportedError


def recomputing(backbone: Backbone) -> Backbone:
    """Return a view of a backbone that trades a second forward pass for the memory of activations.

    Raises:
        UnsupportedError: the decoder's layers are not found as one list.
    """
    view = copy.copy(backbone)
    view.model = _with_child(
        backbone.model, backbone.capabilities.decoder, _recomputing_decoder(backbone.decoder)
    )
    return view


def _recomputing_decoder(decoder: Any) -> Any:
    name = layers_name(decoder)
    layers = ModuleList([_Recomputed(layer) for layer in getattr(decoder, name)])
    return _with_child(decoder, name, layers)


def layers_name(decoder: Any) -> str:
    """Return the attribute under which a decoder keeps its layers as one list.

    Raises:
        UnsupportedError: there is no such list.
    """
    num_layers = decoder.config.num_hidden_layers
    names = [
        name
        for name, child in decoder.named_children()
        if isinstance(child, ModuleList) and len(child) == num_layers
    ]
    if len(names) != 1:
        raise UnsupportedError(
            f"{type(decoder).__name__}: its {num_layers} layers are not one list, so they cannot "
            "be taken one by one; train without --gradient-checkpointing and without FSDP"
        )
    return str(names[0])


def _with_child(module: Any, name: str, child: Module) -> Any:
    """Return a shallow copy of a module with one child exchanged."""
    view = copy.copy(module)
    view.__dict__["_modules"] = dict(module._modules) | {name: child}
    return view


class _Recomputed(Module):
    """A layer that keeps its inputs and is run again when its gradient is asked for."""

    def __init__(self, layer: Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(self.layer, *args, use_reentrant=False, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)
