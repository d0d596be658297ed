"""What a call that answers texts cannot read is refused, and what passes the context is said."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import seq2seq_models
import torch
from serving import TOKENIZER, tiny_backbone, tiny_prompt
from transformers import GenerationConfig, StoppingCriteria

from foreword import Backbone, answer, chat, stream
from foreword.errors import InputError

TEXTS: Any = ["a", [{"role": "user", "content": "b"}]]


@pytest.mark.parametrize(
    ("texts", "options", "expected"),
    [
        ("a", {}, "a list of texts and conversations, got one text"),
        (TEXTS[1], {}, "got one conversation"),
        (None, {}, "got NoneType"),
        (TEXTS, {"batch_size": 0}, "batch_size must be .* got 0"),
        (TEXTS, {"batch_size": -1}, "batch_size must be .* got -1"),
        (TEXTS, {"batch_size": True}, "batch_size must be .* got True"),
        (TEXTS, {"tools": [()]}, "tools: expected some for each of 2 texts.* got 1"),
        (TEXTS, {"tools": [()] * 3}, "tools: expected some for each of 2 texts.* got 3"),
        (TEXTS, {"num_return_sequences": 2}, "num_return_sequences: expected one answer"),
        (TEXTS, {"return_dict_in_generate": True}, "return_dict_in_generate: expected one"),
        (TEXTS, {"eos_token_id": 3}, "eos_token_id: answers to texts decide it"),
        (TEXTS, {"pad_token_id": 3}, "pad_token_id: answers to texts decide it"),
        (TEXTS, {"input_ids": None}, "input_ids: answers to texts decide it"),
        (TEXTS, {"temperature": 5.0}, "temperature: the likeliest ids are taken.*do_sample=True"),
        (TEXTS, {"top_k": 3, "top_p": 0.5}, "top_k, top_p: the likeliest ids are taken"),
        (TEXTS, {"max_length": 30}, "max_length: .* give max_new_tokens"),
        (TEXTS, {"generation_config": {}}, "generation_config: expected a GenerationConfig, got"),
        (TEXTS, {"generation_config": GenerationConfig(top_k=3)}, "top_k: the likeliest ids"),
        (TEXTS, {"generation_config": GenerationConfig(max_length=3)}, "max_length: "),
        (TEXTS, {"generation_config": GenerationConfig(eos_token_id=3)}, "eos_token_id: answers"),
    ],
)
def test_what_cannot_be_read_as_answers_is_refused(
    texts: Any, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        chat.answers(tiny_backbone(), None, texts, **options)


def test_settings_of_a_configuration_are_refused_as_those_of_the_call() -> None:
    backbone = tiny_backbone()
    config = backbone.model.generation_config.__class__(num_return_sequences=2, num_beams=2)
    with pytest.raises(InputError, match="num_return_sequences"):
        chat.answers(backbone, None, TEXTS, generation_config=config)
    for name in ("streamer", "stopping_criteria", "eos_token_id"):
        with pytest.raises(InputError, match=name):
            next(chat.stream(backbone, None, "a", **{name: None}))
    assert len(list(chat.answers(backbone, None, TEXTS, num_return_sequences=1))) == 2
    assert list(chat.answers(backbone, None, [])) == []


def test_a_configuration_of_the_call_counts_as_its_options_do() -> None:
    backbone = tiny_backbone()
    ends = backbone.model.generation_config.eos_token_id

    def asked(**options: Any) -> list[str]:
        torch.manual_seed(3)
        found = [one.text for one in chat.answers(backbone, None, TEXTS, **options)]
        return [*found, "".join(chat.stream(backbone, None, "b", **options))]

    for options in (
        {"max_new_tokens": 3},
        {"max_new_tokens": 9, "do_sample": True, "temperature": 5.0},
        {"max_new_tokens": 9, "do_sample": True, "top_k": 2},
        {"max_new_tokens": 9, "do_sample": False, "temperature": 5.0},  # said to be greedy
        {"max_new_tokens": 9, "repetition_penalty": 3.0},
    ):
        expected = asked(**options)
        own = GenerationConfig(**options, eos_token_id=ends, max_length=900)
        assert asked(generation_config=own) == expected
        if "do_sample" in options:
            greedy = asked(max_new_tokens=9)
            assert (expected == greedy) is (options["do_sample"] is False)
    limited = GenerationConfig(max_new_tokens=9)
    assert asked(generation_config=limited, max_new_tokens=2) == asked(max_new_tokens=2)


class _AtEven(StoppingCriteria):
    """Ends each row whose last id is even."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return input_ids[:, -1] % 2 == 0


SEVERAL: Any = ["a", "bc", "d e f", "gh"]


def _reads_apart() -> Backbone:
    return Backbone(seq2seq_models.build("t5", vocab_size=len(TOKENIZER)), TOKENIZER)


@pytest.mark.parametrize("build", [tiny_backbone, _reads_apart])
@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize("way", ["strings", "configured", "criteria"])
def test_an_answer_that_is_stopped_in_a_batch_is_that_of_its_row_alone(
    way: str, num_beams: int, build: Callable[[], Backbone]
) -> None:
    backbone = build()
    texts = [one.text for one in chat.answers(backbone, None, SEVERAL, max_new_tokens=12)]
    [end, *_] = [
        char for char in "".join(texts) if char.isalnum() and len({t.find(char) for t in texts}) > 1
    ]
    options: dict[str, Any] = {
        "strings": {"stop_strings": [end]},
        "configured": {"generation_config": GenerationConfig(stop_strings=[end])},
        "criteria": {"stopping_criteria": [_AtEven()]},
    }[way]
    options |= {"max_new_tokens": 12, "tokenizer": TOKENIZER, "num_beams": num_beams}
    together = list(chat.answers(backbone, None, SEVERAL, **options))
    alone = [next(chat.answers(backbone, None, [text], **options)) for text in SEVERAL]
    assert together == alone
    if build is tiny_backbone:  # the other one says much the same to each
        assert len({one.num_tokens for one in together}) > 1


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [one.getMessage() for one in caplog.records if one.name == "foreword"]
    caplog.clear()
    return found


def test_tokens_past_the_context_are_said_once_for_a_call(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "foreword")
    backbone = tiny_backbone()
    prompt, most = tiny_prompt(backbone), backbone.capabilities.context_length
    assert most is not None
    long = "a" * most
    ids = len(chat.encode(backbone, [{"role": "user", "content": long}], chat.encoding_of(None))[0])
    options: Any = {"max_new_tokens": 2, "batch_size": 1}
    answer(backbone, prompt, ["a", long, long], **options)
    [line] = said(caplog)
    assert f"made for {most} tokens" in line and f"{ids + 4} (4 virtual, {ids} of the text" in line
    assert list(stream(backbone, prompt, long, max_new_tokens=2)) is not None
    assert len(said(caplog)) == 1
    answer(backbone, prompt, ["a", "b"], **options)
    assert not said(caplog)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_an_answer_that_passes_the_context_is_said(
    is_streamed: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING, "foreword")
    backbone = tiny_backbone()
    most = backbone.capabilities.context_length
    assert most is not None
    monkeypatch.setattr(chat, "end_tokens", lambda *of: [])
    monkeypatch.setattr(backbone.model.generation_config, "eos_token_id", None)
    row = [*TOKENIZER("a" * (most - 3))["input_ids"]]
    for num_new in (3, 4):
        text, options = "a" * len(row), {"max_new_tokens": num_new}
        if is_streamed:
            list(chat.stream(backbone, None, text, **options))
        else:
            list(chat.answers(backbone, None, [text], **options))  # type: ignore[arg-type]
        lines = said(caplog)
        assert len(lines) == (num_new > 3)
    assert f"here are {most + 1} (0 virtual, {len(row)} of the text, 4 of the answer)" in lines[0]
