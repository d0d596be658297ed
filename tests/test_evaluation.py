"""Evaluation: scores, instructions as system turns, nearest tokens."""

import pytest
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, EncodingConfig, Example
from foreword.errors import InputError
from foreword.evaluation import System, evaluate, read_as, same_json

EXAMPLES = [Example("a", "b", "rows:1"), Example("b", "a", "rows:2")]


def backbone() -> Backbone:
    tokenizer = tiny_tokenizer()
    model = tiny_models.build("llama", dtype=torch.float32, vocab_size=len(tokenizer))
    return Backbone(model, tokenizer)


def test_scores_count_the_answers_that_match() -> None:
    plain = System("bare", encoding=EncodingConfig(row_template="{prompt}"))
    always = {"always": lambda answer, expected: True, "never": lambda answer, expected: False}
    seen = []
    result = evaluate(
        backbone(), plain, EXAMPLES, always, on_answer=lambda: seen.append(1), max_new_tokens=3
    )
    assert result.scores == {"always": 1.0, "never": 0.0}
    assert len(result.answers) == len(seen) == 2


def test_no_examples_is_an_error() -> None:
    with pytest.raises(InputError, match="at least one"):
        evaluate(backbone(), System("bare"), [])


def test_an_instruction_is_the_system_turn() -> None:
    turns = read_as(backbone(), System("x", instruction="Be brief."), "hi")
    assert turns == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
    ]


def test_json_is_compared_by_meaning() -> None:
    assert same_json('{"a": 1, "b": 2}', '{"b":2,"a":1}')
    assert not same_json("{", "{}")
