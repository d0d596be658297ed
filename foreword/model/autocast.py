"""Autocast: the precision in which a caller lets torch compute, which holds for its thread alone.

In: a kind of device. Out: that precision, and a context that lets another thread compute in it.
Knows no model.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def precision(kind: str) -> torch.dtype | None:
    """Return the precision that an autocast around the call asks for; None: there is none.

    Args:
        kind: of the device, as "cuda".
    """
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def carried(kind: str) -> AbstractContextManager[Any]:
    """Return a context in which another thread computes as the calling one does now.

    Args:
        kind: of the device, as "cuda".
    """
    dtype = precision(kind)
    if dtype is None:
        return nullcontext()
    return torch.autocast(kind, dtype, cache_enabled=torch.is_autocast_cache_enabled())
