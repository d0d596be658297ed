"""Rows of several kinds in one run: each is asked as rows of its kind were trained."""

from typing import Any

import pytest
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, EncodingConfig, Example, TrainConfig, chat, train
from foreword.config import EvalConfig
from foreword.evaluation.evaluation import Subject, evaluate
from foreword.evaluation.metrics import METRICS

PLAIN = [Example(f"say {text}", f" {text}") for text in ("yes", "no", "a")]
CONVERSATIONS = [Example(({"role": "user", "content": text},), "hello") for text in "ab"]
FILLED = [
    Example(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n", "hi") for text in "ab"
]


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("others", [[], CONVERSATIONS, FILLED, CONVERSATIONS + FILLED])
def test_what_is_evaluated_is_read_as_it_was_validated(others: list[Example], plain: bool) -> None:
    tokenizer = tiny_tokenizer()
    model = Backbone(
        tiny_models.build("llama", dtype=torch.float64, vocab_size=len(tokenizer)), tokenizer
    )
    config = TrainConfig(
        method="prompt-tuning", init="random", num_virtual_tokens=4, num_steps=1, eval_every=1
    )
    for asked in (PLAIN, CONVERSATIONS, FILLED):
        if not {type(one.prompt) for one in asked} <= {type(one.prompt) for one in PLAIN + others}:
            continue  # trained on nothing of the kind
        *_, last = train(
            model, PLAIN + others, config, validation=asked,
            encoding_config=EncodingConfig(plain=plain),
        )  # fmt: skip
        assert last.validation is not None and last.prompt is not None
        found = evaluate(
            model, Subject("", last.prompt), asked, (METRICS["loss"],), EvalConfig(max_new_tokens=1)
        )
        assert found.scores["loss"].value == pytest.approx(last.validation.loss, rel=1e-6)
        facts: dict[str, Any] = chat.saved_encoding(last.prompt)
        assert facts["is_text"] is (False if not plain else None if others else True)
        assert facts["is_spaced"] is (plain or not others)
        typed = chat.typed(model, last.prompt, "say yes")
        assert isinstance(typed, str) is plain
