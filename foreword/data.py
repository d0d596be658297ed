"""Rows of a data file as examples: what comes before an answer, and the answer.

In: a path and the options that name its columns. Out: `Example`s, in the order of the file. Every
problem is one `DataError` line that names file and line. This module knows nothing of tokenizers,
token ids or torch; parts of a message that are not text pass through as they are.
"""

import codecs
import csv
import importlib
import io
import json
import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.config import TEMPLATE_FIELD, DataConfig
from foreword.errors import DataError, DependencyError

Message = dict[str, Any]
"""One turn: `role`, and `content` that is text or a list of parts {"type": "text", "text": ...}."""

ROLES = ("system", "developer", "user", "assistant", "tool")

SourcedRow = tuple[str, dict[str, Any]]
"""Where a row stands, and its columns."""

_DEFAULT_COLUMNS = DataConfig()
_NOT_IN_ANSWER = ("tool_calls", "function_call", "reasoning_content", "thinking")
_HALF_SURROGATE = re.compile("[\ud800-\udfff]")
_KINDS = {
    str: "text",
    bool: "a truth value",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


@dataclass(frozen=True)
class Example:
    """One row.

    Attributes:
        prompt: plain text, or the turns before the answer.
        completion: the answer, never blank.
        source: where the row stands, as "rows.jsonl:12".
    """

    prompt: str | tuple[Message, ...]
    completion: str
    source: str


def read_examples(path: str | Path, config: DataConfig = _DEFAULT_COLUMNS) -> list[Example]:
    """Read every row of a .jsonl, .json, .csv, .tsv or .parquet file, or of a `datasets` directory.

    Raises:
        DataError: the file or one of its rows cannot be used.
        DependencyError: Parquet or a directory, without the extra that reads them.
    """
    examples = []
    for source, row in _rows(Path(path)):
        with named(source):
            examples.append(_example(row, source, config))
    if not examples:
        raise DataError(f"{path}: expected rows, found none: add at least one")
    return examples


def split_examples(
    examples: Sequence[Example], share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Set about `share` of the examples aside; identical prompts stay on the same side.

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
    aside = _draw(list(groups.values()), target, seed)
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


def _draw(groups: list[list[int]], target: int, seed: int) -> set[int]:
    """Indices of random groups that fit in `target`; the smallest group if none does."""
    random.Random(seed).shuffle(groups)
    drawn: set[int] = set()
    for group in groups:
        if len(drawn) + len(group) <= target:
            drawn.update(group)
    smallest: list[int] = min(groups, key=len)
    return drawn or set(smallest)


# --- a file to rows: one reader per kind -------------------------------------------------------


def _rows(path: Path) -> Iterator[SourcedRow]:
    if os.path.isdir(path):
        return _dataset_rows(path)
    if not os.path.exists(path):
        raise DataError(f"{path}: no such file: check the path")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: expected a file name that ends in {', '.join(_READERS)}, "
            f"found {path.suffix or 'no ending'!r}: convert or rename the file"
        )
    return reader(path)


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        text = data.decode()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: expected UTF-8, found byte 0x{data[error.start]:02x}: save as UTF-8"
        ) from None
    if not text.strip():
        raise DataError(f"{path}: expected rows, found an empty file: add at least one")
    return text


def _jsonl_rows(path: Path) -> Iterator[SourcedRow]:
    # Only "\n" ends a line: str.splitlines would also cut at U+2028 inside a JSON string.
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if line.strip():
            row = _parse_json(line, path, number, "one object per line (a list is named .json)")
            yield f"{path}:{number}", _object(row, f"{path}:{number}")


def _json_rows(path: Path) -> Iterator[SourcedRow]:
    text = _read_text(path)
    whole = _parse_json(text, path, 1, "one list of objects (an object per line is named .jsonl)")
    if not isinstance(whole, list):
        raise DataError(f"{path}:1: expected a list of objects, found {_kind(whole)}: put it in []")
    decoder = json.JSONDecoder()
    position, line = text.index("[") + 1, 1 + text.count("\n", 0, text.index("["))
    for _ in whole:  # the list is valid: walk it again for the line that each row starts on
        while text[position] in " \t\r\n,":
            line += text[position] == "\n"
            position += 1
        source = f"{path}:{line}"
        row, end = decoder.raw_decode(text, position)
        line, position = line + text.count("\n", position, end), end
        yield source, _object(row, source)


def _parse_json(text: str, path: Path, first_line: int, expected: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line, reason = first_line + error.lineno - 1, f"{error.msg} at column {error.colno}"
    except (ValueError, RecursionError) as error:  # a number or a nesting past Python's limits
        line, reason = first_line, str(error)
    raise DataError(f"{path}:{line}: expected {expected}, found invalid JSON: {reason}")


def _object(value: Any, source: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{source}: expected an object of columns, found {_kind(value)}")
    return value


def _csv_rows(path: Path) -> Iterator[SourcedRow]:
    header: list[str] | None = None
    for source, cells in _csv_records(path):
        if header is None:
            header = cells
            if len(set(header)) < len(header):
                raise DataError(f"{source}: expected different names, found {', '.join(header)!r}")
        elif len(cells) != len(header):
            raise DataError(
                f"{source}: expected {len(header)} cells as in the header, found {len(cells)}: "
                "put quotes around a cell that holds a separator"
            )
        else:
            yield source, dict(zip(header, cells, strict=True))


def _csv_records(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The cells of each record, with the physical line that the record starts on."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    text = io.StringIO(_read_text(path), newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    source = f"{path}:1"
    try:
        for cells in reader:
            if "".join(cells).strip() or len(cells) > 1:
                yield source, cells
            source = f"{path}:{reader.line_num + 1}"
    except csv.Error as error:
        raise DataError(f"{source}: {error}: check the quotes, or save as .jsonl") from None


def _parquet_rows(path: Path) -> Iterator[SourcedRow]:
    parquet = _import_extra("pyarrow.parquet")
    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path} row {number}", row
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a Parquet file, {_line(error)}: write it again") from error


def _dataset_rows(path: Path) -> Iterator[SourcedRow]:
    if (path / "dataset_dict.json").exists():
        splits = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        raise DataError(
            f"{path}: expected one split, found {', '.join(splits)}: add one to the path"
        )
    if not (path / "state.json").exists():
        raise DataError(
            f"{path}: expected a file, or a directory written by Dataset.save_to_disk, "
            "found another directory: name one of the files in it"
        )
    datasets = _import_extra("datasets")
    try:
        dataset = datasets.load_from_disk(str(path)).with_format(None)
    except Exception as error:  # whatever a damaged file leads the library into
        raise DataError(f"{path}: the dataset is damaged, {_line(error)}: save it again") from error
    for number, row in enumerate(dataset, 1):
        yield f"{path} row {number}", row


def _import_extra(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DependencyError(
            "Parquet files and datasets directories need an extra: pip install 'foreword[data]'"
        ) from error


_READERS: dict[str, Callable[[Path], Iterator[SourcedRow]]] = {
    ".jsonl": _jsonl_rows,
    ".ndjson": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": _parquet_rows,
}


# --- a row to an example: errors here do not name the source, `named` adds it -------------------


def _example(row: dict[str, Any], source: str, config: DataConfig) -> Example:
    if config.template is not None and config.label_column is not None:
        prompt = _fill(config.template, row)
        completion = _column(row, config.label_column, "--label-column")
    elif config.messages_column in row:
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
        raise DataError(f"expected a list of messages in column {column!r}, found {_kind(value)}")
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
        raise DataError(f"{place}: expected an object with role and content, found {_kind(value)}")
    turn = _without_nulls(value)  # a column of a table holds a null for each key that is not there
    role, content = turn.get("role"), turn.get("content")
    if role not in ROLES:
        found = repr(role) if isinstance(role, str) else f"{_kind(role)} in {_listed(turn)}"
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
        raise DataError(f"expected text in {place}, found {_kind(value)}: write it as text")
    if _HALF_SURROGATE.search(value):
        raise DataError(f"expected Unicode text in {place}, found half a surrogate pair: mend it")
    return value


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), type(value).__name__)


def _listed(row: dict[str, Any]) -> str:
    return ", ".join(map(repr, row)) or "no columns"
