"""Memory: what an answer has taken is free once nobody holds it, without the garbage collector."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, Row, SoftPrompt, TrainConfig, chat
from foreword.evaluation.losses import label_losses
from foreword.training.loop import train

NUM_ROWS = 13  # a size that no other tensor has


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def num_tensors() -> int:
    """Count the tensors that hold something of each row."""
    found = (one for one in gc.get_objects() if issubclass(type(one), torch.Tensor))
    return sum(one.dim() > 2 and one.shape[0] == NUM_ROWS for one in found)


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_next", "deepseek_v3"])
@pytest.mark.parametrize("form", ["embeddings", "key_values", None])
def test_an_answer_leaves_nothing_behind(family: str, form: str | None) -> None:
    tokenizer = tiny_tokenizer()
    model = Backbone(tiny_models.build(family, vocab_size=len(tokenizer)), tokenizer)
    width = model.model.get_input_embeddings().weight.shape[1]
    embeddings = torch.randn(4, width, generator=torch.Generator().manual_seed(0)).double() * 0.3
    prompt: Any = SoftPrompt.from_embeddings(embeddings)
    if form == "key_values":
        prompt = model.compile(prompt)
    prompt = prompt if form else None
    rows = [Row.from_ids([5, 6, 7], [8]) for _ in range(NUM_ROWS)]
    ids = torch.tensor([[5, 6, 7]] * NUM_ROWS)
    prefix = model.compile(prompt) if prompt is not None else None
    list(chat.answer_rows(model, prefix, rows, [[]] * NUM_ROWS, max_new_tokens=3))
    model.generate(prompt, ids, max_new_tokens=3)
    label_losses(model, prompt, rows)
    assert num_tensors() == 0
    taken = model.generate(prompt, ids, max_new_tokens=2, return_dict_in_generate=True)
    assert num_tensors() > 0
    del taken
    assert num_tensors() == 0


def test_training_leaves_nothing_behind() -> None:
    tokenizer = tiny_tokenizer()
    model = Backbone(tiny_models.build("llama", vocab_size=len(tokenizer)), tokenizer)
    rows = [Row.from_ids([5, 6, 7], [8]) for _ in range(NUM_ROWS)]
    config = TrainConfig(
        num_virtual_tokens=3, num_steps=2, batch_size=NUM_ROWS, method="prefix-tuning"
    )
    *_, _ = train(model, rows, config, validation=rows)
    assert num_tensors() == 0
