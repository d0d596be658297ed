"""Gradient checkpointing: a view of a backbone whose layers run again on the way back.

In: a backbone. Out: another one over the same weights, whose decoder keeps each layer's input
alone. The user's model is neither patched nor switched: the view has its own list of layers. Exact
because the caches of a training pass store nothing: a layer that runs twice sees the same.
"""

import contextvars
import copy
from collections.abc import Callable
from typing import Any

from torch.nn import Module, ModuleList
from torch.utils.checkpoint import checkpoint

from foreword.backbone import Backbone
from foreword.compat import transformers_api
from foreword.errors import UnsupportedError


def with_gradient_checkpointing(backbone: Backbone) -> Backbone:
    """Return a view of a backbone that trades a second forward pass for the memory of activations.

    Raises:
        UnsupportedError: the decoder's layers are not found as one list.
    """
    return with_layers(backbone, CheckpointedLayer)


def with_layers(backbone: Backbone, wrap: Callable[[Module], Module]) -> Backbone:
    """Return a view of a backbone whose decoder has other layers, each made of its own.

    Raises:
        UnsupportedError: the decoder's layers are not found as one list.
    """
    decoder = backbone.decoder
    path = _path_of_layers(decoder).split(".")
    child = _with_layers(decoder, path, wrap)
    model = _with_child(backbone.model, backbone.capabilities.decoder, child)
    return backbone.with_passes(backbone.passes.over(model))


def _with_layers(module: Any, path: list[str], wrap: Callable[[Module], Module]) -> Any:
    child = getattr(module, path[0])
    if len(path) > 1:
        return _with_child(module, path[0], _with_layers(child, path[1:], wrap))
    return _with_child(module, path[0], ModuleList([wrap(layer) for layer in child]))


def layers_of(decoder: Any) -> Any:
    """Return a decoder's layers, a list.

    Raises:
        UnsupportedError: there is no such list.
    """
    return decoder.get_submodule(_path_of_layers(decoder))


def _path_of_layers(decoder: Any) -> str:
    """Return where a decoder keeps its layers: beside its embeddings, or those of its text part."""
    num_layers = decoder.config.get_text_config(decoder=True).num_hidden_layers
    embeddings = decoder.get_input_embeddings()
    paths = [
        f"{path}.{name}".lstrip(".")
        for path, module in decoder.named_modules()
        if any(child is embeddings for child in module.children())
        for name, child in module.named_children()
        if isinstance(child, ModuleList) and len(child) == num_layers
    ]
    if len(paths) != 1:
        raise UnsupportedError(
            f"{type(decoder).__name__}: its {num_layers} layers are not one list, so they cannot "
            "be taken one by one; train without --gradient-checkpointing and without FSDP"
        )
    return paths[0]


def _with_child(module: Any, name: str, child: Module) -> Any:
    """Return a shallow copy of a module with one child exchanged."""
    view = copy.copy(module)
    view.__dict__["_modules"] = dict(module._modules) | {name: child}
    return view


class WrappedLayer(Module):
    """A layer inside another module, which shows the layer's own attributes."""

    def __init__(self, layer: Module) -> None:
        super().__init__()
        self.layer, self.training = layer, layer.training

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)


class CheckpointedLayer(WrappedLayer):
    """A layer that keeps its inputs and is run again when its gradient is asked for."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        is_grouped, context = transformers_api.are_heads_grouped(), contextvars.copy_context()

        def run(*args: Any, **kwargs: Any) -> Any:
            with transformers_api.grouped_heads(is_grouped):  # on the way back, too
                return context.run(self.layer, *args, **kwargs)

        return checkpoint(run, *args, use_reentrant=False, **kwargs)
