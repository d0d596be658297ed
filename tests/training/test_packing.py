"""Packing: the gradient is that of one row at a time, wherever rows run packed."""

import dataclasses
import functools
from collections.abc import Callable

import pytest
import tiny_models
import torch
from training_oracle import FAST, check_gradient

from foreword import Backbone, Row, SoftPrompt, train
from foreword.data.batches import collate
from foreword.model.capabilities import Modality
from foreword.prompt.prefix import Prefix, PrefixBatch, no_prefixes, same_prefix
from foreword.prompt.states import DeferredPrompt
from foreword.training import gradient_checkpointing, micro_batches
from foreword.training.packing import packed_decoder
from foreword.training.packing.packed_decoder import packed
from foreword.training.validation import validate


def row(length: int, answer: int, seed: int = 0) -> Row:
    ids = tiny_models.ids(length, seed=seed).tolist()
    return Row.from_ids(ids[:-answer], ids[-answer:])


EVEN = [row(9, 2, seed) for seed in range(4)]
MIXED = [row(*sizes) for sizes in ((12, 3, 1), (4, 3, 2), (12, 1, 3), (5, 2, 4), (12, 3, 5))]
# Queries scaled by their slot; states that every token before has changed.
UNPACKED = ("llama4", *tiny_models.RECURRENT)
PACKED = tuple(name for name in tiny_models.FAMILIES if name not in UNPACKED)


def packed_and_checkpointed(backbone: Backbone) -> Backbone:
    return packed(gradient_checkpointing.with_gradient_checkpointing(backbone))


@pytest.mark.parametrize("form", ["embeddings", "key_values"])
@pytest.mark.parametrize("family", PACKED)
def test_gradient_of_packed_rows_equals_the_concatenated_form(family: str, form: str) -> None:
    for rows, size in ((MIXED, 5), (EVEN, 2)):
        assert check_gradient(family, form, size, packed, rows).passes.is_packed


@pytest.mark.parametrize("change", [packed, packed_and_checkpointed])
@pytest.mark.parametrize("form", ["embeddings", "key_values"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
def test_gradient_of_packed_rows_adds_up_over_micro_batches(
    family: str, form: str, change: Callable[[Backbone], Backbone]
) -> None:
    for rows in (MIXED, EVEN):
        for size in (len(rows), 3, 1):
            assert check_gradient(family, form, size, change, rows).passes.is_packed


@pytest.mark.parametrize("family", UNPACKED)
def test_what_cannot_be_packed_is_padded(family: str) -> None:
    backbone = Backbone(tiny_models.shared(family))
    assert packed(backbone) is backbone


def test_attention_that_is_not_asked_by_name_is_padded() -> None:
    model = tiny_models.build("llama")
    layer = model.model.layers[1].self_attn
    layer.forward = functools.partial(type(layer).forward, layer)  # as hooks of accelerate do
    backbone = Backbone(model)
    assert packed(backbone) is backbone


def test_layers_that_look_at_their_neighbours_are_padded() -> None:
    model = tiny_models.build("llama")
    model.model.layers[1].mlp.register_forward_hook(lambda *given: given[2].cumsum(1))
    backbone = Backbone(model)
    assert packed(backbone) is backbone


def test_a_norm_that_counts_its_tokens_is_padded_and_the_log_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tiny_models.build("llama")
    norm = model.model.norm
    norm.register_forward_hook(lambda module, args, output: output + output.shape[1] * 1e-2)
    backbone = Backbone(model)
    with caplog.at_level("INFO", "foreword"):
        assert packed(backbone) is backbone, "it tells a packed sequence from a batch"
    assert "cannot run packed (its hidden states differ by" in caplog.text


def test_no_padding_is_computed() -> None:
    model = tiny_models.build("llama")
    sizes: list[tuple[int, ...]] = []
    backbone = packed(Backbone(model))
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape))
    embeddings = tiny_models.embeddings(model, 6)
    prefix = Prefix(DeferredPrompt(embeddings), "")
    states, labels, rows = backbone.label_states(same_prefix(prefix, 5), collate(MIXED, 0))
    num_tokens, num_labels = 6 + sum(len(row.input_ids) for row in MIXED), 12
    assert sizes == [(1, num_tokens, 32)] * 3
    assert states.shape == (num_labels, 32)
    assert rows.bincount().tolist() == [row.num_labels for row in MIXED]
    for index, row in enumerate(MIXED):
        assert labels[rows == index].tolist() == list(row.input_ids[-row.num_labels :])


def test_rows_behind_different_prompts_or_none_are_padded() -> None:
    plain = Backbone(tiny_models.shared("llama"))
    backbone, batch = packed(plain), collate(EVEN, 0)
    first, second = (
        plain.compile(SoftPrompt.from_embeddings(tiny_models.embeddings(plain.model, 6, seed=s)))
        for s in (0, 1)
    )
    mixed = PrefixBatch((first, first, second, second))
    hidden = torch.ones(4, 6, dtype=torch.bool).triu(3)
    for prefixes in (mixed, no_prefixes(4), PrefixBatch((first,) * 4, hidden)):
        found, expected = (b.label_states(prefixes, batch)[0] for b in (backbone, plain))
        assert torch.equal(found, expected)


def test_the_model_is_left_alone() -> None:
    model = tiny_models.build("gemma3")
    before = [(id(part), dict(vars(part))) for part in model.modules()]
    settings = model.config.to_dict(), model.config._attn_implementation
    backbone = packed(Backbone(model))
    assert backbone.passes.is_packed
    assert [(id(part), dict(vars(part))) for part in model.modules()] == before
    assert (model.config.to_dict(), model.config._attn_implementation) == settings


@pytest.mark.parametrize("form", ["embeddings", "key_values"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_packed_run_comes_to_the_same_as_a_padded_one(
    form: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = Backbone(tiny_models.with_exact_norms(tiny_models.build("gemma3")))
    config = dataclasses.replace(
        FAST, form=form, num_steps=5, batch_size=3, eval_every=2, seed=3,
        gradient_checkpointing=checkpointing,
    )  # fmt: skip
    ours, again = (list(train(backbone, MIXED, config, validation=EVEN)) for _ in range(2))
    assert ours[-1].prompt.content_hash == again[-1].prompt.content_hash
    monkeypatch.setattr(packed_decoder, "packed", lambda backbone: backbone)
    theirs = list(train(backbone, MIXED, config, validation=EVEN))
    for mine, other in zip(ours, theirs, strict=True):  # a float32 optimizer between the steps
        assert mine.loss == pytest.approx(other.loss, rel=1e-7)
        assert mine.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-7)
    assert ours[-1].validation.loss == pytest.approx(theirs[-1].validation.loss, rel=1e-7)
    assert ours[-1].validation.exact == theirs[-1].validation.exact


def test_a_base_in_bfloat16_runs_packed() -> None:
    backbone = packed(Backbone(tiny_models.build("llama", dtype=torch.bfloat16)))
    assert backbone.passes.is_packed
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, 6))
    result = validate(backbone, prompt, MIXED, 3)
    plain = validate(Backbone(backbone.model), prompt, MIXED, 3)
    assert result.loss == pytest.approx(plain.loss, rel=2e-2)


@pytest.mark.parametrize(("num_virtual", "most", "size"), [(100, 8, 8), (20, 16, 8), (200, 64, 8)])
def test_a_micro_batch_holds_all_rows_where_packing_takes_half_the_memory(
    num_virtual: int, most: int, size: int
) -> None:
    plain = Backbone(tiny_models.shared("llama"))
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(plain.model, num_virtual))
    lengths = [row(64, 8, seed).num_tokens for seed in range(3)]
    assert micro_batches.default_size(packed(plain), lengths, most, prompt) == size
    assert micro_batches.default_size(plain, lengths, most, prompt) == 8


def test_rows_without_labels_or_with_placeholders_are_padded() -> None:
    passes = packed(Backbone(tiny_models.shared("llama"))).passes
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(passes.model, 6))
    batch = collate(EVEN, 0)
    assert passes.can_defer(prompt, batch)
    idle = dataclasses.replace(batch, label_mask=torch.zeros_like(batch.label_mask))
    assert not passes.can_defer(prompt, idle)
    image = Modality("image", EVEN[0].input_ids[0], "pixel_values")
    facts = dataclasses.replace(passes.capabilities, modalities=(image,))
    assert not dataclasses.replace(passes, capabilities=facts).can_defer(prompt, batch)
