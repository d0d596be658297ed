"""Numbers of a model that are not finite: every way to score or answer refuses them by name."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, Example, Row, SoftPrompt, answer, chat
from foreword.distillation.agreement import agreement
from foreword.errors import InputError
from foreword.evaluation.evaluation import Subject, evaluate
from foreword.evaluation.forgetting import forgetting
from foreword.evaluation.metrics import METRICS

EXAMPLES = [Example("a question of some length", "b", "rows:1")]
LOSS, EXACT, BARE = (METRICS["loss"],), (METRICS["exact"],), Subject("bare model")


def backbone_with(value: float) -> Backbone:
    model = tiny_models.build("llama", dtype=torch.float32, vocab_size=263, eos_token_id=2)
    with torch.no_grad():
        model.lm_head.weight.fill_(value)
    return Backbone(model, tiny_tokenizer(), name="tiny")


def _lm_eval(backbone: Backbone) -> Any:
    harness = pytest.importorskip("foreword.evaluation.lm_eval", exc_type=ImportError)
    model = object.__new__(harness.ForewordLM)
    model.backbone, model.prompt, model.prefix, model.batch_size = backbone, None, None, 1
    return model._loglikelihood_tokens([(None, [40, 41], [42])])


def _forgetting(backbone: Backbone) -> Any:
    prompt = tiny_models.embeddings(backbone.model, 4)
    return forgetting(backbone, SoftPrompt.from_embeddings(prompt), "a text " * 40)


WAYS: dict[str, Callable[[Backbone], Any]] = {
    "loss": lambda b: evaluate(b, BARE, EXAMPLES, LOSS),
    "choices": lambda b: evaluate(b, BARE, EXAMPLES, EXACT, choices=("b", "c")),
    "answers": lambda b: evaluate(b, BARE, EXAMPLES, EXACT),
    "forgetting": _forgetting,
    "lm-eval": _lm_eval,
    "agreement": lambda b: agreement(b, None, [Row((40, 41, 42), 1, "rows:1")]),
    "answer": lambda b: answer(b, None, ["a"], max_new_tokens=2),
    "drawn": lambda b: answer(b, None, ["a"], max_new_tokens=2, temperature=1.0),
    "stream": lambda b: list(chat.stream(b, None, "a", max_new_tokens=2)),
}


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_way_names_the_dtype(way: Callable[[Backbone], Any], value: float) -> None:
    with pytest.raises(InputError, match=r"not finite.*; load the base in float32 or bfloat16"):
        way(backbone_with(value))
