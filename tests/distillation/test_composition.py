"""Composed prompts: the second's keys are its own, moved behind the first, and nothing else."""

import logging
from typing import Any

import oracle
import pytest
import seq2seq_models
import tiny_models
import torch
from test_distill import TEXT, backbone
from test_prompt_contexts import prompt_of, replace_facts

from foreword import Backbone, SoftPrompt, chat, compose
from foreword.compat.transformers_api import DynamicCache
from foreword.errors import InputError, MismatchError, UnsupportedError
from foreword.named_text import text_prompt

ONE, OTHER = [5, 9, 31, 40, 12], [77, 3, 8, 60]


def read_at(model: Backbone, ids: list[int], start: int) -> list[torch.Tensor]:
    """Return keys and values of tokens that stand alone from a position on: no rotation of ours."""
    cache = DynamicCache()
    positions = torch.arange(start, start + len(ids))[None]
    with torch.no_grad():
        model.decoder(
            inputs_embeds=model.embed(torch.tensor(ids))[None], position_ids=positions,
            use_cache=True, **{model.capabilities.cache_argument: cache},
        )  # fmt: skip
    return [side[0] for layer in cache.layers for side in (layer.keys, layer.values)]  # type: ignore[union-attr]


def cached(model: Backbone, ids: list[int]) -> SoftPrompt:
    facts = {"base": model.identity()}
    text = SoftPrompt.from_embeddings(model.embed(torch.tensor(ids)), facts=facts)
    return SoftPrompt.from_states(model.compile(text).cached, facts=facts)


@pytest.mark.parametrize("family", ["llama", "llama31", "phi3", "qwen3", "gemma3", "llama4"])
def test_two_texts_are_each_parts_own_keys_one_behind_the_other(family: str) -> None:
    model = Backbone(tiny_models.build(family))
    found = compose(model, cached(model, ONE), cached(model, OTHER))
    assert found.num_virtual_tokens == 9 and found.form == "key_values"
    pairs = zip(read_at(model, ONE, 0), read_at(model, OTHER, len(ONE)), strict=True)
    for tensor, (one, other) in zip(found.tensors, pairs, strict=True):
        torch.testing.assert_close(tensor, torch.cat([one, other], 1), atol=1e-6, rtol=1e-6)
    ids = torch.tensor([4, 8, 15])
    expected = oracle.greedy(model.model, found, ids, 4)
    assert model.generate(found, ids[None], max_new_tokens=4)[0, 3:].tolist() == expected


def test_embeddings_are_read_as_one_text() -> None:
    model = backbone()
    one, other = (prompt_of(model, size, size, is_cached=False) for size in (5, 4))
    found = compose(model, one, other)
    assert torch.equal(found.embeddings, torch.cat([one.embeddings, other.embeddings]))
    mixed = compose(model, one, prompt_of(model, 4, 4))
    assert mixed.form == "key_values" and mixed.num_virtual_tokens == 9
    own = compose(model, prompt_of(model, 5, 5), prompt_of(model, 4, 4))
    assert mixed.content_hash == own.content_hash


@pytest.mark.parametrize("family", ["gpt2", "deepseek_v3", "lfm2", "mamba2", "qwen3_next"])
def test_keys_that_cannot_be_moved_are_refused_by_name(family: str) -> None:
    model = Backbone(tiny_models.build(family))
    with pytest.raises(UnsupportedError, match=f"^{family}: "):
        compose(model, cached(model, ONE), cached(model, OTHER))


def test_before_an_encoder_only_embeddings_are_composed() -> None:
    model = Backbone(seq2seq_models.build("t5"))
    text = seq2seq_models.embedding_prompt(model.model, 3)
    assert compose(model, text, text).num_virtual_tokens == 6
    with pytest.raises(UnsupportedError, match="only embedding prompts can be composed"):
        compose(model, text, seq2seq_models.key_value_prompt(model.model, 3))


def test_rows_are_written_as_behind_the_second(caplog: pytest.LogCaptureFixture) -> None:
    model = backbone()
    first = prompt_of(model, 5, row_template="Q: {prompt}\nA:")
    second = prompt_of(model, 4)
    found = compose(model, first, second)
    assert chat.encoding_of(found) == chat.encoding_of(second)
    assert "rows are written as behind the second prompt" in caplog.text
    assert "(row_template)" in caplog.text and "26.0 when composed, and to 77.8" in caplog.text
    turns = [{"role": "user", "content": "a"}]
    text = compose(model, first, text_prompt(model, TEXT))
    assert TEXT not in str(text.facts)
    bare = chat.encode(model, turns, chat.encoding_of(text_prompt(model, TEXT)))[0]
    assert chat.encode(model, turns, chat.encoding_of(text))[0] == bare


def test_prompts_that_were_trained_to_stand_together_are_composed_without_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = backbone()
    together: dict[str, Any] = {"distilled": {"distractors": 0.25}}
    pair = [replace_facts(prompt_of(model, 4, seed), **together) for seed in (1, 2)]
    with caplog.at_level(logging.WARNING):
        found = compose(model, *pair)
        texts = [text_prompt(model, text) for text in (TEXT, "Be brief.")]
        compose(model, *texts)
    assert not caplog.records
    hashes = [one["content_hash"] for one in found.facts["composed"]]
    assert hashes == [one.content_hash for one in pair]
    compose(model, pair[0], prompt_of(model, 4))
    assert "not trained to stand together" in caplog.text


def test_what_cannot_be_composed_is_refused() -> None:
    model = backbone()
    other = Backbone(tiny_models.build("llama", seed=7, vocab_size=263), model.tokenizer)
    with pytest.raises(MismatchError, match="load the right base"):
        compose(model, prompt_of(model), prompt_of(other))
    with pytest.raises(InputError, match=r"leave no room for rows: the model's context has 256"):
        compose(model, prompt_of(model, 200), prompt_of(model, 55))
