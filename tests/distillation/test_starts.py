"""Starts: moved keys are those of the model itself, and matched attention is attention."""

import pytest
import tiny_models
import torch

from foreword import Backbone
from foreword.data.encoding import Row
from foreword.distillation import attention_matching, starts
from foreword.errors import InputError, UnsupportedError
from foreword.model.rotation import moved, rotations_of
from foreword.prompt.prefix import Prefix, same_prefix
from foreword.prompt.soft_prompt import SoftPrompt

ROWS = [Row.from_ids([3 + n, 7, 11 + n], [5, 6 + n], f"row {n}") for n in range(6)]


def text_of(backbone: Backbone, length: int = 20) -> SoftPrompt:
    ids = torch.tensor([(13 * n + 2) % 97 for n in range(length)])
    return SoftPrompt.from_embeddings(backbone.embed(ids), facts={"base": backbone.identity()})


def hidden(backbone: Backbone, prefix: Prefix, row: Row) -> torch.Tensor:
    ids = torch.tensor([row.input_ids])
    return backbone.passes.hidden(same_prefix(prefix, 1), ids, None, {})


@pytest.mark.parametrize("family", ["llama", "llama31", "phi3", "qwen3", "gemma3", "llama4"])
def test_a_moved_key_is_the_key_of_the_same_token_there(family: str) -> None:
    backbone = Backbone(tiny_models.build(family))
    rotations = rotations_of(backbone.passes)  # type: ignore[arg-type]
    # In the first layer, a key depends on its own token and its place alone.
    ids = torch.tensor([5, 9, 31, 40, 12, 77, 3])
    order = torch.tensor([4, 0, 6, 2])
    with torch.no_grad():
        whole = backbone.passes.prefill(backbone.embed(ids))  # type: ignore[attr-defined]
        there = backbone.passes.prefill(backbone.embed(ids[order]))  # type: ignore[attr-defined]
    found = moved(starts.taken(whole, order), rotations, torch.arange(4) - order)
    torch.testing.assert_close(found.layers[0][0], there.layers[0][0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.layers[0][1], there.layers[0][1], atol=1e-6, rtol=1e-6)
    back = moved(found, rotations, order - torch.arange(4))
    for one, other in zip(back.tensors, starts.taken(whole, order).tensors, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "deepseek_v3", "lfm2"])
def test_what_cannot_be_moved_is_refused_by_name(family: str) -> None:
    backbone = Backbone(tiny_models.build(family))
    with pytest.raises(UnsupportedError, match=f"^{family}.*use --start first"):
        starts.start_of(backbone, text_of(backbone), 4, "even")
    prompt, said = starts.begin(backbone, text_of(backbone), 4, None, ROWS)
    assert prompt.num_virtual_tokens == 4 and said.startswith(
        f"starts from the first tokens of the text ({family}"
    )
    assert starts.start_of(backbone, text_of(backbone), 4, "vocabulary").num_virtual_tokens == 4


def test_a_text_at_all_its_places_is_the_text() -> None:
    backbone = Backbone(tiny_models.build("llama"))
    text = text_of(backbone)
    expected = backbone.compile(text).cached
    for start in ("first", "even"):
        found = starts.start_of(backbone, text, 20, start).states  # type: ignore[arg-type]
        for one, other in zip(found.tensors, expected.tensors, strict=True):
            torch.testing.assert_close(one, other.float())
    assert starts.even_places(20, 8).tolist() == [0, 2, 5, 7, 10, 12, 15, 17]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_matching_every_key_leaves_the_text_as_it_is(family: str) -> None:
    backbone = Backbone(tiny_models.build(family))
    text = text_of(backbone)
    found = starts.start_of(backbone, text, 20, "attention", ROWS).states
    for one, other in zip(found.tensors, backbone.compile(text).cached.tensors, strict=True):
        torch.testing.assert_close(one, other.float(), atol=1e-5, rtol=1e-5)


def test_matched_attention_comes_closer_than_other_starts() -> None:
    backbone = Backbone(tiny_models.build("llama"))
    text = text_of(backbone, 40)
    with torch.no_grad():
        wanted = [hidden(backbone, backbone.compile(text), row) for row in ROWS]

    def distance(start: str) -> float:
        prompt = starts.start_of(backbone, text, 8, start, ROWS)  # type: ignore[arg-type]
        prefix = backbone.compile(prompt)
        with torch.no_grad():
            pairs = [
                (hidden(backbone, prefix, row), one) for row, one in zip(ROWS, wanted, strict=True)
            ]
        return float(sum((a - b).square().sum() for a, b in pairs))

    matched = distance("attention")
    assert matched < min(distance("first"), distance("even"), distance("vocabulary"))


def test_matching_needs_rows_and_plain_attention() -> None:
    llama, gemma = (Backbone(tiny_models.build(name)) for name in ("llama", "gemma2"))
    with pytest.raises(InputError, match="needs queries"):
        starts.start_of(llama, text_of(llama), 4, "attention")
    with pytest.raises(UnsupportedError, match="soft cap"):
        starts.start_of(gemma, text_of(gemma), 4, "attention", ROWS)


def test_what_attention_is_given_is_what_it_is_recomputed_from() -> None:
    backbone = Backbone(tiny_models.build("llama"))
    prefix = backbone.compile(text_of(backbone))
    seen = attention_matching._observe(backbone, backbone.passes, prefix, ROWS[0])  # type: ignore[arg-type]
    assert len(seen) == 3
    for one in seen:
        for head in range(len(one.key)):
            query = attention_matching._group(one, head)
            weights = attention_matching._weights(query, one.key[head], one.mask, one.scaling)
            expected = attention_matching._group_of(one.output, len(one.key), head)
            torch.testing.assert_close(weights @ one.value[head], expected)
