"""Embedding prompts as students: trained like prompt tuning, from the nearest start."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_distill import CONFIG, QUERIES, TEXT, TRAIN, backbone
from test_prompt_contexts import prompt_of

from foreword import SoftPrompt, distill
from foreword.distillation import embedding_starts
from foreword.distillation.input_checks import form_of
from foreword.distillation.lesson import prepare
from foreword.errors import InputError
from foreword.training.validation import validate

EMBEDDED = replace(TRAIN, form="embeddings", num_virtual_tokens=8)


@pytest.mark.parametrize("is_text", [True, False])
def test_embeddings_are_taught_as_keys_and_values_are(is_text: bool) -> None:
    model = backbone()
    context: Any = TEXT if is_text else prompt_of(model, 8)
    lesson = prepare(model, context, QUERIES, 8, CONFIG, form="embeddings")
    before = validate(model, lesson.start, lesson.rows).loss
    config = replace(EMBEDDED, num_steps=80, learning_rate=0.05)
    *_, last = distill(model, context, QUERIES, config, distill_config=CONFIG)
    assert last.prompt is not None and last.prompt.form == "embeddings"
    assert last.prompt.facts["method"] == "prompt-tuning"
    assert validate(model, last.prompt, lesson.rows).loss < before * 0.6


def test_the_start_is_the_one_that_diverges_least() -> None:
    model = backbone()
    lesson = prepare(model, TEXT, QUERIES, 8, CONFIG, form="embeddings")
    known = {
        one: embedding_starts.start_of(model, lesson.text, 8, one)  # type: ignore[arg-type]
        for one in ("first", "even", "vocabulary")
    }
    assert torch.equal(known["first"].tensors[0], lesson.text.embeddings[:8].float())
    found = {one: validate(model, prompt, lesson.rows).loss for one, prompt in known.items()}
    for order in (lesson.rows, lesson.rows[::-1]):
        best, said = embedding_starts.begin(model, lesson.text, 8, None, order)
        expected = min(found, key=lambda one: found[one])
        assert best.content_hash == known[expected].content_hash
        assert f"{expected} {found[expected]:.3g}" in said and "KL on" in said
    named = prepare(model, TEXT, QUERIES, 8, replace(CONFIG, start="even"), form="embeddings")
    assert named.start.content_hash == known["even"].content_hash


def test_embeddings_of_a_smaller_prompt_are_some_of_the_larger_ones() -> None:
    model = backbone()
    large = prompt_of(model, 12, is_cached=False)
    lesson = prepare(model, large, QUERIES, 4, replace(CONFIG, start="first"), form="embeddings")
    assert torch.equal(lesson.start.embeddings, large.embeddings[:4].float())
    with pytest.raises(InputError, match="are not fewer: lower it$"):
        prepare(model, large, QUERIES, 12, CONFIG, form="embeddings")
    for start, said in (("first", "it has none"), ("attention", "has none: use first, even")):
        with pytest.raises(InputError, match=said):
            config = replace(CONFIG, start=start)  # type: ignore[arg-type]
            prepare(model, prompt_of(model), QUERIES, 4, config, form="embeddings")


def test_what_is_learned_is_what_a_run_says() -> None:
    assert form_of(TRAIN) == "key_values" and form_of(EMBEDDED) == "embeddings"
    assert form_of(replace(TRAIN, method="p-tuning")) == "embeddings"


def test_samples_of_the_embedded_student_itself_are_learned_from() -> None:
    model = backbone()
    own = replace(CONFIG, on_policy=0.5)
    *_, last = distill(model, prompt_of(model, 8), QUERIES, EMBEDDED, distill_config=own)
    assert isinstance(last.prompt, SoftPrompt) and last.prompt.form == "embeddings"
