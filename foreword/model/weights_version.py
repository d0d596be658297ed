"""Weights version: a value that is another once the weights of a model, or what it does, are.

In: a model. Out: something to compare, cheap enough to ask before each use of what was computed
from the weights. It sees tensors that are moved, cast, loaded, trained, merged, added or replaced,
hooks that come and go, and settings of modules, as adapters that are switched. Not single numbers
that are written through `.data`, which no counter of torch knows of, nor what the code of a hook
looks up elsewhere. Computes nothing.
"""

from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

SIMPLE = (bool, int, float, str)
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
# What every module keeps, beside the attributes of its own.
KEPT_BY_ALL = frozenset(vars(Module())) - {"training"}


class WeightsVersion:
    """The version of a model's parameters and buffers; keeps none of them alive.

    A change in place raises a tensor's own counter. What is written through `.data`, as adapters
    are merged, does not: so one number of each tensor is looked at, too.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._pinned: Hashable = None

    def now(self) -> Hashable:
        """Return the version, for comparisons within this process."""
        if self._pinned is not None:
            return self._pinned
        found = [*self._model.parameters(), *self._model.buffers()]
        counts = [0 if one.is_inference() else one._version for one in found]
        plain = [one for one in found if _is_plain(one)]
        places = [one.data_ptr() for one in plain]
        return (*map(id, found), *counts, *places, *_numbers(plain), *_settings(self._model))

    def pin(self) -> None:
        """Take the weights for unchanged from now on, whatever happens to their tensors."""
        self._pinned = self.now()


def _is_plain(one: Tensor) -> bool:
    """Return whether a tensor lies whole in this process's memory."""
    is_own = type(one) in (Parameter, Tensor)
    return is_own and one.layout == torch.strided and one.device.type != "meta" and one.numel() > 0


def _numbers(tensors: Iterable[Tensor]) -> list[str]:
    """Return the dtype of each tensor and the number in its middle, read at once from a device."""
    found: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    with torch.no_grad():
        for one in tensors:
            middle = one[tuple([size // 2 for size in one.shape])]
            found.setdefault((one.device, one.dtype), []).append(middle)
        return [f"{kind} {torch.stack(same).tolist()}" for kind, same in found.items()]


def _settings(model: Module) -> Iterator[Hashable]:
    """Yield each module's hooks, and what of its own attributes is a number, a flag or a name."""
    for module in model.modules():
        own = vars(module)
        for name in HOOKS:
            yield from own[name]  # their numbers, which are given once
        if "forward" in own:
            yield id(own["forward"])
        for name, value in own.items():
            if name in KEPT_BY_ALL:
                continue
            if type(value) in SIMPLE:
                yield value
            elif _is_list_of_settings(value):
                yield str(value)


def _is_list_of_settings(value: Any) -> bool:
    if type(value) not in (list, tuple, set, dict):
        return False
    parts = (*value, *value.values()) if type(value) is dict else value
    return all(type(one) in SIMPLE for one in parts)
