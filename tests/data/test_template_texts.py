"""Of several chat templates that one is used which transformers takes, and none as a dict."""

from typing import Any

import pytest
from tiny_tokenizer import CHATML, tiny_tokenizer
from tool_templates import HERMES

from foreword.config import EncodingConfig
from foreword.data import encoding
from foreword.data.chat_template import ChatTemplate
from foreword.data.special_tokens import special_tokens_of
from foreword.data.template_dates import dated, prints_day
from foreword.data.template_texts import text_of, texts_of

TURNS: Any = [{"role": "user", "content": "hi"}]
TOOLS: Any = [{"type": "function", "function": {"name": "f", "description": "d"}}]
DATED = "{{ strftime_now('%Y') }}"


@pytest.mark.parametrize(
    "template",
    [None, HERMES, {"default": CHATML, "tool_use": HERMES}, {"default": HERMES}, {"rag": CHATML}],
)
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_the_template_is_the_one_that_transformers_fills(template: Any, tools: Any) -> None:
    tokenizer = tiny_tokenizer(chat_template=template)
    text = text_of(tokenizer, bool(tools))
    assert ChatTemplate(tokenizer, tools or ()).text == text
    if text is None:
        with pytest.raises(ValueError):
            tokenizer.apply_chat_template(TURNS, tools=tools)
        return
    expected = tokenizer.apply_chat_template(TURNS, tools=tools, tokenize=False)
    found = tokenizer.apply_chat_template(TURNS, tools=tools, tokenize=False, chat_template=text)
    assert found == expected


def test_all_templates_are_searched_for_turn_marks_as_they_are_written() -> None:
    tokenizer = tiny_tokenizer(chat_template={"default": CHATML, "tool_use": "a\n<tool>\n"})
    tokenizer.add_tokens(["\n<tool>\n", "<other>"])
    assert texts_of(tokenizer) == [CHATML, "a\n<tool>\n"]
    special = special_tokens_of(tokenizer)
    tokenizer.add_tokens(["<tool>"])
    assert special_tokens_of(tokenizer).spells("<tool>") and not special.spells("<other>")


def test_the_template_for_tools_prints_the_day_of_the_training() -> None:
    tokenizer = tiny_tokenizer(chat_template={"default": CHATML, "tool_use": DATED + HERMES})
    assert prints_day(tokenizer)
    config = dated(EncodingConfig(date="2024-05-06"), tokenizer, None)
    with_tools = encoding.encode_prompt(TURNS, tokenizer, config, tools=TOOLS)
    without = encoding.encode_prompt(TURNS, tokenizer, config)
    assert tokenizer.decode(with_tools).startswith("2024<|im_start|>")
    assert tokenizer.decode(without).startswith("<|im_start|>user")
