"""Grouped attention: a short row reads nothing of a long one's slots, and gets the same ids."""

from typing import Any

import oracle
import pytest
import tiny_models
import torch
from contract import prompt_of
from transformers import FalconConfig, FalconForCausalLM

from foreword import Backbone
from foreword.engine import grouped_attention
from foreword.engine.engine import Engine
from foreword.engine.limits import EngineLimits
from foreword.engine.request import PromptSource, Request

ATTENDING = [family for family in tiny_models.FAMILIES if family != "mamba2"]


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        ([60] * 32, [(0, 32, 60)]),
        ([4000, *[60] * 31], [(0, 1, 4000), (1, 32, 60)]),
        ([*[60] * 31, 4000], [(0, 31, 60), (31, 32, 4000)]),
        ([60, 4000, 60, 60], [(0, 1, 60), (1, 2, 4000), (2, 4, 60)]),
        ([100, 140] * 4, [(0, 8, 140)]),
    ],
)
def test_rows_that_follow_each_other_and_are_alike_make_a_group(
    lengths: list[int], groups: list[tuple[int, int, int]]
) -> None:
    found = grouped_attention.groups_of(lengths)
    assert [(rows.start, rows.stop, width) for rows, width in found] == groups


@pytest.mark.parametrize("family", ATTENDING)
def test_a_short_row_beside_a_long_one_reads_its_own_slots(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouped_attention, "MAX_PADDING", 0)
    shapes = seen_by(monkeypatch)
    engine = Engine(Backbone(tiny_models.shared(family)), EngineLimits(max_rows=4))
    prompt = prompt_of(family, "embeddings", 3)
    asked = [(None, 40), (prompt, 2), (None, 2), (prompt, 7)]
    handles = [
        engine.submit(
            Request(
                tuple(tiny_models.ids(length, seed).tolist()),
                PromptSource.of(own) if own else None,
                max_new_tokens=5,
            )
        )
        for seed, (own, length) in enumerate(asked)
    ]
    engine.run()
    for handle, (own, _) in zip(handles, asked, strict=True):
        ids = torch.tensor(handle.request.ids)
        assert handle.ids == oracle.greedy(tiny_models.shared(family), own, ids, 5)
    assert any(width > 40 for _, width in shapes)
    assert all(num_rows == 1 for num_rows, width in shapes if width > 40)
    assert any(width < 20 for _, width in shapes)


@pytest.mark.parametrize("is_new", [False, True])
def test_a_class_that_looks_at_the_name_of_its_attention_runs_in_one_group(is_new: bool) -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = FalconConfig(
        **shape, num_kv_heads=2 if is_new else 4, new_decoder_architecture=is_new,
        multi_query=False, alibi=False, max_position_embeddings=4096, bos_token_id=1,
        eos_token_id=None, pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    model = FalconForCausalLM(config).double().eval()
    engine = Engine(Backbone(model))
    rows = [tiny_models.ids(length, length) for length in (12, 900)]  # more than MAX_PADDING apart
    handles = [engine.submit(Request(tuple(row.tolist()), None, max_new_tokens=6)) for row in rows]
    engine.run()
    for handle, row in zip(handles, rows, strict=True):
        assert handle.ids == oracle.greedy(model, None, row, 6)


def seen_by(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Note the rows of each group's keys, and how many slots they have."""
    real, shapes = grouped_attention.own_attention, []

    def own_attention(module: Any) -> Any:
        attend = real(module)

        def noted(module: Any, query: Any, key: Any, *given: Any, **options: Any) -> Any:
            shapes.append((key.shape[0], key.shape[2]))
            return attend(module, query, key, *given, **options)

        return noted

    monkeypatch.setattr(grouped_attention, "own_attention", own_attention)
    return shapes
