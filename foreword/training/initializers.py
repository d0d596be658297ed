"""Initializers: the first values of a prompt, as pure functions of an embedding table `[V, H]`.

In: the table as the model applies it (scale included), ids, a seed. Out: embeddings `[P, H]`. Never
off the table's own scale: a start far from it costs most of the quality (PEFT's own benchmark: 23 %
against 34 %).
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from foreword.errors import InputError

NUM_COLUMNS = 1024  # of the table that are in float32 at once


def random_embeddings(table: Tensor, num_virtual: int, generator: torch.Generator) -> Tensor:
    """Draw `[P, H]` from a normal distribution with the mean and deviation of each column of the
    table.
    """
    noise = torch.randn(num_virtual, table.shape[1], generator=generator, device="cpu")
    mean, deviation = _moments(table)
    return mean.cpu() + noise * deviation.cpu()


def _moments(table: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each column `[H]` in float32, whatever the table's dtype."""
    parts = table.split(NUM_COLUMNS, dim=1)  # never the whole table in float32
    found = [(wide.mean(0), wide.std(0)) for part in parts for wide in [part.float()]]
    mean, deviation = (torch.cat(side) for side in zip(*found, strict=True))
    return mean, deviation


def vocabulary_embeddings(table: Tensor, num_virtual: int, generator: torch.Generator) -> Tensor:
    """Sample `[P, H]` rows of the table, without repetition while they last."""
    order = torch.randperm(table.shape[0], generator=generator, device="cpu")
    return (
        table[order[torch.arange(num_virtual, device="cpu") % len(order)].to(table.device)]
        .float()
        .cpu()
    )


def label_embeddings(
    table: Tensor, answers: Sequence[Sequence[int]], num_virtual: int, generator: torch.Generator
) -> Tensor:
    """Return `[P, H]`: the mean embedding of each different answer's own tokens, then sampled rows.

    What all answers end with is no part of them. Lester et al. 2021 (arXiv:2104.08691), section
    3.2.

    Raises:
        InputError: more different answers than P.
    """
    different = list(dict.fromkeys(tuple(answer) for answer in answers))
    if len(different) > num_virtual:
        raise InputError(
            f"--init labels: {len(different)} different answers and {num_virtual} virtual tokens: "
            "answers that differ so much are no classes; use --init text"
        )
    if len(different) > 1:
        different = [answer[: len(answer) - _num_shared(different)] for answer in different]
    rows = [
        table[torch.tensor(answer, device="cpu")].float().mean(0).cpu()
        for answer in different
        if answer
    ]
    rest = vocabulary_embeddings(table, num_virtual, generator)[: num_virtual - len(rows)]
    return torch.cat([*(row[None] for row in rows), rest])


def _num_shared(answers: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all answers end with, and each of them has another before."""
    backwards = zip(*(reversed(answer) for answer in answers), strict=False)
    most = max(min(map(len, answers)) - 1, 0)
    return next((n for n, ids in enumerate(backwards) if len(set(ids)) > 1 or n == most), most)


def demonstrations(
    rows: Sequence[Sequence[int]],
    num_virtual: int,
    are_akin: Callable[[int, int], bool] = lambda index, other: False,
) -> list[tuple[int, int]]:
    """Choose rows to put one after another as the P virtual tokens: the first that fit, whole, none
    of which is akin to another.

    What is left before them is filled with the end of the next rows, their answers, cut at the
    start.

    Args:
        rows: ids.
        num_virtual: P.
        are_akin: whether one of two rows, by their places, shows what the other is to say.

    Returns:
        for each virtual token the row and the position in it.

    Raises:
        InputError: no row fits whole.
    """
    chosen: list[list[tuple[int, int]]] = []
    left, used = num_virtual, list[int]()

    def is_new(index: int) -> bool:
        return not any(are_akin(index, other) for other in used)

    for index, row in enumerate(rows):
        if len(row) <= left and is_new(index):
            chosen.append([(index, position) for position in range(len(row))])
            left -= len(row)
            used.append(index)
    if not chosen:
        shortest = min(map(len, rows), default=0)
        raise InputError(
            f"--init demonstrations: the shortest row has {shortest} tokens and does not fit into "
            f"{num_virtual} virtual tokens: raise --num-virtual-tokens"
        )
    others = [index for index in range(len(rows)) if index not in used]
    others = [index for index in others if is_new(index)] or others or list(range(len(rows)))
    for index in itertools.cycle(others):
        if not left:
            break
        size = min(left, len(rows[index]))
        start = len(rows[index]) - size
        chosen.insert(0, [(index, position) for position in range(start, start + size)])
        left -= size
    return [place for part in chosen for place in part]


def fit_ids(ids: list[int], num_virtual: int) -> list[int]:
    """Repeat or cut a text's ids to exactly P of them.

    Raises:
        InputError: the text has no ids.
    """
    if not ids:
        raise InputError("--init-text has no tokens; give a sentence that describes the task")
    return [ids[index % len(ids)] for index in range(num_virtual)]
