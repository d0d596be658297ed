"""Rows in one line: the gradient is that of one row at a time, wherever a line is used."""

import dataclasses
import functools
from collections.abc import Callable

import pytest
import tiny_models
import torch
from test_training import FAST, check_gradient

from foreword import Backbone, Row, SoftPrompt, train
from foreword.data.batches import collate
from foreword.model.capabilities import Modality
from foreword.prompt.prefix import Prefix, PrefixBatch, no_prefixes, same_prefix
from foreword.prompt.states import Unread
from foreword.training import batches, gradient_checkpointing
from foreword.training.packing import packed_backbone
from foreword.training.packing.packed_backbone import packed
from foreword.training.validation import validate


def row(length: int, answer: int, seed: int = 0) -> Row:
    ids = tiny_models.ids(length, seed=seed).tolist()
    return Row.from_ids(ids[:-answer], ids[-answer:])


EVEN = [row(9, 2, seed) for seed in range(4)]
MIXED = [row(*sizes) for sizes in ((12, 3, 1), (4, 3, 2), (12, 1, 3), (5, 2, 4), (12, 3, 5))]
# Queries scaled by their slot; states that every token before has changed.
UNPACKED = ("llama4", *tiny_models.RECURRENT)
WIDE = ("gpt2", "gemma3n")  # whose last layer cannot be run for a few tokens
PACKED = tuple(name for name in tiny_models.FAMILIES if name not in UNPACKED)


def packed_and_recomputed(backbone: Backbone) -> Backbone:
    return packed(gradient_checkpointing.recomputing(backbone))


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
            assert check_gradient(family, form, size, change, rows).lining.is_narrow


@pytest.mark.parametrize("family", UNPACKED)
def test_what_cannot_be_in_a_line_stays_in_batches(family: str) -> None:
    backbone = Backbone(tiny_models.shared(family))
    assert packed(backbone) is backbone


def test_attention_that_is_not_asked_by_name_stays_in_batches() -> None:
    model = tiny_models.build("llama")
    layer = model.model.layers[1].self_attn
    layer.forward = functools.partial(type(layer).forward, layer)  # as hooks of accelerate do
    backbone = Backbone(model)
    assert packed(backbone) is backbone


def test_layers_that_look_at_their_neighbours_stay_in_batches() -> None:
    model = tiny_models.build("llama")
    model.model.layers[1].mlp.register_forward_hook(lambda *given: given[2].cumsum(1))
    backbone = Backbone(model)
    assert packed(backbone) is backbone


def test_a_last_layer_that_looks_at_its_neighbours_runs_whole() -> None:
    model = tiny_models.build("llama")
    norm = model.model.norm
    norm.register_forward_hook(lambda module, args, output: output + output.shape[1] * 1e-2)
    found = packed(Backbone(model))
    assert found.lining is None, "it tells a line from a batch"


def test_no_padding_is_computed_and_the_last_layer_computes_labels_alone() -> None:
    model = tiny_models.build("llama")
    sizes: list[tuple[int, ...]] = []
    backbone = packed(Backbone(model))
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape))
    embeddings = tiny_models.embeddings(model, 6)
    prefix = Prefix(Unread.of(embeddings), "")
    states, labels, rows = backbone.label_states(same_prefix(prefix, 5), collate(MIXED, 0))
    num_tokens, num_labels = 6 + sum(len(row.input_ids) for row in MIXED), 12
    assert sizes == [(1, num_tokens, 32)] * 2 + [(1, num_labels, 32)]
    assert states.shape == (num_labels, 32)
    assert rows.bincount().tolist() == [row.num_labels for row in MIXED]
    for index, row in enumerate(MIXED):
        assert labels[rows == index].tolist() == list(row.input_ids[-row.num_labels :])


def test_rows_behind_different_prompts_or_none_stay_in_batches() -> None:
    plain = Backbone(tiny_models.shared("llama"))
    backbone, batch = packed(plain), collate(EVEN, 0)
    first, second = (
        plain.compile(SoftPrompt.from_embeddings(tiny_models.embeddings(plain.model, 6, seed=s)))
        for s in (0, 1)
    )
    mixed = PrefixBatch((first, first, second, second))
    hidden = torch.ones(4, 6, dtype=torch.bool).triu(3)
    for prefixes in (mixed, no_prefixes(4), PrefixBatch((first,) * 4, hidden)):
        assert backbone.lining.label_states(prefixes, batch) is None
        found, expected = (b.label_states(prefixes, batch)[0] for b in (backbone, plain))
        assert torch.equal(found, expected)


def test_the_model_is_left_alone() -> None:
    model = tiny_models.build("gemma3")
    before = [(id(part), dict(vars(part))) for part in model.modules()]
    settings = model.config.to_dict(), model.config._attn_implementation
    backbone = packed(Backbone(model))
    assert backbone.lining is not None
    assert [(id(part), dict(vars(part))) for part in model.modules()] == before
    assert (model.config.to_dict(), model.config._attn_implementation) == settings


@pytest.mark.parametrize("form", ["embeddings", "key_values"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_run_in_lines_comes_to_the_same_as_one_in_batches(
    form: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = Backbone(tiny_models.with_exact_norms(tiny_models.build("gemma3")))
    config = dataclasses.replace(
        FAST, form=form, num_steps=5, batch_size=3, eval_every=2, seed=3,
        gradient_checkpointing=checkpointing,
    )  # fmt: skip
    ours, again = (list(train(backbone, MIXED, config, validation=EVEN)) for _ in range(2))
    assert ours[-1].prompt.content_hash == again[-1].prompt.content_hash
    monkeypatch.setattr(packed_backbone, "packed", lambda backbone: backbone)
    theirs = list(train(backbone, MIXED, config, validation=EVEN))
    for mine, other in zip(ours, theirs, strict=True):  # a float32 optimizer between the steps
        assert mine.loss == pytest.approx(other.loss, rel=1e-7)
        assert mine.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-7)
    assert ours[-1].validation.loss == pytest.approx(theirs[-1].validation.loss, rel=1e-7)
    assert ours[-1].validation.exact == theirs[-1].validation.exact


def test_a_base_in_bfloat16_is_passed_in_lines() -> None:
    backbone = packed(Backbone(tiny_models.build("llama", dtype=torch.bfloat16)))
    assert backbone.lining is not None
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, 6))
    result = validate(backbone, prompt, MIXED, 3)
    plain = validate(Backbone(backbone.model), prompt, MIXED, 3)
    assert result.loss == pytest.approx(plain.loss, rel=2e-2)


@pytest.mark.parametrize(("num_virtual", "most", "size"), [(100, 8, 8), (20, 16, 8), (200, 64, 8)])
def test_a_pass_holds_all_rows_where_a_line_takes_half_the_memory(
    num_virtual: int, most: int, size: int
) -> None:
    plain = Backbone(tiny_models.shared("llama"))
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(plain.model, num_virtual))
    rows = [row(64, 8, seed) for seed in range(3)]
    assert batches.default_size(packed(plain), rows, most, prompt) == size
    assert batches.default_size(plain, rows, most, prompt) == 8


def test_rows_without_labels_or_with_placeholders_stay_in_batches() -> None:
    lining = packed(Backbone(tiny_models.shared("llama"))).lining
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(lining.backbone.model, 6))
    batch = collate(EVEN, 0)
    assert lining.can_read(prompt, batch)
    idle = dataclasses.replace(batch, label_mask=torch.zeros_like(batch.label_mask))
    assert not lining.can_read(prompt, idle)
    image = Modality("image", EVEN[0].input_ids[0], "pixel_values")
    lining.backbone.capabilities = dataclasses.replace(
        lining.backbone.capabilities, modalities=(image,)
    )
    assert not lining.can_read(prompt, batch)
