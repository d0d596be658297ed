"""What `show` computes, beside plain computations: neighbours, norms, likeness, attention."""

import functools
from typing import Any

import pytest
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, SoftPrompt
from foreword.errors import InputError, MismatchError, UnsupportedError
from foreword.evaluation.inspection import (
    attention_received,
    layer_norms,
    nearest_tokens,
    similarity,
    token_norms,
)

IDS = torch.tensor([5, 9, 7])


@functools.cache
def backbone(family: str = "llama") -> Backbone:
    tokenizer = tiny_tokenizer()
    model = tiny_models.build(family, vocab_size=len(tokenizer))
    model.set_attn_implementation("eager")
    return Backbone(model, tokenizer)


def soft_prompt(scale: float = 1.0) -> SoftPrompt:
    return SoftPrompt.from_embeddings(backbone().embed(IDS).clone() * scale)


def test_embedded_text_is_nearest_to_its_own_tokens() -> None:
    found = nearest_tokens(backbone(), soft_prompt(), 2)
    named = [backbone().tokenizer.decode([i]) for i in IDS.tolist()]
    assert [one.by_cosine[0].text for one in found] == named
    assert [one.by_cosine[0].nearness for one in found] == pytest.approx([1.0] * 3)


def test_nearness_is_cosine_and_dot_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foreword.evaluation.inspection.CHUNK", 50)
    model = backbone()
    table = model.model.get_input_embeddings().weight
    rows = torch.nn.functional.normalize(table, dim=1)
    found = nearest_tokens(model, soft_prompt(2.0), 4)
    for index, one in enumerate(found):
        own = 2 * table[IDS[index]]
        dots = (table @ own).sort(descending=True)
        cosines = (rows @ own / own.norm()).sort(descending=True)
        assert [n.nearness for n in one.by_dot] == pytest.approx(dots.values[:4].tolist())
        assert [n.nearness for n in one.by_cosine] == pytest.approx(cosines.values[:4].tolist())
        names = [model.tokenizer.decode([i]) for i in dots.indices[:4].tolist()]
        assert [n.text for n in one.by_dot] == names


def test_norms_are_ranked_within_the_table() -> None:
    table = backbone().model.get_input_embeddings().weight.norm(dim=1)
    found = token_norms(backbone(), soft_prompt())
    assert found.of_prompt == pytest.approx(table[IDS].tolist())
    shares = [(table < table[i]).double().mean().item() for i in IDS]
    assert found.ranks == pytest.approx(shares, abs=1.5 / len(table))
    assert found.table[1] == pytest.approx(table.median().item(), rel=0.01)
    assert token_norms(backbone(), soft_prompt(100.0)).ranks == (1.0, 1.0, 1.0)


def test_a_key_value_prompt_has_no_token_space() -> None:
    prompt = SoftPrompt.from_key_values(backbone().compile(soft_prompt()).key_values)
    with pytest.raises(InputError, match="no token space"):
        nearest_tokens(backbone(), prompt)
    with pytest.raises(InputError, match="no token space"):
        token_norms(backbone(), prompt)


def test_norms_of_a_state_are_those_of_its_tokens() -> None:
    prefix = backbone().compile(soft_prompt())
    for (keys, values), found in zip(prefix.key_values, layer_norms(prefix.states), strict=True):
        slow = [sum(side[:, p].norm().item() for p in range(3)) / 3 for side in (keys, values)]
        assert [found.keys, found.values] == pytest.approx(slow, rel=1e-5)
        assert found.recurrent is None


def test_norms_of_recurrent_layers_are_shown_apart() -> None:
    model = tiny_models.shared("bamba")
    states = Backbone(model).compile(SoftPrompt.from_embeddings(tiny_models.embeddings(model, 3)))
    found = layer_norms(states.states)
    assert [layer.keys is None for layer in found] == [True, False, True]
    assert [layer.recurrent is None for layer in found] == [False, True, False]


def test_similarity_is_the_cosine_of_every_pair() -> None:
    first, second = soft_prompt(), SoftPrompt.from_embeddings(-soft_prompt().embeddings[:2])
    found = similarity(first, second)
    assert found.shape == (3, 2) and torch.diagonal(found).tolist() == pytest.approx([-1.0, -1.0])


def test_similarity_of_states_is_the_mean_over_layers_and_sides() -> None:
    one, two = (backbone().compile(soft_prompt(scale)) for scale in (1.0, -2.0))
    pairs = [
        (a[:, 1].flatten(), b[:, 2].flatten())
        for x, y in zip(one.key_values, two.key_values, strict=True)
        for a, b in zip(x, y, strict=True)
    ]
    slow = [torch.nn.functional.cosine_similarity(a, b, dim=0).item() for a, b in pairs]
    assert similarity(one, two)[1, 2].item() == pytest.approx(sum(slow) / len(slow), abs=1e-6)


def test_prompts_of_different_forms_are_not_compared() -> None:
    with pytest.raises(MismatchError, match="embeddings of width 32 beside key_values of width 16"):
        similarity(soft_prompt(), backbone().compile(soft_prompt()))


def test_prompts_of_different_bases_are_not_compared() -> None:
    bases = [Backbone(tiny_models.build("llama", seed=seed)) for seed in (0, 1)]
    one, other = (
        SoftPrompt.from_embeddings(soft_prompt().embeddings, facts={"base": {
            "name": f"model-{number}", "fingerprint": base.fingerprint(),
        }})
        for number, base in enumerate(bases)
    )  # fmt: skip
    assert similarity(one, one).shape == (3, 3)
    with pytest.raises(MismatchError, match="made for model-0, not for model-1"):
        similarity(one, other)


@pytest.mark.parametrize("family", ["llama", "gemma2", "bamba"])
def test_attention_received_is_the_oracles(family: str) -> None:
    model: Any = backbone(family).model
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(model, 5))
    ids = tiny_models.ids(12)
    found = attention_received(backbone(family), prompt, ids.tolist())
    whole = torch.cat([prompt.embeddings, model.get_input_embeddings()(ids)])[None]
    slow = model(inputs_embeds=whole, output_attentions=True, use_cache=False).attentions
    layers = [weights for weights in slow if weights is not None]  # recurrent ones have none
    expected = torch.stack([weights[0, :, 5:, :5].mean(0) for weights in layers])
    assert found.shape == (1 if family == "bamba" else 3, 12, 5)
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=0)


def test_attention_without_weights_is_refused_by_name() -> None:
    sdpa = Backbone(tiny_models.shared("llama"))
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(sdpa.model, 2))
    with pytest.raises(UnsupportedError, match="attn_implementation='eager'"):
        attention_received(sdpa, prompt, [5, 6])
    recurrent = Backbone(tiny_models.shared("mamba2"))
    with pytest.raises(UnsupportedError, match="mamba2 has no attention"):
        attention_received(recurrent, None, [5, 6])  # type: ignore[arg-type]


def test_attention_to_a_token_without_an_embedding_is_refused() -> None:
    eager = backbone("llama")
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(eager.model, 2))
    size = eager.capabilities.vocab_size
    with pytest.raises(InputError, match=f"row 0, token 1 is {size}; .*resize_token_embeddings"):
        attention_received(eager, prompt, [5, size])
