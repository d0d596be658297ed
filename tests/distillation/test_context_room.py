"""A teacher never reads past the model's context, and answers are those of the very rows."""

import math
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from tiny_tokenizer import CHATML, tiny_tokenizer

from foreword import Backbone, SoftPrompt
from foreword.config import DistillConfig
from foreword.distillation.agreement import compare
from foreword.distillation.lesson import prepare
from foreword.distillation.teacher import teach
from foreword.errors import DataError, InputError
from foreword.evaluation.evaluation import Subject
from foreword.named_text import text_prompt

CONTEXT = 128
QUERIES: list[Any] = [[{"role": "user", "content": text}] for text in ("a", "hello", "a b")]
SHORT = DistillConfig(answer_tokens=3, answer_batch=2, top_k=8)


def small(family: str = "llama", **options: Any) -> Backbone:
    """Return a model of 128 positions."""
    tokenizer = tiny_tokenizer(**options)
    name = "n_positions" if family == "gpt2" else "max_position_embeddings"
    model = tiny_models.build(family, vocab_size=len(tokenizer), **{name: CONTEXT})
    return Backbone(model, tokenizer)


def test_a_query_without_room_for_its_answer_is_refused_by_name() -> None:
    model = small()
    text = text_prompt(model, "x" * 75)
    long = DistillConfig(answer_tokens=40, answer_batch=2)
    with pytest.raises(DataError, match="leaves no room for 40 of an answer: behind 83 virtual"):
        list(teach(model, text, QUERIES, long))
    with pytest.raises(DataError, match="leaves no room"):
        compare(model, text, QUERIES, [Subject("bare model")], long, rounds=1)
    keys = SoftPrompt.from_states(model.compile(text).cached)
    with pytest.raises(DataError, match="leaves no room"):
        prepare(model, keys, QUERIES, 8, long)
    assert len(list(teach(model, text, QUERIES, SHORT))) == 3


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_unrelated_text_stays_in_the_context_of_every_subject(family: str) -> None:
    model = small(family)
    text = text_prompt(model, "x" * 75)
    found = compare(model, text, QUERIES, [Subject("bare model")], SHORT, rounds=1)
    costs = found.costs
    assert abs(costs["bare model"].unrelated) < 1e-6 < costs["whole text"].unrelated < math.inf
    lesson = prepare(model, text, QUERIES, 70, SHORT)
    rows = [*lesson.rows, *lesson.unrelated]
    assert lesson.unrelated and all(len(row.input_ids) + 70 <= CONTEXT for row in rows)


@pytest.mark.parametrize("what", ["the template", "an end"])
def test_kept_answers_are_those_of_the_same_ids_and_ends(what: str, tmp_path: Path) -> None:
    model = small()
    text = text_prompt(model, "You are a cat.")
    list(teach(model, text, QUERIES, SHORT, tmp_path))
    assert list(teach(model, text, QUERIES, SHORT, tmp_path))
    if what == "the template":  # the same text before a query, and another opening behind it
        model.tokenizer.chat_template = CHATML.replace("assistant\n' }}", "assistant:' }}")
        again = text_prompt(model, "You are a cat.")
        assert again.content_hash == text.content_hash
    else:
        model.model.generation_config.eos_token_id = [2, 40]
        again = text
    with pytest.raises(InputError, match="answers of another"):
        list(teach(model, again, QUERIES, SHORT, tmp_path))
    assert torch.equal(again.tensors[0], text.tensors[0])
