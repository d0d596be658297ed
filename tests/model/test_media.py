"""The traps of images and sounds: each is exact, or refused by name."""

import copy
from typing import Any

import media_oracle
import pytest
import tiny_media
import tiny_models
import torch
import transformers
from media_contract import GREEDY, padded, world_of
from oracle import given_cache
from tiny_media import AUDIO, IMAGE, MediaRow, image, joined, text
from torch import Tensor

from foreword import Backbone, SoftPrompt
from foreword.doctor.model_report import capabilities_findings
from foreword.errors import InputError, MismatchError, UnsupportedError
from foreword.generation import generate
from foreword.model import capabilities


def prompt_for(backbone: Backbone, num_virtual: int = 6) -> SoftPrompt:
    return SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, num_virtual))


def error_of(backbone: Backbone, rows: list[MediaRow], side: str, **changes: Any) -> float:
    """Return how far logits of a padded batch are from the oracle's."""
    prompt = prompt_for(backbone)
    ids, mask = padded(rows, side)
    with torch.no_grad():
        found = backbone.logits(prompt, ids, mask, **(joined(rows) | changes))
    expected = [media_oracle.row_logits(backbone.model, prompt, row, row.ids) for row in rows]
    pairs = zip(found, mask.bool(), expected, strict=True)
    return max(float((a[m] - e).abs().max()) for a, m, e in pairs)


# What a decoder reads -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "axes", "types", "has_blocks"),
    [
        ("glm4v", 3, "mm_token_type_ids", False),
        ("hunyuan_vl", 4, "mm_token_type_ids", False),
        ("gemma3", 1, "token_type_ids", True),
        ("glmasr", 1, None, False),
    ],
)
def test_what_a_model_reads_is_read_off_its_class(
    family: str, axes: int, types: str | None, has_blocks: bool
) -> None:
    found = Backbone(tiny_media.shared(family)).capabilities
    assert (found.num_axes, found.types, found.has_image_blocks) == (axes, types, has_blocks)
    (modality,) = found.modalities
    assert modality.token_id == (AUDIO if family == "glmasr" else IMAGE)


def test_the_doctor_says_what_is_read_beside_text() -> None:
    said = {
        family: {f.name: f.detail for f in capabilities_findings(Backbone(model))}.get("media")
        for family, model in (
            ("hunyuan_vl", tiny_media.shared("hunyuan_vl")),
            ("gemma3", tiny_media.shared("gemma3")),
            ("llama", tiny_models.shared("llama")),
        )
    }
    assert said["hunyuan_vl"] == (
        "image in pixel_values, image_grid_thw; positions of 4 axes from the model's own index"
    )
    assert "both ways" in str(said["gemma3"])
    assert said["llama"] is None


# Positions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_of_the_padded_batch_would_be_others(
    side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The model's own index counts the images of all rows; a row alone begins at its first.
    backbone = Backbone(tiny_media.shared("hunyuan_vl"))
    rows = [text(2) + image("hunyuan_vl"), text(4) + image("hunyuan_vl", 2, 3) + text(1)]
    ids, mask = padded(rows, side)
    kinds, grids = (ids == IMAGE).long(), joined(rows)["image_grid_thw"]
    together, _ = backbone.decoder.get_rope_index(ids, kinds, grids, mask)
    alone, _ = backbone.decoder.get_rope_index(
        rows[1].ids[None], (rows[1].ids == IMAGE).long()[None], rows[1].media["image_grid_thw"]
    )
    assert not torch.equal(together[:, 1][:, mask[1].bool()], alone[:, 0])
    assert error_of(backbone, rows, side) < 1e-9


@pytest.mark.parametrize("family", tiny_media.GRID_FAMILIES)
def test_offsets_left_by_the_model_are_neither_read_nor_written(family: str) -> None:
    model = tiny_media.build(family)
    world = world_of(family, "embeddings")
    model.model.rope_deltas = stale = torch.tensor([[50]])
    backbone = Backbone(model)
    row = world.one
    options = GREEDY | {"return_dict_in_generate": True}
    first = backbone.generate(world.prompt, row.ids[None], **row.media, **options)
    assert first.sequences[0, len(row.ids) :].tolist() == world.greedy(row)
    # The cache is not empty now, which is when a model's own pass would read them.
    turn = row + MediaRow(first.sequences[0, len(row.ids) :]) + text(3)
    second = backbone.generate(
        world.prompt, turn.ids[None], past_key_values=first.past_key_values, **GREEDY
    )
    assert second[0, len(turn.ids) :].tolist() == world.greedy(turn)
    other = text(5)
    output = backbone.generate(world.prompt, other.ids[None], **GREEDY)
    assert output[0, 5:].tolist() == world.greedy(other)
    backbone.logits(world.prompt, row.ids[None], **row.media)
    assert model.model.rope_deltas is stale


def test_a_generation_between_two_turns_changes_nothing() -> None:
    world = world_of("glm4v", "embeddings")
    options = GREEDY | {"return_dict_in_generate": True}
    first = world.backbone.generate(world.prompt, world.one.ids[None], **world.one.media, **options)
    world.generate([world.two])
    whole = world.one + MediaRow(first.sequences[0, len(world.one.ids) :]) + text(2)
    second = world.backbone.generate(
        world.prompt, whole.ids[None], past_key_values=first.past_key_values, **GREEDY
    )
    assert second[0, len(whole.ids) :].tolist() == world.greedy(whole)


def test_one_offset_for_all_rows_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_of("glm4v", "embeddings")
    shifts = generate.media._shifts

    def shared(*args: Any) -> Tensor:
        return shifts(*args)[:, -1:].expand(-1, 3, -1)

    monkeypatch.setattr(generate.media, "_shifts", shared)
    with pytest.raises(AssertionError):
        world.expect(world.generate(world.rows), world.rows)


# Token types --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gemma3", "glm4v", "hunyuan_vl"])
def test_token_types_are_taken_as_given_or_computed(family: str) -> None:
    backbone = Backbone(tiny_media.shared(family))
    world = world_of(family, "embeddings")
    ids, _ = padded(world.rows, "left")
    given = {backbone.capabilities.types: (ids == IMAGE).long()}
    assert error_of(backbone, world.rows, "left", **given) < 1e-9
    assert error_of(backbone, world.rows, "left") < 1e-9


@pytest.mark.parametrize("family", ["gemma3", "glm4v"])
def test_token_types_of_another_length_are_refused(family: str) -> None:
    world = world_of(family, "embeddings")
    types = torch.zeros(1, 6 + len(world.one.ids), dtype=torch.long)
    given = {world.backbone.capabilities.types: types}
    with pytest.raises(InputError, match="one type for each of the ids"):
        world.generate([world.one], **given)


def test_token_types_that_miss_the_image_are_refused() -> None:
    world = world_of("glm4v", "embeddings")
    types = torch.zeros(1, len(world.one.ids), dtype=torch.long)
    with pytest.raises(InputError, match="does not mark the placeholders"):
        world.generate([world.one], mm_token_type_ids=types)


def with_causal_images(backbone: Backbone) -> Backbone:
    """Return a backbone that masks its images as if they were text."""
    causal = _replace(backbone.capabilities, has_image_blocks=False)
    return backbone.with_passes(_replace(backbone.passes, capabilities=causal))


def test_the_tokens_of_an_image_see_each_other_both_ways() -> None:
    backbone = Backbone(tiny_media.shared("gemma3"))
    rows = [text(9) + image("gemma3") + text(2), text(3) + image("gemma3", seed=1)]
    assert error_of(backbone, rows, "left") < 1e-9
    causal = with_causal_images(backbone)
    assert causal.capabilities.modalities
    assert error_of(causal, rows, "left") > 1e-3, "a causal mask is another model"


@pytest.mark.parametrize("family", tiny_media.FAMILIES)
def test_the_bare_model_is_exact_too(family: str) -> None:
    backbone = Backbone(tiny_media.shared(family))
    row = image(family) + text(2)
    with torch.no_grad():
        found = backbone.logits(None, row.ids[None], **row.media)[0]
    expected = media_oracle.row_logits(backbone.model, None, row, row.ids)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def _replace(facts: capabilities.Capabilities, **changes: Any) -> capabilities.Capabilities:
    import dataclasses

    return dataclasses.replace(facts, **changes)


# Audio --------------------------------------------------------------------------------------------


def test_a_sound_beside_embeddings_is_refused_where_the_model_would_ignore_it() -> None:
    world = world_of("glmasr", "embeddings")
    embedded = world.backbone.embed(world.one.ids[None]).detach()
    own = [
        world.model(inputs_embeds=embedded, **media).logits
        for media in (world.one.media, world.two.media)
    ]
    assert torch.equal(*own), "the model itself ignores the sound"
    with pytest.raises(UnsupportedError, match="give input_ids"):
        world.backbone.generate(world.prompt, inputs_embeds=embedded, **world.one.media, **GREEDY)


@pytest.mark.parametrize("family", tiny_media.FAMILIES)
def test_what_is_seen_or_heard_changes_the_logits(family: str) -> None:
    world = world_of(family, "embeddings")
    feature = next(name for name in world.one.media if world.one.media[name].is_floating_point())
    other = world.one.media | {feature: world.one.media[feature].flip(-1)}
    found = [
        world.backbone.logits(world.prompt, world.one.ids[None], **media)[0, -1]
        for media in (world.one.media, other)
    ]
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_a_long_sound_takes_the_windows_that_it_fills() -> None:
    world = world_of("glmasr", "embeddings")
    rows = [image("glmasr", 3, 3) + text(2), text(2) + image("glmasr", 1, 2), image("glmasr", 2, 3)]
    assert len(joined(rows)["input_features"]) == 6, "3 + 1 + 2 windows for 3 sounds"
    assert error_of(world.backbone, rows, "left") < 1e-9
    options = {"max_new_tokens": 3, "num_beams": 2, "do_sample": False}
    output = world.generate(rows, **options)
    for index, row in enumerate(rows):
        world.expect_strategy(output[index : index + 1], row, **options)


def test_padding_with_the_placeholder_itself_reads_no_sound() -> None:
    world = world_of("glmasr", "embeddings")
    ids, mask = padded(world.rows, "left")
    ids[mask == 0] = AUDIO
    media = joined(world.rows)
    output = world.backbone.generate(world.prompt, ids, mask, **media, **GREEDY)
    world.expect(output, world.rows)
    with pytest.raises(InputError, match="give attention_mask"):
        world.backbone.generate(world.prompt, ids, **media, **GREEDY, pad_token_id=AUDIO)


def test_one_placeholder_for_a_whole_sound_is_refused() -> None:
    world = world_of("qwen2_audio", "embeddings")
    ids = torch.tensor([[5, AUDIO, 7]])
    with pytest.raises(InputError, match="one for each token of the sound"):
        world.backbone.generate(world.prompt, ids, **world.one.media, **GREEDY)


# What does not fit --------------------------------------------------------------------------------


def wrong_calls() -> dict[str, tuple[str, Any, str]]:
    """Return calls by name: family, changes of the one image's media, and what is said."""
    twice = {name: torch.cat([value, value]) for name, value in image("glm4v", 2, 3).media.items()}
    larger = image("glm4v", 2, 2).media
    return {
        "no media": ("glm4v", {"pixel_values": None, "image_grid_thw": None}, "there is no pixel"),
        "one part": ("glm4v", {"image_grid_thw": None}, "without image_grid_thw"),
        "two images": ("glm4v", twice, "holds 2 of image, and placeholders for 1"),
        "another size": ("glm4v", larger, "do not fit the sizes"),
        "fewer patches": (
            "glm4v",
            {"pixel_values": torch.zeros(3, 24)},
            "3 patches, and image_grid_thw tells of 24",
        ),
        "two of one size": (
            "gemma3",
            {"pixel_values": torch.zeros(2, 3, 8, 8)},
            "cannot read the media",
        ),
        "a list": ("gemma3", {"pixel_values": [1]}, "return_tensors='pt'"),
        "half a mask": (
            "qwen2_audio",
            {"feature_attention_mask": torch.ones(2, 32)},
            "2 rows for 1",
        ),
        "another length": (
            "qwen2_audio",
            {"feature_attention_mask": torch.ones(1, 32)},
            "cannot read the media",
        ),
    }


@pytest.mark.parametrize("name", wrong_calls())
def test_media_that_does_not_fit_is_named(name: str) -> None:
    family, changes, message = wrong_calls()[name]
    world = world_of(family, "embeddings")
    media = world.one.media | changes
    with pytest.raises(InputError, match=message):
        world.backbone.generate(world.prompt, world.one.ids[None], **media, **GREEDY)
    with pytest.raises(InputError, match=message):
        world.backbone.logits(world.prompt, world.one.ids[None], **media)


def test_media_without_placeholders_is_refused() -> None:
    world = world_of("glm4v", "embeddings")
    with pytest.raises(InputError, match="placeholders for 0"):
        world.backbone.generate(world.prompt, text(4).ids[None], **world.one.media)


def test_videos_are_refused() -> None:
    world = world_of("glm4v", "embeddings")
    with pytest.raises(UnsupportedError, match="give their frames as images"):
        world.generate([world.one], pixel_values_videos=torch.ones(4, 24))


def test_features_that_a_tower_has_made_are_refused() -> None:
    world = world_of("glm4v", "embeddings")
    with pytest.raises(UnsupportedError, match="mm_encoder_outputs"):
        world.generate([text(3)], mm_encoder_outputs={"image": torch.ones(4, 32)})


def test_a_chunk_that_cuts_an_image_is_refused() -> None:
    world = world_of("gemma3", "embeddings")
    with pytest.raises(UnsupportedError, match="cut through the image"):
        world.generate([world.one], prefill_chunk_size=6)


def test_a_cache_whose_images_are_unknown_is_refused() -> None:
    world = world_of("glm4v", "embeddings")
    row = world.one
    types = (row.ids == IMAGE).long()[None]
    model = tiny_media.build("glm4v")
    cache = model(row.ids[None], mm_token_type_ids=types, **row.media).past_key_values
    whole = row + text(2)
    with pytest.raises(UnsupportedError, match="where its images are is not known"):
        world.backbone.generate(None, whole.ids[None], past_key_values=cache, **row.media, **GREEDY)


def test_a_cache_of_text_filled_elsewhere_goes_on() -> None:
    world = world_of("glm4v", "embeddings")
    row = text(6)
    cache = transformers.DynamicCache()
    world.model(row.ids[None], **given_cache(world.model, cache))
    whole = row + image("glm4v") + text(2)
    output = world.backbone.generate(
        None, whole.ids[None], past_key_values=cache, **whole.media, **GREEDY
    )
    assert output[0, len(whole.ids) :].tolist() == media_oracle.greedy(
        world.model, None, whole, GREEDY["max_new_tokens"]
    )


def test_a_cache_of_another_prompt_is_refused() -> None:
    world = world_of("glm4v", "embeddings")
    options = GREEDY | {"return_dict_in_generate": True}
    first = world.generate([world.one], **options)
    whole = world.one + text(9)
    with pytest.raises(MismatchError):
        world.backbone.generate(
            None, whole.ids[None], past_key_values=first.past_key_values, **GREEDY
        )


# Families that the tests do not know --------------------------------------------------------------


@pytest.mark.parametrize("family", tiny_media.FAMILIES)
def test_every_family_proves_itself_on_its_media(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capabilities, "TESTED_MODEL_TYPES", frozenset())
    world = world_of(family, "embeddings")
    backbone = Backbone(world.model)
    assert not backbone._is_media_proved
    assert error_of(backbone, world.rows, "left") <= world.tolerance
    assert backbone._is_media_proved


@pytest.mark.parametrize("family", ["gemma3", "qwen2_5_vl", "glmasr"])
def test_media_are_proved_in_half_precision_too(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capabilities, "TESTED_MODEL_TYPES", frozenset())
    world = world_of(family, "embeddings")
    half = Backbone(copy.deepcopy(world.model).to(torch.bfloat16))
    prompt = SoftPrompt.from_embeddings(world.backbone.embed(text(5).ids).detach())
    half.generate(prompt, world.one.ids[None], **world.one.media, **GREEDY)
    assert half._is_media_proved


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_family_that_reads_its_media_otherwise_is_refused(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = world_of("gemma3", "embeddings")
    monkeypatch.setattr(capabilities, "TESTED_MODEL_TYPES", frozenset())
    backbone = with_causal_images(Backbone(copy.deepcopy(world.model).to(dtype)))
    prompt = SoftPrompt.from_embeddings(world.prompt.embeddings)
    for _ in range(2):
        with pytest.raises(UnsupportedError, match="give it text alone"):
            backbone.generate(prompt, world.one.ids[None], **world.one.media, **GREEDY)
    if dtype != torch.float64:
        return
    rows = [text(4)]
    assert error_of(backbone, rows, "left") < 1e-9, "text alone is exact"
