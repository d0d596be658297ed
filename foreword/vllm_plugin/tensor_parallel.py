"""Tensor parallelism: which part of a key/value prompt one worker keeps, and in which slots.

In: a prompt's keys and values, the worker's rank, its layers' names, its block table. Out: slices
and slots. Heads are divided over tensor-parallel ranks as vLLM divides them; a pipeline stage has
the layers that it names. Knows torch, and nothing of vLLM.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from foreword.errors import MismatchError
from foreword.prompt.narrowing import narrowed
from foreword.prompt.states import KeyValues


def heads_of(num_heads: int, num_ranks: int, rank: int) -> slice:
    """Return the key heads that a rank computes; where there are fewer heads, ranks share one.

    Raises:
        MismatchError: heads and ranks that do not divide.
    """
    if num_heads % num_ranks and num_ranks % num_heads:
        raise MismatchError(
            f"{num_heads} key heads cannot be divided over {num_ranks} tensor-parallel ranks"
        )
    if num_heads >= num_ranks:
        count = num_heads // num_ranks
        return slice(rank * count, (rank + 1) * count)
    head = rank // (num_ranks // num_heads)
    return slice(head, head + 1)


def layer_index(name: str) -> int:
    """Return the number of a layer in the whole model, as in "model.layers.3.self_attn.attn".

    Raises:
        MismatchError: no number in the name, or several.
    """
    numbers = [int(word) for word in name.split(".") if word.isdecimal()]
    if len(numbers) != 1:
        raise MismatchError(f"{name}: expected one number, which says which layer it is")
    return numbers[0]


def part_of(
    key_values: KeyValues, layers: Iterable[int], heads: slice, dtype: torch.dtype
) -> dict[int, tuple[Tensor, Tensor]]:
    """Return the layers' keys and values as the KV cache takes them, `[P, N of the rank, D]`.

    Raises:
        MismatchError: the prompt has no such layer.
        InputError: numbers that the cache's dtype does not hold.
    """
    found = {}
    for layer in layers:
        if layer >= len(key_values):
            raise MismatchError(
                f"the prompt has {len(key_values)} layers, the model has layer {layer}; it is for "
                "another base"
            )
        keys, values = (
            narrowed(side[heads].transpose(0, 1).detach(), dtype, "the KV cache").contiguous()
            for side in key_values[layer]
        )
        found[layer] = keys, values
    return found


def slots_of(block_ids: Sequence[int], block_size: int, start: int, stop: int) -> Tensor:
    """Return the slots of positions `start..stop-1`, int64 `[stop - start]`."""
    positions = torch.arange(start, stop)
    blocks = torch.tensor(block_ids, dtype=torch.int64)
    return blocks[positions // block_size] * block_size + positions % block_size


def blocks_of(block_ids: Sequence[int], block_size: int, start: int, stop: int) -> set[int]:
    """Return the blocks that hold positions `start..stop-1`."""
    return set(block_ids[start // block_size : -(-stop // block_size)])
