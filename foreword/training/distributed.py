"""Distributed data parallel: the processes of one run, their rows, and the one sum they share.

In: what a launcher (`accelerate launch`, `torchrun`) says in the environment. Out: `Ranks`, which
shares rows out and adds tensors up. Every process knows all rows and takes the same decisions, so
nothing but the prompt's gradient and a few numbers is ever sent. Knows no model and no prompt.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from foreword.compat.error_lines import telling_line
from foreword.errors import InputError, TrainingError
from foreword.training import launch

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: this process, from 0.
        size: how many there are.
        device: where tensors that are added up must lie.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def micro_batches(self, rows: Sequence[T], size: int) -> list[list[T]]:
        """Cut this process's share of rows into micro-batches of at most `size` rows.

        Every process has as many as the others, for a sharded model computes in step; where a
        process has no rows left, they are empty.
        """
        longest = -(-len(rows) // self.size)
        mine = list(rows[self.rank :: self.size])
        return [mine[start : start + size] for start in range(0, longest, size)]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in one message.

        Raises:
            TrainingError: another process has died.
        """
        if self.size == 1:
            return
        flat = torch.cat([tensor.detach().flatten().to(self.device) for tensor in tensors])
        try:
            torch.distributed.all_reduce(flat)
        except RuntimeError as error:
            reason = re.sub(r"^\[.*?\] *", "", telling_line(error)).partition(". ")[0]
            raise TrainingError(
                f"process {self.rank} of {self.size} lost another one of them ({reason}); see "
                "what that one said last, then go on with --resume"
            ) from error
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def is_any(self, flag: bool) -> bool:
        """Return whether a flag is set in any process."""
        found = torch.tensor([float(flag)], device="cpu")
        self.add_up([found])
        return bool(found.item())

    def check_alike(self, what: str) -> None:
        """Refuse to begin where processes have been given different things.

        Args:
            what: all that they must have in common, in words; it is compared by hash.

        Raises:
            InputError: they differ.
        """
        number = int(hashlib.sha256(what.encode()).hexdigest()[:6], 16)
        total = torch.tensor([number, number**2], dtype=torch.float64, device="cpu")
        self.add_up([total])
        if total.tolist() != [self.size * number, self.size * number**2]:
            raise InputError(
                f"the {self.size} processes of the run differ in data, options or training state; "
                "give all the same command, and an --output that all of them see"
            )


ALONE = Ranks()


def join() -> Ranks:
    """Join the other processes of a launcher's run; alone, be the only one."""
    if launch.num_processes() == 1 and not _is_joined():
        return ALONE
    from accelerate import PartialState

    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in launch.YES
    state = PartialState(cpu=asked or not torch.accelerator.is_available())
    return Ranks(state.process_index, state.num_processes, state.device)


def leave(ranks: Ranks) -> None:
    """Wait for the others and part: a process that ends while another sends may take it along."""
    if ranks.size > 1:
        ranks.is_any(False)
        torch.distributed.destroy_process_group()


def _is_joined() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
