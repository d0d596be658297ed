"""Rows of a start: how rows are written behind the prompt that a run starts from.

In: the options, that prompt, and how a run that goes on wrote its rows. Out: the options as they
hold for this run, and what of the rows is written otherwise than that prompt's were. Encodes
nothing.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from foreword import chat
from foreword.backbone import Backbone
from foreword.config import BEFORE, EncodingConfig
from foreword.data.template_dates import dated
from foreword.data.tokenizer_facts import NAMES, differences
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.training.checkpoint import StoredState
from foreword.training.objective import Objective

WAYS = ("row_template", "chat_template", "plain")
"""Options that each say how rows are written."""
DETAILS = ("opening", "start_token", "special_tokens", "date")
HELD = ("held_text", "held_tokens", "held_hash")


def written(
    backbone: Backbone,
    config: EncodingConfig,
    initial: SoftPrompt | None,
    objective: Objective,
    stored: StoredState | None = None,
) -> EncodingConfig:
    """Return how a run writes its rows, with the day that chat templates print: as the options say;
    pairs of answers, which are compared with what the model says behind the prompt to start from,
    as the rows of that prompt's training, unless an option says how.

    Args:
        backbone: with the tokenizer that writes them.
        config: as it was asked for; or as this function returned it, which stays as it is.
        initial: the prompt to start from, if there is one.
        objective: whether rows are pairs.
        stored: the run that goes on, which knows how its rows were written; None: one begins.

    Raises:
        InputError: a day for templates that print none, or a date that cannot be fixed.
        MismatchError: the tokenizer's chat template is not that of the prompt's training.
    """
    recorded = None
    if stored is not None:
        config, recorded = stored.going_on(config), stored.encoding()
    if initial is not None and objective.has_pairs:
        config = _behind(backbone, initial, config, recorded)
    return dated(config, backbone.tokenizer, backbone.processor, recorded=recorded)


def _behind(
    backbone: Backbone,
    initial: SoftPrompt,
    config: EncodingConfig,
    recorded: EncodingConfig | None,
) -> EncodingConfig:
    """Return how pairs are written behind a prompt; a run that goes on has recorded it."""
    if recorded is not None:
        return _as_known(config, recorded)
    if not chat.saved_encoding(initial) or _given(config).intersection(WAYS):
        return config
    chat.check_template(backbone, initial)
    return _as_known(config, _asked(initial))


def _asked(prompt: SoftPrompt) -> EncodingConfig:
    """Return how a prompt is asked. Whether a text is plain is what is known of its rows: that of
    one that stands for an instruction is a turn, whatever its option says.
    """
    known = chat.encoding_of(prompt)
    return known if known.is_text is None else replace(known, plain=known.is_text)


def _as_known(config: EncodingConfig, known: EncodingConfig) -> EncodingConfig:
    """Return options, where none says how rows are written, with those that are known."""
    given = _given(config)
    if given.intersection(WAYS):
        return config
    taken = {name: getattr(known, name) for name in (*WAYS, *DETAILS, *HELD) if name not in given}
    if known.plain and "date" in taken:
        taken["date"] = None  # no template prints it
    return replace(config, **taken)


def _given(config: EncodingConfig) -> set[str]:
    """Return the names of options that do not keep their default, and so are given."""
    return {one.name for one in fields(config) if getattr(config, one.name) != one.default}


def otherwise(backbone: Backbone, initial: SoftPrompt, facts: Mapping[str, Any]) -> str | None:
    """Say what of a run's rows is written otherwise than the rows of the prompt it starts from.

    Args:
        backbone: with the tokenizer that writes them.
        initial: the prompt; of one that does not say how its rows were written, nothing is known.
        facts: what the run's own prompt says of its rows.
    """
    saved = chat.saved_encoding(initial)
    if not saved:
        return None
    then, now = BEFORE | saved, BEFORE | dict(facts)
    names = ["row_template", "chat_template", "held_text", "special_tokens"]
    names += ["is_text"] if "is_text" in saved else []
    differing = [_spelled(name) for name in names if then.get(name) != now.get(name)]
    both = then, now
    if not differing and all(one.get("row_template") is not None for one in both):
        differing = ["--start-token"] if then["start_token"] != now["start_token"] else []
    elif not differing and all(one.get("is_text") is not True for one in both):
        names = [name for name in ("opening", "date") if then.get(name) != now.get(name)]
        recorded = initial.facts.get("tokenizer")
        is_other = differences(recorded, backbone.tokenizer_facts(), "chat_template")
        own = now.get("chat_template") is None
        differing = [*map(_spelled, names), *([NAMES["chat_template"]] if is_other and own else [])]
    if not differing:
        return None
    return (
        "rows are written otherwise than those of the training of the prompt to start from "
        f"({', '.join(differing)}): the prompt learns anew how it is asked"
    )


def _spelled(name: str) -> str:
    """Return a fact of rows as a person knows it."""
    words = {"is_text": "plain text or turns", "held_text": "the text that it holds"}
    return words.get(name) or f"--{name.replace('_', '-')}"
