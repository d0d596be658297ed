"""Ensembles: one mixed batch equals every prompt asked alone, and the mean is the mean."""

from typing import Any

import oracle
import pytest
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer
from transformers import GenerationConfig

from foreword import Backbone, EncodingConfig, SoftPrompt, chat
from foreword.errors import InputError
from foreword.evaluation.ensembles import averaged, vote

TEXTS = ["abc", "a longer text", "x y"]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    tokenizer = tiny_tokenizer(chat_template=None)
    model = tiny_models.build("llama", vocab_size=len(tokenizer))
    return Backbone(model, tokenizer)


def test_every_prompt_reads_and_ends_as_it_was_trained(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(backbone: Backbone, text: Any, config: EncodingConfig, tools: Any = ()) -> list[int]:
        return list(range(130)) if config.row_template else list(range(130, 263))

    monkeypatch.setattr(chat, "end_tokens", ends)
    values = tiny_models.embeddings(backbone.model, 4)
    other = Backbone(backbone.model, tiny_tokenizer())  # with a chat template, and its own end
    turns = [[{"role": "user", "content": text}] for text in TEXTS]
    ensemble = [
        SoftPrompt.from_embeddings(values * scale, facts={"encoding": {"row_template": template}})
        for scale, template in ((1, None), (2, "Q: {prompt}"), (3, None))
    ]
    found = list(vote(other, ensemble, turns, max_new_tokens=4))
    for index, prompt in enumerate(ensemble):
        alone = list(chat.answers(other, prompt, turns, max_new_tokens=4))
        assert [one.answers[index] for one in found] == alone


@pytest.fixture(scope="module")
def prompts(backbone: Backbone) -> list[SoftPrompt]:
    return [
        SoftPrompt.from_embeddings(2 * tiny_models.embeddings(backbone.model, length, seed))
        for length, seed in ((3, 1), (5, 2), (4, 3))
    ]


@pytest.mark.parametrize("batch_size", [1, 6, 32])
def test_a_vote_hears_every_prompt_as_if_alone(
    backbone: Backbone, prompts: list[SoftPrompt], batch_size: int
) -> None:
    found = list(vote(backbone, prompts, TEXTS, batch_size=batch_size, max_new_tokens=4))
    for index, prompt in enumerate(prompts):
        alone = list(chat.answers(backbone, prompt, TEXTS, max_new_tokens=4))
        assert [one.answers[index] for one in found] == alone
    assert len({answer.text for one in found for answer in one.answers}) > 1


def test_a_configuration_of_the_call_counts(backbone: Backbone, prompts: list[SoftPrompt]) -> None:
    options = {"max_new_tokens": 2, "repetition_penalty": 3.0}
    expected = list(vote(backbone, prompts, TEXTS, **options))  # type: ignore[arg-type]
    own = GenerationConfig(**options)
    assert list(vote(backbone, prompts, TEXTS, generation_config=own)) == expected


def test_the_majority_wins_and_the_first_of_equals(
    backbone: Backbone, prompts: list[SoftPrompt]
) -> None:
    first, second, _ = prompts
    for ensemble, winner, share in (
        ([first, second, second], second, 2 / 3),
        ([second, first], second, 1 / 2),
    ):
        (found,) = vote(backbone, ensemble, TEXTS[:1], max_new_tokens=4)
        (expected,) = chat.answers(backbone, winner, TEXTS[:1], max_new_tokens=4)
        assert found.answer == expected and found.share == pytest.approx(share)


def test_averaged_answers_are_of_the_mean_probability(
    backbone: Backbone, prompts: list[SoftPrompt]
) -> None:
    found = list(averaged(backbone, prompts, TEXTS, max_new_tokens=4))
    for text, answer in zip(TEXTS, found, strict=True):
        ids = torch.tensor(backbone.tokenizer(text).input_ids)
        start = len(ids)
        for _ in range(4):
            rows = [oracle.row_logits(backbone.model, prompt, ids)[-1] for prompt in prompts]
            mean = torch.stack(rows).softmax(-1).mean(0)
            ids = torch.cat([ids, mean.argmax()[None]])
        assert answer == chat.read_answer(
            backbone, ids[start:].tolist(), [backbone.tokenizer.eos_token_id]
        )


def test_an_ensemble_of_one_is_that_prompt(backbone: Backbone, prompts: list[SoftPrompt]) -> None:
    alone = list(chat.answers(backbone, prompts[0], TEXTS, max_new_tokens=4))
    assert list(averaged(backbone, prompts[:1], TEXTS, max_new_tokens=4)) == alone


def test_prompts_of_other_encodings_are_not_averaged(backbone: Backbone) -> None:
    plain, wrapped = (
        SoftPrompt.from_embeddings(
            torch.ones(2, 32), facts={"encoding": {"row_template": template}}
        )
        for template in (None, "Q: {prompt}")
    )
    with pytest.raises(InputError, match="encoded differently"):
        list(averaged(backbone, [plain, wrapped], TEXTS))
    with pytest.raises(InputError, match="at least one prompt"):
        list(vote(backbone, [], TEXTS))


def test_prompts_that_differ_in_the_length_of_rows_alone_are_averaged(backbone: Backbone) -> None:
    prompts = [
        SoftPrompt.from_embeddings(
            torch.ones(2, 32), facts={"encoding": {"max_length": size, "truncate": size > 100}}
        )
        for size in (100, 200)
    ]
    assert list(averaged(backbone, prompts, TEXTS, max_new_tokens=2))
