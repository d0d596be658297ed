"""Weights version: a value that is another once the weights of a model are.

In: a model. Out: something to compare, cheap enough to ask before each use of what was computed
from the weights. It sees weights that are moved, cast, loaded, merged or trained. Computes nothing.
"""

import weakref
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

NUM_SAMPLED = 16  # tensors of which one number is looked at


class WeightsVersion:
    """The version of a model's weights; keeps none of them alive.

    A change in place raises a tensor's own counter. What is written through `.data`, as adapters
    are merged, does not: so one number of some tensors is looked at, too.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._known: list[weakref.ref[Parameter]] = []

    def now(self) -> Hashable:
        """Return the version, for comparisons within this process."""
        found = [one() for one in self._known]
        parameters = [one for one in found if one is not None]
        if not parameters or len(parameters) < len(found):
            parameters = list(self._model.parameters())
            self._known = [weakref.ref(one) for one in parameters]
        plain = [one for one in parameters if _is_plain(one)]
        sampled = plain[:: max(1, len(plain) // NUM_SAMPLED)]
        counts = sum(one._version for one in parameters if not one.is_inference())
        places = tuple((one.dtype, one.data_ptr()) for one in sampled[:1] + sampled[-1:])
        return counts, places, _numbers(sampled)


def _is_plain(parameter: Tensor) -> bool:
    """Return whether a parameter lies whole in this process's memory."""
    is_own = type(parameter) in (Parameter, Tensor)
    return is_own and parameter.device.type != "meta" and parameter.numel() > 0


def _numbers(tensors: Sequence[Tensor]) -> tuple[float, ...]:
    """Return the number in the middle of each tensor, read at once from each device."""
    found: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for one in tensors:
        middle = one.detach()[tuple(size // 2 for size in one.shape)]
        found.setdefault((one.device, one.dtype), []).append(middle)
    with torch.no_grad():
        return tuple(x for same in found.values() for x in torch.stack(same).tolist())
