"""Compiled layers (`--compile-layers`): a view of a backbone whose layers torch.compile has made.

In: a backbone. Out: another one over the same weights. Layers of one kind share one compiled
program; rows of other lengths may cost another. The user's model is neither patched nor switched.
"""

import warnings
from typing import Any

import torch
from torch.nn import Module

from foreword.backbone import Backbone
from foreword.training.gradient_checkpointing import WrappedLayer, with_layers

BACKEND = "inductor"


def with_compiled_layers(backbone: Backbone) -> Backbone:
    """Return a view of a backbone whose layers are compiled when they first run.

    Raises:
        UnsupportedError: the decoder's layers are not found as one list.
    """
    return with_layers(backbone, _CompiledLayer)


class _CompiledLayer(WrappedLayer):
    """A layer that runs as torch's compiler made it."""

    def __init__(self, layer: Module) -> None:
        super().__init__(layer)
        self.__dict__["run"] = torch.compile(layer, backend=BACKEND, dynamic=True)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            # The compiler itself looks for gradients where autograd keeps none.
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not")
            return self.__dict__["run"](*args, **kwargs)
