"""Dates in chat templates: a template that prints today's date prints the day of the training.

In: a chat template, and the day that a run began on, as its `EncodingConfig` records it. Out: the
template with that day in the place of today's, so that rows read the same on every later day: in a
run that goes on, in an evaluation and in an answer. Knows no tokenizer.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any

from foreword.config import EncodingConfig
from foreword.data.template_texts import text_of
from foreword.errors import InputError

# transformers gives templates this one function of the time; see `chat_template_utils`.
CALL = re.compile(r"\bstrftime_now\s*\(\s*(?:format\s*=\s*)?('[^'\\]*'|\"[^\"\\]*\")\s*\)")
ANY_CALL = re.compile(r"\bstrftime_now\s*\(")


def prints_day(*readers: Any) -> bool:
    """Return whether the chat template of a tokenizer or a processor prints today's date."""
    return any(map(ANY_CALL.search, _own(readers)))


def dated(
    config: EncodingConfig, *readers: Any, recorded: EncodingConfig | None = None
) -> EncodingConfig:
    """Return how rows are encoded, with the day that chat templates print, where they print one.

    Args:
        config: as it was asked for.
        readers: the tokenizer and the processor, or None.
        recorded: how the run encodes that goes on; default: a run begins, today.

    Raises:
        InputError: a day for templates that print none, or a date that cannot be fixed.
    """
    templates = [config.chat_template] if config.chat_template else _own(readers)
    templates = templates if config.row_template is None else []
    printing = [one for one in templates if ANY_CALL.search(one)]
    if config.date is not None:
        if not printing:
            raise InputError(
                "--date is for chat templates that print today's date, and rows are encoded "
                "without one: leave it out"
            )
    elif recorded is not None:
        return replace(config, date=recorded.date)
    elif printing:
        config = replace(config, date=datetime.now().date().isoformat())
    for template in printing:
        on_day(template, config.date)
    return config


def _own(readers: Iterable[Any]) -> list[str]:
    """Return the chat templates that rows are written by, without tools and with some."""
    found = [text_of(reader, has_tools) for reader in readers for has_tools in (False, True)]
    return list(dict.fromkeys(one for one in found if one is not None))


def on_day(template: str, date: str | None) -> str:
    """Return a template that prints a day, in ISO 8601, where it printed today's; None: as it is.

    Raises:
        InputError: it prints the date in a form that is not written down in it.
    """
    if date is None:
        return template
    day = datetime.fromisoformat(date)
    found = CALL.sub(lambda call: json.dumps(day.strftime(call[1][1:-1])), template)
    if ANY_CALL.search(found):
        raise InputError(
            "the chat template prints today's date in a form that it computes, which cannot be "
            "kept for later days: use --row-template"
        )
    return found


def template_in_use(config: EncodingConfig, reader: Any, has_tools: bool = False) -> str | None:
    """Return the chat template that rows are written by, where it is not as a tokenizer or a
    processor has it: another one, or with its day fixed.

    Args:
        config: how rows are encoded.
        reader: the tokenizer or the processor.
        has_tools: whether it shows tools, as some have a template of their own for them.

    Raises:
        InputError: it prints the date in a form that is not written down in it.
    """
    template = config.chat_template or text_of(reader, has_tools)
    if config.date is None or template is None or not ANY_CALL.search(template):
        return config.chat_template
    return on_day(template, config.date)
