"""Validation split: some of the examples set aside, with none that says the same on both sides.

In: examples, a share and a seed. Out: two lists in the order given. Knows no files.
"""

import json
import random
from collections.abc import Sequence

from foreword.data.example import Example
from foreword.errors import DataError


def split_examples(
    examples: Sequence[Example], share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Set about `share` of the examples aside; identical prompts stay on the same side, as do the
    answers of one conversation, and the rest keeps some of every task.

    Returns:
        the larger rest and the examples set aside, each in the order given and neither empty.

    Raises:
        DataError: the share is not between 0 and 1, or there are fewer than two different prompts.
    """
    if not 0 < share < 1:
        raise DataError(f"the share to set aside must be between 0 and 1, got {share}")
    groups = _groups(examples)
    if len(groups) < 2:
        raise DataError(
            f"expected at least 2 different prompts to split, found {len(groups)} in "
            f"{len(examples)} rows: add rows, or give validation rows as a file of their own"
        )
    target = min(round(share * len(examples)), len(examples) - 1)
    free = _beside_one_of_each_task(groups, examples)
    aside = _draw(free, target, seed)
    return (
        [example for index, example in enumerate(examples) if index not in aside],
        [example for index, example in enumerate(examples) if index in aside],
    )


def _groups(examples: Sequence[Example]) -> list[list[int]]:
    """Return the indices that stay together, each group in order."""
    first: dict[str, int] = {}
    leader = list(range(len(examples)))

    def root(index: int) -> int:
        while leader[index] != index:
            leader[index] = index = leader[leader[index]]
        return index

    for index, example in enumerate(examples):
        prompt = json.dumps(example.prompt, sort_keys=True, default=str)
        shared = [f"conversation {example.conversation}"] if example.conversation else []
        for key in (f"prompt {prompt}", *shared):
            leader[root(index)] = root(first.setdefault(key, index))
    groups: dict[int, list[int]] = {}
    for index in range(len(examples)):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())


def _beside_one_of_each_task(
    groups: list[list[int]], examples: Sequence[Example]
) -> list[list[int]]:
    """Return the groups that may be set aside: all, but for the first of each task."""
    firsts: dict[str, int] = {}
    for number, group in enumerate(groups):
        for index in group:
            firsts.setdefault(examples[index].task, number)
    if set(firsts) == {""}:
        return groups
    free = [group for number, group in enumerate(groups) if number not in firsts.values()]
    if not free:
        raise DataError(
            f"expected 2 different prompts of some task to split, found one of each of "
            f"{len(firsts)}: add rows, or give validation rows as a file of their own"
        )
    return free


def _draw(groups: list[list[int]], target: int, seed: int) -> set[int]:
    """Indices of random groups that fit in `target`; the smallest group if none does."""
    random.Random(seed).shuffle(groups)
    drawn: set[int] = set()
    for group in groups:
        if len(drawn) + len(group) <= target:
            drawn.update(group)
    smallest: list[int] = min(groups, key=len)
    return drawn or set(smallest)
