"""The contract on the embedded model in float32: real weights, real text."""

import functools
import html
from typing import Any

import oracle
import pytest
import torch
from contract import CASES, GREEDY, ForewordSubject, World

from foreword import Backbone, SoftPrompt
from foreword.chat import answers, stream
from foreword.config import EncodingConfig

TEXTS = ["turn on the kitchen lights", "what is the capital of France?", "set a timer"]
ROW = EncodingConfig(row_template="<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n")


@functools.cache
def backbone() -> Backbone:
    return Backbone.load("smollm2-135m")


@functools.cache
def prompt(form: str) -> SoftPrompt:
    model = backbone()
    ids = model.tokenizer("You answer in French, in one word.", return_tensors="pt").input_ids[0]
    embeddings = model.embed(ids)
    noise = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(0))
    made = SoftPrompt.from_embeddings(embeddings + 0.02 * noise)
    if form == "embeddings":
        return made
    states = model.compile(made).key_values
    return SoftPrompt.from_key_values([(k * 1.01, v * 0.99) for k, v in states])


def test_the_base_says_that_its_weights_were_unpacked() -> None:
    said = backbone().identity()["weights"]
    assert "Q4_1" in said and "float32" in said
    facts = {"base": backbone().identity()}
    made = SoftPrompt.from_embeddings(prompt("embeddings").embeddings, facts=facts)
    assert made.outline()["weights"] == said and html.escape(said) in made._repr_html_()


def rows() -> list[torch.Tensor]:
    return [
        torch.tensor(backbone().tokenizer(ROW.row_template.replace("{prompt}", text)).input_ids)
        for text in TEXTS
    ]


@pytest.mark.parametrize("form", ["embeddings", "key_values"])
def test_padded_logits_equal_the_oracle(form: str) -> None:
    found = rows()
    length = max(len(row) for row in found)
    ids = torch.stack([torch.nn.functional.pad(row, (length - len(row), 0)) for row in found])
    mask = torch.stack(
        [torch.nn.functional.pad(torch.ones_like(row), (length - len(row), 0)) for row in found]
    )
    with torch.no_grad():
        logits = backbone().logits(prompt(form), ids, mask)
        for index, row in enumerate(found):
            expected = oracle.row_logits(backbone().model, prompt(form), row)
            error = (logits[index, length - len(row) :] - expected).abs().max()
            assert error <= 2e-4


@pytest.mark.parametrize("form", ["embeddings", "key_values"])
def test_batched_answers_equal_the_oracle(form: str) -> None:
    model = backbone()
    found = list(answers(model, prompt(form), TEXTS, ROW, max_new_tokens=12))
    for text_ids, answer in zip(rows(), found, strict=True):
        with torch.no_grad():
            expected = oracle.greedy(model.model, prompt(form), text_ids, answer.num_tokens)
        assert answer.text == model.tokenizer.decode(expected, skip_special_tokens=True)


class Endless(ForewordSubject):
    """foreword past the model's own end token, as the cases expect of models without one."""

    def generate(self, ids: torch.Tensor, mask: Any = None, **options: Any) -> Any:
        return self.backbone.generate(self.prompt, ids, mask, eos_token_id=1 << 20, **options)

    def generate_mixed(self, prompts: Any, ids: torch.Tensor, mask: torch.Tensor) -> Any:
        return self.backbone.generate(prompts, ids, mask, eos_token_id=1 << 20, **GREEDY)


@pytest.mark.parametrize("form", ["embeddings", "key_values"])
@pytest.mark.parametrize(
    "case", ["static_cache", "chunked_prefill", "multi_turn_padded", "mixed_prompts"]
)
def test_cases_of_the_contract_hold_on_real_weights(case: str, form: str) -> None:
    model = backbone().model
    with torch.no_grad():
        world = World(model, prompt(form), tolerance=2e-4)
        CASES[case](Endless(model, prompt(form)), world)


def test_streamed_pieces_are_the_answer() -> None:
    whole = next(answers(backbone(), prompt("embeddings"), TEXTS[:1], ROW, max_new_tokens=12))
    pieces = stream(backbone(), prompt("embeddings"), TEXTS[0], ROW, max_new_tokens=12)
    assert "".join(pieces) == whole.text


def test_closing_a_stream_stops_the_generation() -> None:
    pieces = stream(backbone(), None, "Count to one thousand.", ROW, max_new_tokens=2000)
    next(pieces)
    pieces.close()  # returns when the generation has ended
