"""Families: students of recurrent layers and behind encoders are taught, or refused by name."""

from dataclasses import replace
from typing import Any

import pytest
import seq2seq_models
import tiny_models
import torch
from test_distill import CONFIG, QUERIES, TEXT, TRAIN
from test_prompt_contexts import prompt_of
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, SoftPrompt, distill
from foreword.distillation.lesson import prepare
from foreword.errors import DataError, UnsupportedError
from foreword.prompt.states import attention_part, recurrent_part
from foreword.training.validation import validate

SMALL = replace(TRAIN, num_steps=12, learning_rate=0.05, num_virtual_tokens=4)


def model_of(family: str) -> Backbone:
    tokenizer = tiny_tokenizer()
    room = {"max_position_embeddings": 256} if family == "bart" else {}
    room |= {"vocab_size_per_layer_input": len(tokenizer)} if family == "gemma3n" else {}
    built = seq2seq_models if family in seq2seq_models.CONFIGS else tiny_models
    return Backbone(built.build(family, vocab_size=len(tokenizer), **room), tokenizer)  # type: ignore[attr-defined]


def taught(model: Backbone, context: Any, form: Any) -> SoftPrompt:
    """Train a student, and return it if it has come closer to its teacher."""
    lesson = prepare(model, context, QUERIES, 4, CONFIG, form=form)
    before = validate(model, lesson.start, lesson.rows).loss
    config = replace(SMALL, form=form, learning_rate=0.02 if form == "embeddings" else 0.05)
    *_, last = distill(model, context, QUERIES, config, distill_config=CONFIG)
    assert last.prompt is not None and last.prompt.form == form
    assert validate(model, last.prompt, lesson.rows).loss < before
    return last.prompt


@pytest.mark.parametrize("family", ["bamba", "falcon_h1"])
@pytest.mark.parametrize("form", ["key_values", "embeddings"])
def test_students_of_recurrent_layers_are_taught(family: str, form: str) -> None:
    model = model_of(family)
    assert taught(model, TEXT, form).num_virtual_tokens == 4
    state = prompt_of(model)
    start = prepare(model, state, QUERIES, 4, CONFIG).start
    for one, whole in zip(start.states, state.states, strict=True):
        for part, other in zip(attention_part(one), attention_part(whole), strict=True):
            torch.testing.assert_close(part, other[:, :4].float())
        for part, other in zip(recurrent_part(one), recurrent_part(whole), strict=True):
            torch.testing.assert_close(part, other.float())


def test_states_of_one_size_are_not_made_smaller() -> None:
    model = model_of("mamba2")
    for context in (TEXT, prompt_of(model)):
        with pytest.raises(UnsupportedError, match=r"^mamba2: no layer attends.*is as small"):
            prepare(model, context, QUERIES, 4, CONFIG)
    assert prepare(model, TEXT, QUERIES, 4, CONFIG, form="embeddings").start.form == "embeddings"


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("form", ["key_values", "embeddings"])
def test_prompts_before_an_encoder_or_its_decoder_teach_students(family: str, form: str) -> None:
    model = model_of(family)
    keys = seq2seq_models.key_value_prompt(model.model, 12)
    keys = keys.replaced(keys.tensors, {"base": model.identity()})
    for context in (keys, prompt_of(model, is_cached=False)):
        assert taught(model, context, form).num_virtual_tokens == 4
    with pytest.raises(UnsupportedError, match=f"^{family}: a text cannot stand before an encoder"):
        prepare(model, TEXT, QUERIES, 4, CONFIG)


def test_what_holds_more_than_text_is_refused_by_name() -> None:
    whisper = model_of("whisper")
    with pytest.raises(UnsupportedError, match="^whisper: its encoder hears each row"):
        prepare(whisper, prompt_of(whisper, is_cached=False), QUERIES, 4, CONFIG)
    model = model_of("llama")
    image = [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]
    with pytest.raises(DataError, match="holds images or sounds, and only text is distilled"):
        prepare(model, prompt_of(model), [*QUERIES, image], 4, CONFIG)
    layered = model_of("gemma3n")
    with pytest.raises(UnsupportedError, match="looks tokens up in every layer"):
        prepare(layered, TEXT, QUERIES, 4, CONFIG)
    assert taught(layered, prompt_of(layered), "embeddings").num_virtual_tokens == 4
