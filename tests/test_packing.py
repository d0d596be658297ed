"""Rows in one line: the gradient is that of one row at a time, wherever a line is used."""

from collections.abc import Callable

import pytest
import tiny_models
from test_training import check_gradient

from foreword import Backbone, Row, recomputation
from foreword.packing import packed


def row(length: int, answer: int, seed: int = 0) -> Row:
    ids = tiny_models.ids(length, seed=seed).tolist()
    return Row.from_ids(ids[:-answer], ids[-answer:])


EVEN = [row(9, 2, seed) for seed in range(4)]
MIXED = [row(*sizes) for sizes in ((12, 3, 1), (4, 3, 2), (12, 1, 3), (5, 2, 4), (12, 3, 5))]
# Learned biases of positions or masks of their own; recurrent layers are none of a line's business.
UNPACKED = ("llama4", *tiny_models.RECURRENT)
WIDE = ("gpt2", "gemma3n")  # whose last layer cannot be run for a few tokens
PACKED = tuple(name for name in tiny_models.FAMILIES if name not in UNPACKED)


def packed_and_recomputed(backbone: Backbone) -> Backbone:
    return packed(recomputation.recomputing(backbone))


@pytest.mark.parametrize("form", ["embeddings", "key_values"])
@pytest.mark.parametrize("family", PACKED)
def test_gradient_of_a_line_equals_the_concatenated_form(family: str, form: str) -> None:
    for rows, size in ((MIXED, 5), (EVEN, 2)):
        backbone = check_gradient(family, form, size, packed, rows)
        assert backbone.lining.is_narrow == (family not in WIDE)


@pytest.mark.parametrize("change", [packed, packed_and_recomputed])
@pytest.mark.parametrize("form", ["embeddings", "key_values"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
def test_gradient_of_lines_adds_up_over_passes(
    family: str, form: str, change: Callable[[Backbone], Backbone]
) -> None:
    for rows in (MIXED, EVEN):
        for size in (len(rows), 3, 1):
            assert check_gradient(family, form, size, change, rows).lining is not None
