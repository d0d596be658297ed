"""Random draws: from a seed of one's own, without touching those of the process.

In: a seed, a device. Out: a context in which torch draws from it. Draws nothing.
"""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def drawing_from(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from a seed, and leave the process's numbers as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
