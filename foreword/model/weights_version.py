"""Weights version: a value that is another once the weights of a model are.

In: a model. Out: something to compare, cheap enough to ask before each use of what was computed
from the weights. It sees weights that are moved, cast, loaded, merged or trained. Computes nothing.
"""

import weakref
from collections.abc import Hashable, Iterable
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
        self._look()

    def now(self) -> Hashable:
        """Return the version, for comparisons within this process."""
        try:
            return self._now()
        except LookupError:  # some are gone: other ones are in their place
            self._look()
            return self._now()

    def _now(self) -> Hashable:
        counts = sum([_alive(one)._version for one in self._counted])
        sampled = [_alive(one) for one in self._sampled]
        places = tuple((one.dtype, one.data_ptr()) for one in sampled)
        return len(self._counted), counts, places, _numbers(sampled)

    def _look(self) -> None:
        """Find the parameters as they are now."""
        found = list(self._model.parameters())
        plain = [one for one in found if _is_plain(one)]
        self._counted = [weakref.ref(one) for one in found if not one.is_inference()]
        self._sampled = [weakref.ref(one) for one in plain[:: max(1, len(plain) // NUM_SAMPLED)]]


def _alive(known: "weakref.ref[Parameter]") -> Any:
    """Return a parameter.

    Raises:
        LookupError: it is gone.
    """
    if (found := known()) is None:
        raise LookupError
    return found


def _is_plain(parameter: Tensor) -> bool:
    """Return whether a parameter lies whole in this process's memory."""
    is_own = type(parameter) in (Parameter, Tensor)
    return is_own and parameter.device.type != "meta" and parameter.numel() > 0


def _numbers(tensors: Iterable[Tensor]) -> tuple[str, ...]:
    """Return the number in the middle of each tensor, read at once from each device."""
    found: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    with torch.no_grad():
        for one in tensors:
            middle = one[tuple([size // 2 for size in one.shape])]
            found.setdefault((one.device, one.dtype), []).append(middle)
        return tuple(str(torch.stack(same).tolist()) for same in found.values())  # NaN is NaN
