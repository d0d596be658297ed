"""Sampling in training: the numbers of a step's own draws, and rows with the answers drawn.

In: a seed, a step, a process. Out: draws that these alone decide, while the process's own numbers
stay as they were; the answers of all processes, given those of one. Knows no model.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from foreword.data.row import Row
from foreword.training.distributed import Ranks

STRIDE = 1 << 20  # between the seeds of two steps: more than there are processes


def question(row: Row) -> tuple[int, ...]:
    """Return the ids of a row before its labels."""
    return row.input_ids[: -row.num_labels]


def with_answer(row: Row, ids: Sequence[int]) -> Row:
    """Return a row with another answer, of which no teacher has said anything."""
    whole = (*question(row), *ids)
    return replace(row, input_ids=whole, num_labels=len(ids), target=None)


@contextlib.contextmanager
def drawing_from(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from a seed, and leave the process's numbers as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def seed_of(seed: int, step: int, ranks: Ranks) -> int:
    """Return the seed of what a process draws at a step of a run."""
    return seed + STRIDE * (step + 1) + ranks.rank


def shared(
    answers: Mapping[int, Sequence[int]], count: int, longest: int, ranks: Ranks
) -> dict[int, tuple[int, ...]]:
    """Return the answers of all processes, given those of one.

    Args:
        answers: ids of this process's, by their number.
        count: of all answers.
        longest: number of ids that one may have.
        ranks: the processes.
    """
    table = torch.zeros(count, longest + 1, dtype=torch.float64, device="cpu")
    for number, ids in answers.items():
        table[number, 0] = len(ids)
        table[number, 1 : len(ids) + 1] = torch.tensor(ids, dtype=torch.float64, device="cpu")
    ranks.add_up([table])
    lines = [[int(value) for value in line] for line in table.tolist()]
    return {n: tuple(line[1 : line[0] + 1]) for n, line in enumerate(lines) if line[0]}
