"""Student rows: queries are encoded behind the small prompt as they stand behind the whole text.

In: a text as a prompt, and the queries. Out: how rows are encoded behind the prompt that is to take
its place: id for id as behind the text, so that no default system turn of a chat template comes
between them. Knows no answer, and trains nothing.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from foreword import chat
from foreword.backbone import Backbone
from foreword.config import EncodingConfig
from foreword.errors import ForewordError
from foreword.named_text import holds_text, text_prompt
from foreword.prompt.soft_prompt import SoftPrompt

STANDS_FOR = "-"  # what is said in the text's place while a row is written, and then cut off


def student_encoding(
    backbone: Backbone, text: SoftPrompt, queries: Sequence[chat.Text]
) -> EncodingConfig:
    """Return how rows are encoded behind a prompt that takes a text's place; or that of another
    prompt, behind which rows stand as they do there.

    Of a text, the prompt is said to hold turns of the same roles with a dash each, which stand
    before a row while its template is filled, and whose ids are cut off. Where a query would not
    come out as it does behind the text, and for plain text, rows are encoded as the bare model is
    asked.
    """
    known = chat.encoding_of(text)
    if not holds_text(text):
        return known
    plain = replace(known, held_text=None, held_tokens=0, held_hash=None)
    turns = _dashes(json.loads(known.held_text or '""'))
    if not turns:
        return plain
    try:
        short = chat.encoding_of(text_prompt(backbone, turns, plain))
        pairs = ([chat.encode(backbone, one, how)[0] for how in (known, short)] for one in queries)
        return short if all(one == other for one, other in pairs) else plain
    except ForewordError:
        return plain


def _dashes(held: Any) -> list[dict[str, str]]:
    """Return the fewest turns that stand before a row as the held ones do: up to the first answer,
    or an instruction alone.
    """
    if isinstance(held, str):
        return []
    roles = [turn["role"] for turn in held]
    if "assistant" in roles:
        roles = roles[: roles.index("assistant") + 1]
    return [{"role": role, "content": STANDS_FOR} for role in roles]
