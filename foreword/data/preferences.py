"""Preference pairs: a row with two answers to the same, of which one is preferred.

In: a row's columns `chosen` and `rejected`, with `prompt` before them or as whole conversations.
Out: one `Example`, which knows the answer that was rejected. Problems are `DataError`s that name
the row. Knows no tokenizer.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from foreword.config import DataConfig
from foreword.data.columns import SYSTEM, TOOLS, as_examples, turns_in
from foreword.data.example import Example, named
from foreword.data.turns import native
from foreword.errors import BlankError, ColumnError, DataError, InputError

CHOSEN, REJECTED = "chosen", "rejected"
_DEFAULT_COLUMNS = DataConfig()


def as_pair(
    row: Mapping[str, Any],
    source: str = "row",
    config: DataConfig = _DEFAULT_COLUMNS,
    said: "Counter[str] | None" = None,
) -> Example:
    """Return a row of columns with two answers as the preferred one, which knows the other.

    Args:
        row: columns by name: `prompt`, as text or turns, with `chosen` and `rejected`, as texts or
            turns; or these two as whole conversations that differ in their last answer.
        source: where the row stands, as "pairs.jsonl:12".
        config: names the column of the prompt.
        said: counts, in words, what of the row was not used.

    Raises:
        InputError: the options name columns that pairs have not.
        DataError: the row cannot be used; names `source`.
    """
    _check_options(config)
    with named(source):
        columns = {str(name): native(value) for name, value in row.items()}
        columns = {name: value for name, value in columns.items() if value is not None}
        if missing := [name for name in (CHOSEN, REJECTED) if name not in columns]:
            missing = [name for name in missing if name not in row] or missing
            is_null = missing[0] in row
            raise (BlankError if is_null else ColumnError)(
                f"expected columns 'prompt', {CHOSEN!r} and {REJECTED!r}, found "
                f"{', '.join(map(repr, columns if is_null else row)) or 'no columns'}: "
                f"{missing[0]!r} is missing"
            )
        prompt = config.prompt_column or "prompt"
        if prompt in row and row[prompt] is None and config.skip_blank:
            raise BlankError(f"expected column {prompt!r}, found null")
        wrong = DataError if prompt in row else ColumnError
        parts = [_parts(columns, name, prompt, wrong) for name in (CHOSEN, REJECTED)]
    last = DataConfig(learn="last", skip_blank=config.skip_blank)
    better, worse = (as_examples(part, source, last)[0] for part in parts)
    with named(source):
        _check_pair(better, worse)
    if said is not None:
        used = {CHOSEN, REJECTED, *SYSTEM, *TOOLS, *([prompt] if "prompt" in parts[0] else [])}
        said.update(f"column {name!r} is not used" for name in columns if name not in used)
    return replace(better, source=source, rejected=replace(worse, source=source))


def _check_pair(better: Example, worse: Example) -> None:
    if (better.prompt, better.tools) != (worse.prompt, worse.tools):
        raise DataError(
            f"expected two answers to the same, found {CHOSEN!r} and {REJECTED!r} with different "
            "turns before their last answer: drop the row"
        )
    if (better.completion, better.answer) == (worse.completion, worse.answer):
        raise DataError(f"{CHOSEN!r} and {REJECTED!r} are the same answer: drop the row")


def _check_options(config: DataConfig) -> None:
    options = {
        "--messages-column": config.messages_column,
        "--completion-column": config.completion_column,
        "--template": config.template,
        "--learn": None if config.learn == "all" else config.learn,
    }
    if given := [name for name, value in options.items() if value is not None]:
        raise InputError(
            f"pairs are read from the columns 'prompt', {CHOSEN!r} and {REJECTED!r}: leave "
            f"{given[0]} out"
        )


def _parts(
    columns: Mapping[str, Any], name: str, prompt: str, wrong: type[DataError]
) -> dict[str, Any]:
    """Return the columns of one of the answers as those of a row that has no other."""
    parts = {key: columns[key] for key in (*SYSTEM, *TOOLS) if key in columns}
    answer, asked = turns_in(columns[name]), turns_in(columns.get(prompt))
    if isinstance(answer, list) and not _is_answer(answer):
        return parts | {"messages": answer}
    if asked is None:
        raise wrong(
            f"expected column {prompt!r} beside answers alone, found "
            f"{', '.join(map(repr, columns))}: name it with --prompt-column"
        )
    if isinstance(answer, list) and isinstance(asked, str):
        asked = [{"role": "user", "content": asked}]
    return parts | {"prompt": asked, "completion": answer}


def _is_answer(turns: list[Any]) -> bool:
    """Return whether turns begin with an answer, and not with what is answered."""
    first = turns[0] if turns and isinstance(turns[0], dict) else {}
    return first.get("role", first.get("from")) in ("assistant", "gpt", "chatgpt", "bot")
