"""Launch: what a launcher (`accelerate launch`, `torchrun`) says of a run in the environment.

In: variables of the environment. Out: how many processes there are, and which one this is. Imports
no torch, so that the one that speaks for all can say what is wrong before anything slow.
"""

import os

YES = ("1", "true", "yes")


def num_processes() -> int:
    """Return how many processes a launcher has started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Return whether this process writes and speaks for all."""
    return num_processes() == 1 or int(os.environ.get("RANK", "0")) == 0


def is_fsdp_asked_for() -> bool:
    """Return whether the launcher was told to use FSDP (`accelerate launch --use_fsdp`)."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in YES
