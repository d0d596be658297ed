"""Rows behind a prompt to start from: pairs as that prompt is asked, others with a word."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, SoftPrompt, TrainConfig, chat, train
from foreword.config import EncodingConfig
from foreword.errors import MismatchError
from foreword.named_text import text_prompt
from foreword.training.preference import Preference
from foreword.training.setup import prepare

ROWS = [{"prompt": f"say {word}", "completion": word} for word in "abcd"]
PAIRS = [{"prompt": f"say {word}", "chosen": word, "rejected": word * 2} for word in "abcd"]
CONFIG = TrainConfig(
    form="embeddings", num_virtual_tokens=2, init="vocabulary", num_steps=2, save_every=1
)
BY_TEMPLATE = EncodingConfig(row_template="Q: {prompt} A:", start_token=False)
WAYS = [
    BY_TEMPLATE,
    EncodingConfig(plain=True),
    EncodingConfig(opening="generation", special_tokens=True),
    EncodingConfig(),
]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    tokenizer = tiny_tokenizer()
    model = tiny_models.build("llama", vocab_size=len(tokenizer), dtype=torch.float32)
    return Backbone(model, tokenizer)


def trained(backbone: Backbone, how: EncodingConfig, **options: Any) -> SoftPrompt:
    *_, last = train(backbone, ROWS, CONFIG, encoding_config=how, **options)
    assert last.prompt is not None
    return last.prompt


def first_pair(backbone: Backbone, initial: SoftPrompt, how: EncodingConfig | None = None) -> Any:
    """Return what stands before the answers of the first pair, as ids, and what is said."""
    given = how or EncodingConfig()
    run, state, said = prepare(
        backbone, PAIRS, replace(CONFIG, init="text"), [], given, initial, None, False,
        objective=Preference(),
    )  # fmt: skip
    row = next(one for one in run.rows if one.source == "example 1")
    return list(row.input_ids[: -row.num_labels]), said, state.method.facts["encoding"]


@pytest.mark.parametrize("how", WAYS)
def test_pairs_stand_behind_the_prompt_as_it_is_asked(
    backbone: Backbone, how: EncodingConfig
) -> None:
    initial = trained(backbone, how)
    asked, _ = chat.encode(
        backbone, chat.typed(backbone, initial, "say a"), chat.encoding_of(initial)
    )
    before, said, facts = first_pair(backbone, initial)
    assert before == list(asked) and said == []
    assert facts == initial.facts["encoding"]


def test_pairs_behind_a_text_under_a_name_are_asked_as_it_is(backbone: Backbone) -> None:
    initial = text_prompt(backbone, "Be kind.")
    asked, _ = chat.encode(
        backbone, chat.typed(backbone, initial, "say a"), chat.encoding_of(initial)
    )
    assert first_pair(backbone, initial)[0] == list(asked)


def test_an_option_says_how_pairs_are_written_and_the_difference_is_said(
    backbone: Backbone,
) -> None:
    initial = trained(backbone, BY_TEMPLATE)
    before, said, facts = first_pair(backbone, initial, EncodingConfig(plain=True))
    assert before == list(chat.encode(backbone, "say a", EncodingConfig(plain=True))[0])
    assert facts["row_template"] is None
    assert len(said) == 1 and "(--row-template, plain text or turns)" in said[0]


def test_pairs_are_refused_where_the_chat_template_is_another(backbone: Backbone) -> None:
    initial = trained(backbone, EncodingConfig())
    other = tiny_tokenizer()
    other.chat_template += " "
    with pytest.raises(MismatchError, match="chat template"):
        first_pair(Backbone(backbone.model, other), initial)


def test_a_run_on_pairs_goes_on_with_its_rows(backbone: Backbone, tmp_path: Path) -> None:
    initial = trained(backbone, BY_TEMPLATE)
    given = {"initial": initial, "objective": Preference(), "checkpoint": tmp_path}
    events = train(backbone, PAIRS, CONFIG, **given)
    next(events)
    events.close()  # type: ignore[attr-defined]
    *_, last = train(backbone, PAIRS, CONFIG, resume=True, **given)
    assert last.step == 2 and last.prompt is not None
    assert last.prompt.facts["encoding"]["row_template"] == BY_TEMPLATE.row_template


@pytest.mark.parametrize(
    ("then", "now", "named"),
    [
        (BY_TEMPLATE, EncodingConfig(), "(--row-template)"),
        (BY_TEMPLATE, replace(BY_TEMPLATE, start_token=True), "(--start-token)"),
        (EncodingConfig(plain=True), EncodingConfig(), "(plain text or turns)"),
        (EncodingConfig(), EncodingConfig(opening="generation"), "(--opening)"),
        (EncodingConfig(), EncodingConfig(special_tokens=True), "(--special-tokens)"),
        (EncodingConfig(plain=True), EncodingConfig(plain=True, opening="generation"), None),
        (EncodingConfig(), EncodingConfig(), None),
    ],
)
def test_rows_with_one_answer_are_as_the_options_say_and_the_difference_is_said(
    backbone: Backbone, then: EncodingConfig, now: EncodingConfig, named: str | None
) -> None:
    initial = trained(backbone, then)
    events = list(train(backbone, ROWS, CONFIG, encoding_config=now, initial=initial))
    said = [one for event in events for one in event.notices if "written otherwise" in one]
    assert [named is not None and named in one for one in said] == [True] * (named is not None)
    assert events[-1].prompt is not None
    assert events[-1].prompt.facts["encoding"]["row_template"] == now.row_template


def test_another_chat_template_of_the_tokenizer_is_said(backbone: Backbone) -> None:
    initial = trained(backbone, EncodingConfig())
    other = tiny_tokenizer()
    other.chat_template += " "
    event, *_ = train(Backbone(backbone.model, other), ROWS, CONFIG, initial=initial)
    assert any("(the chat template)" in one for one in event.notices)


def test_of_a_prompt_without_facts_nothing_is_said(backbone: Backbone) -> None:
    event, *_ = train(backbone, ROWS, CONFIG, initial=SoftPrompt.from_embeddings(torch.ones(2, 32)))
    assert not any("otherwise" in one for one in event.notices)
