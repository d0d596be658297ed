"""Recorded facts: what a run and a prompt say of their making is compared when they are used."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, TrainConfig, chat, train
from foreword.config import EncodingConfig
from foreword.data import template_dates
from foreword.errors import InputError, MismatchError

TURNS = [
    {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
    for q, a in (("ab", "x"), ("cd", "y"), ("ef", "z"))
]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TODAY = '{% if strftime_now is defined %}{{ strftime_now("%d %b %Y") }}{% endif %}' + TEMPLATE
CONFIG = TrainConfig(
    method="prompt-tuning", num_virtual_tokens=2, init="vocabulary", num_steps=2, learning_rate=0.1
)


def backbone(template: str = TEMPLATE, dtype: Any = torch.float32, more: str = "") -> Backbone:
    tokenizer = tiny_tokenizer()
    size = len(tokenizer)
    tokenizer.chat_template = template
    if more:
        tokenizer.add_tokens([more])
    model = tiny_models.build("llama", dtype=torch.float32, vocab_size=size + 1)
    return Backbone(model.to(dtype), tokenizer)


def left(folder: Path, base: Backbone, encoding: EncodingConfig | None = None) -> None:
    events = train(base, TURNS, CONFIG, checkpoint=folder, encoding_config=encoding)
    next(events)
    events.close()  # type: ignore[attr-defined]


def resumed(folder: Path, base: Backbone, encoding: EncodingConfig | None = None) -> Any:
    events = train(base, TURNS, CONFIG, checkpoint=folder, resume=True, encoding_config=encoding)
    return list(events)[-1].prompt


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dtype": torch.bfloat16}, r"the base's dtype differ \(expected float32, got bfloat16\)"),
        ({"more": "qq"}, r"the tokenizer's vocabulary differ \(expected \w+, got \w+\)"),
        ({"template": TEMPLATE + "{# #}"}, r"the chat template differ \(expected \w+, got \w+\)"),
    ],
)
def test_a_run_goes_on_only_as_it_was_recorded(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    left(tmp_path, backbone())
    with pytest.raises(InputError, match=named):
        resumed(tmp_path, backbone(**changes))


def test_rows_that_differ_are_named_with_both_hashes(tmp_path: Path) -> None:
    left(tmp_path, backbone())
    with pytest.raises(InputError, match=r"the training rows differ \(expected \w+, got \w+\)"):
        list(train(backbone(), TURNS[:2], CONFIG, checkpoint=tmp_path, resume=True))


@pytest.fixture
def days(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A list whose last entry is today."""
    from transformers.utils import chat_template_utils

    found = ["2026-01-31"]

    class Clock(template_dates.datetime):  # type: ignore[misc,name-defined]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls.fromisoformat(found[-1])

    monkeypatch.setattr(template_dates, "datetime", Clock)
    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    yield found


def test_a_run_goes_on_the_next_day_and_its_prompt_is_asked_as_it_was_trained(
    tmp_path: Path, days: list[str]
) -> None:
    base = backbone(TODAY)
    calm = list(train(base, TURNS, CONFIG))[-1].prompt
    left(tmp_path, base)
    asked = chat.encode(base, TURNS[0]["messages"][:1], chat.encoding_of(calm))[0]
    days.append("2026-02-01")
    prompt = resumed(tmp_path, base)
    assert prompt.content_hash == calm.content_hash
    config = chat.encoding_of(prompt)
    assert config.date == "2026-01-31"
    assert chat.encode(base, TURNS[0]["messages"][:1], config)[0] == asked
    bare = chat.encode(base, TURNS[0]["messages"][:1], EncodingConfig())[0]
    assert bare != asked  # what is not trained prints today
    with pytest.raises(InputError, match="--date was '2026-01-31', is '2026-02-01'"):
        resumed(tmp_path, base, EncodingConfig(date="2026-02-01"))


def test_a_date_is_kept_only_where_a_template_prints_one(tmp_path: Path) -> None:
    prompt = list(train(backbone(), TURNS, CONFIG))[-1].prompt
    assert prompt is not None and prompt.facts["encoding"]["date"] is None
    with pytest.raises(InputError, match="--date is for chat templates that print"):
        train(backbone(), TURNS, CONFIG, encoding_config=EncodingConfig(date="2026-01-31"))
    with pytest.raises(InputError, match="--date must be a day"):
        EncodingConfig(date="tomorrow")


def test_a_date_that_a_template_computes_is_refused() -> None:
    computed = "{% set f = '%d' %}{{ strftime_now(f) }}" + TEMPLATE
    with pytest.raises(InputError, match="cannot be kept for later days"):
        train(backbone(computed), TURNS, CONFIG)


def test_a_prompt_is_refused_behind_another_tokenizer_or_template() -> None:
    prompt = list(train(backbone(), TURNS, CONFIG))[-1].prompt
    assert prompt is not None
    with pytest.raises(MismatchError, match="another tokenizer .*vocabulary .expected"):
        backbone(more="qq").compile(prompt)
    other = backbone(TEMPLATE + "{# #}")
    other.compile(prompt)  # ids need no template
    for ask in (chat.answers, chat.stream):
        text: Any = ["a"] if ask is chat.answers else "a"
        with pytest.raises(MismatchError, match="the chat template .expected"):
            next(ask(other, prompt, text))
    plain = [{"prompt": "ab", "completion": "x"}, {"prompt": "cd", "completion": "y"}]
    as_text = EncodingConfig(plain=True)
    of_text = list(train(backbone(), plain, CONFIG, encoding_config=as_text))[-1].prompt
    assert list(chat.answers(other, of_text, ["a"], max_new_tokens=1))
