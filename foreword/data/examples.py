"""Examples: what comes before an answer, and the answer, from the rows of a data file.

In: a path and the options that name its columns. Out: `Example`s, in the order of the file. Every
problem is one `DataError` line that names file and line. Parts of a message that are not text pass
through; relative paths in them start at the file's folder. Knows no tokenizer, no token ids and no
torch.
"""

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foreword.config import TEMPLATE_FIELD, DataConfig
from foreword.data import media_parts
from foreword.data.media_parts import Message
from foreword.data.readers import kind_of, read_rows
from foreword.errors import DataError

ROLES = ("system", "developer", "user", "assistant", "tool")

_DEFAULT_COLUMNS = DataConfig()
_NOT_IN_ANSWER = ("tool_calls", "function_call", "reasoning_content", "thinking")
_HALF_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Example:
    """One row.

    Attributes:
        prompt: plain text, or the turns before the answer.
        completion: the answer, never blank.
        source: where the row stands, as "rows.jsonl:12".
        task: what it is a row of, where a file holds several tasks.
    """

    prompt: str | tuple[Message, ...]
    completion: str
    source: str = "example"
    task: str = ""


def read_examples(
    path: str | Path, config: DataConfig = _DEFAULT_COLUMNS, task_column: str | None = None
) -> list[Example]:
    """Read every row of a .jsonl, .json, .csv, .tsv or .parquet file, or of a `datasets` directory;
    `task_column` names the task of each, where there are several.

    Raises:
        DataError: the file or one of its rows cannot be used.
        DependencyError: Parquet or a directory, without the extra that reads them.
    """
    folder = Path(path).absolute()
    folder = folder if folder.is_dir() else folder.parent
    examples = [
        _beside(as_example(row, source, config, task_column), folder)
        for source, row in read_rows(Path(path))
    ]
    if not examples:
        raise DataError(f"{path}: expected rows, found none: add at least one")
    return examples


def as_example(
    row: Mapping[str, Any],
    source: str = "row",
    config: DataConfig = _DEFAULT_COLUMNS,
    task_column: str | None = None,
) -> Example:
    """Return one row of columns as an example, of the task that `task_column` names.

    Raises:
        DataError: the row cannot be used; names `source`.
    """
    with named(source):
        example = _example(dict(row), source, config)
        if task_column is None:
            return example
        task = _column(dict(row), task_column, "--task-column")
        return replace(example, task=_text(task, f"column {task_column!r}"))


def _beside(example: Example, folder: Path) -> Example:
    """Return an example whose relative paths of images and sounds start at its file's folder."""
    if isinstance(example.prompt, str) or not media_parts.has_media(example.prompt):
        return example
    turns = tuple(
        turn | {"content": [media_parts.beside(part, folder) for part in turn["content"]]}
        if isinstance(turn.get("content"), list)
        else turn
        for turn in example.prompt
    )
    return replace(example, prompt=turns)


def split_examples(
    examples: Sequence[Example], share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Set about `share` of the examples aside; identical prompts stay on the same side, and the
    rest keeps some of every task.

    Returns:
        the larger rest and the examples set aside, each in the order given and neither empty.

    Raises:
        DataError: the share is not between 0 and 1, or there are fewer than two different prompts.
    """
    if not 0 < share < 1:
        raise DataError(f"the share to set aside must be between 0 and 1, got {share}")
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        key = json.dumps(example.prompt, sort_keys=True, default=str)
        groups.setdefault(key, []).append(index)
    if len(groups) < 2:
        raise DataError(
            f"expected at least 2 different prompts to split, found {len(groups)} in "
            f"{len(examples)} rows: add rows, or give validation rows as a file of their own"
        )
    target = min(round(share * len(examples)), len(examples) - 1)
    free = _beside_one_of_each_task(list(groups.values()), examples)
    aside = _draw(free, target, seed)
    return (
        [example for index, example in enumerate(examples) if index not in aside],
        [example for index, example in enumerate(examples) if index in aside],
    )


def message_text(message: Message) -> str:
    """The text of a message, "" if it only calls tools; text parts are joined by a line break.

    Raises:
        DataError: a part is an image, a sound or anything else that is not text.
    """
    content: str | list[dict[str, Any]] = message.get("content") or ""
    if isinstance(content, str):
        return content
    for part in content:
        if part["type"] != "text":
            raise DataError(
                f"expected text only in a message of role {message['role']!r}, found a part of "
                f"type {part['type']!r}: leave it out"
            )
    return "\n".join(part["text"] for part in content)


@contextmanager
def named(source: str) -> Iterator[None]:
    """Put the source of a row before the message of a `DataError` raised inside."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{source}: {error}") from None


def _beside_one_of_each_task(
    groups: list[list[int]], examples: Sequence[Example]
) -> list[list[int]]:
    """Return the groups that may be set aside: all, but for the first of each task."""
    firsts: dict[str, int] = {}
    for number, group in enumerate(groups):
        for index in group:
            firsts.setdefault(examples[index].task, number)
    if set(firsts) == {""}:
        return groups
    free = [group for number, group in enumerate(groups) if number not in firsts.values()]
    if not free:
        raise DataError(
            f"expected 2 different prompts of some task to split, found one of each of "
            f"{len(firsts)}: add rows, or give validation rows as a file of their own"
        )
    return free


def _draw(groups: list[list[int]], target: int, seed: int) -> set[int]:
    """Indices of random groups that fit in `target`; the smallest group if none does."""
    random.Random(seed).shuffle(groups)
    drawn: set[int] = set()
    for group in groups:
        if len(drawn) + len(group) <= target:
            drawn.update(group)
    smallest: list[int] = min(groups, key=len)
    return drawn or set(smallest)


# --- a row to an example: errors here do not name the source, `named` adds it -------------------


def _example(row: dict[str, Any], source: str, config: DataConfig) -> Example:
    if config.template is not None and config.label_column is not None:
        prompt = _fill(config.template, row)
        completion = _column(row, config.label_column, "--label-column")
    elif config.names_messages or (config.messages_column in row and not config.names_text):
        _column(row, config.messages_column, "--messages-column")
        return _conversation(row[config.messages_column], config.messages_column, source)
    elif config.prompt_column not in row and config.completion_column not in row:
        raise DataError(
            f"expected column {config.messages_column!r}, or {config.prompt_column!r} and "
            f"{config.completion_column!r}, found {_listed(row)}: name them with --messages-column "
            "or --prompt-column and --completion-column, or use --template and --label-column"
        )
    else:
        prompt = _column(row, config.prompt_column, "--prompt-column")
        completion = _column(row, config.completion_column, "--completion-column")
        if isinstance(prompt, list):
            turns = [*prompt, *_answer_turns(completion, config.completion_column)]
            return _conversation(turns, config.prompt_column, source)
        prompt = _text(prompt, f"column {config.prompt_column!r}")
    return Example(prompt, _completion(completion), source)


def _column(row: dict[str, Any], name: str, option: str) -> Any:
    if name not in row:
        raise DataError(
            f"expected column {name!r}, found {_listed(row)}: name one of these in {option}"
        )
    return row[name]


def _fill(template: str, row: dict[str, Any]) -> str:
    def value(field: re.Match[str]) -> str:
        cell = _column(row, field[1], "--template")
        if isinstance(cell, int | float) and not isinstance(cell, bool):
            return str(cell)
        return _text(cell, f"column {field[1]!r}")

    return TEMPLATE_FIELD.sub(value, template)


def _answer_turns(completion: Any, column: str) -> list[Any]:
    if isinstance(completion, list):
        if len(completion) != 1:
            raise DataError(
                f"expected one assistant message in column {column!r}, found {len(completion)}: "
                "move the turns before the answer to the prompt"
            )
        return completion
    return [{"role": "assistant", "content": completion}]


def _conversation(value: Any, column: str, source: str) -> Example:
    if not isinstance(value, list):
        raise DataError(f"expected a list of messages in column {column!r}, found {kind_of(value)}")
    turns = [_turn(turn, f"message {number}") for number, turn in enumerate(value, 1)]
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        found = f"{len(turns)} ending with {turns[-1]['role']!r}" if turns else "none"
        raise DataError(
            f"expected messages in column {column!r} that end with an answer of the assistant "
            f"after at least one other, found {found}"
        )
    for key in _NOT_IN_ANSWER:
        if turns[-1].get(key):
            raise DataError(f"expected an answer of text only, found {key!r} in it: leave it out")
    return Example(tuple(turns[:-1]), _completion(message_text(turns[-1])), source)


def _turn(value: Any, place: str) -> Message:
    if not isinstance(value, dict):
        raise DataError(
            f"{place}: expected an object with role and content, found {kind_of(value)}"
        )
    turn = _without_nulls(value)  # a column of a table holds a null for each key that is not there
    role, content = turn.get("role"), turn.get("content")
    if role not in ROLES:
        found = repr(role) if isinstance(role, str) else f"{kind_of(role)} in {_listed(turn)}"
        raise DataError(f"{place}: expected a role of {', '.join(ROLES)}, found {found}: rename it")
    if isinstance(content, list):
        return {**turn, "content": [_part(part, place) for part in content]}
    if not (content is None and role == "assistant" and turn.get("tool_calls")):
        _text(content, f"{place} content")
    return turn


def _part(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise DataError(
            f"{place}: expected parts that are objects with a type, found {value!r:.60}"
        )
    if value["type"] == "text":
        _text(value.get("text"), f"{place} text part")
    return _without_nulls(value)


def _without_nulls(value: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item is not None}


def _completion(value: Any) -> str:
    text = _text(value, "the completion")
    if not text.strip():
        raise DataError("expected a completion, found blank text: fill it in or drop the row")
    return text


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"expected text in {place}, found {kind_of(value)}: write it as text")
    if _HALF_SURROGATE.search(value):
        raise DataError(f"expected Unicode text in {place}, found half a surrogate pair: mend it")
    return value


def _listed(row: dict[str, Any]) -> str:
    return ", ".join(map(repr, row)) or "no columns"
