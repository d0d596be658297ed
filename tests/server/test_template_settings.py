"""A reasoning effort reaches the chat template of the request, or the request is refused."""

from dataclasses import replace
from typing import Any

import pytest
import tiny_models
from tiny_tokenizer import CHATML, tiny_tokenizer
from tool_templates import HERMES

from foreword import Backbone, EncodingConfig, chat
from foreword.errors import InputError
from foreword.server.template_settings import with_effort

READS = "{{ '[' ~ (reasoning_effort | default('medium')) ~ ']' }}"
TURNS: Any = [{"role": "user", "content": "hi"}]
TOOLS: Any = [{"type": "function", "function": {"name": "f", "description": "d"}}]


def base(template: Any) -> Backbone:
    tokenizer = tiny_tokenizer(chat_template=template)
    return Backbone(tiny_models.build("llama", vocab_size=len(tokenizer)), tokenizer)


def shown(backbone: Backbone, config: EncodingConfig, tools: Any = ()) -> str:
    ids, _ = chat.encode(backbone, TURNS, config, tools=tools)
    return str(backbone.tokenizer.decode(ids))


BOTH = {"default": READS + CHATML, "tool_use": READS + HERMES}


@pytest.mark.parametrize("template", [READS + HERMES, BOTH])
@pytest.mark.parametrize("tools", [(), TOOLS])
def test_the_template_is_told_and_else_stays_as_it_is(template: Any, tools: Any) -> None:
    backbone, config = base(template), EncodingConfig()
    told = with_effort(backbone, config, "low", bool(tools))
    plain = shown(backbone, config, tools)
    assert plain.startswith("[medium]")
    assert shown(backbone, told, tools) == plain.replace("[medium]", "[low]")
    assert with_effort(backbone, config, None, bool(tools)) is config


@pytest.mark.parametrize(
    ("template", "changes", "has_tools"),
    [
        (CHATML, {}, False),
        (None, {}, False),
        ({"rag": READS + CHATML}, {}, False),
        ({"default": CHATML, "tool_use": READS + HERMES}, {}, False),
        ({"default": READS + CHATML, "tool_use": HERMES}, {}, True),
        (READS + CHATML, {"row_template": "Q: {prompt}"}, False),
        (READS + CHATML, {"is_text": True}, False),
        (READS + CHATML, {"chat_template": CHATML}, False),
    ],
)
def test_where_rows_are_written_without_one_it_is_refused(
    template: Any, changes: dict[str, Any], has_tools: bool
) -> None:
    config = replace(EncodingConfig(), **changes)
    with pytest.raises(InputError, match="reasoning_effort: rows of this model are written"):
        with_effort(base(template), config, "low", has_tools)
