"""JSON files: lists of objects, objects line by line, and what tables are written as in one object.

In: a path. Out: rows with the line that they start on, and their number in a list of which that
line holds several. What JSON does not allow or leaves open is refused by its line: NaN, numbers
past the range, one key twice in an object.
"""

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foreword.data.problems import all_of
from foreword.data.sources import SourcedRow, TablePlace, kind_of, listed
from foreword.data.text_files import read_text
from foreword.errors import DataError

log = logging.getLogger("foreword")

ONE_PER_LINE = "one object per line (a list is named .json)"
ONE_LIST = "one list of objects (an object per line is named .jsonl)"
_SPACE = " \t\r\n"


def jsonl_rows(path: Path) -> Iterator[SourcedRow]:
    """Yield the rows of JSON lines."""
    return _line_rows(read_text(path), path)


def json_rows(path: Path) -> Iterator[SourcedRow]:
    """Yield the rows of a JSON file: of its list, its lines, or its one object."""
    text = read_text(path)
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        if getattr(error, "msg", "") == "Extra data" and text.lstrip().startswith("{"):
            return _line_rows(text, path)
        raise _invalid(error, path, 1, ONE_LIST) from None
    if isinstance(whole, list):
        return _Walk(text, path).rows()
    if not isinstance(whole, dict):
        raise DataError(
            f"{path}:1: expected a list of objects, found {kind_of(whole)}: put it in []"
        )
    return _object_rows(whole, text, path)


def _line_rows(text: str, path: Path) -> Iterator[SourcedRow]:
    # No JSON string holds a line break; str.splitlines would also cut at U+2028 inside one.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    wrong: list[DataError] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = _columns(STRICT.decode(line), f"{path}:{number}")
        except (ValueError, RecursionError) as error:
            wrong.append(_invalid(error, path, number, ONE_PER_LINE))
        except DataError as error:
            wrong.append(error)
        else:
            yield f"{path}:{number}", row
    if wrong:
        raise all_of(wrong) from None


def _columns(value: Any, source: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{source}: expected an object of columns, found {kind_of(value)}")
    return value


def _invalid(error: Exception, path: Path, first_line: int, expected: str) -> DataError:
    """Return the error of a text that starts on that line of the file."""
    line, reason = first_line, str(error)  # also a number or a nesting past Python's limits
    if isinstance(error, json.JSONDecodeError):
        line, reason = first_line + error.lineno - 1, f"{error.msg} at column {error.colno}"
    return DataError(f"{path}:{line}: expected {expected}, found invalid JSON: {reason}")


# What Python's decoder lets through ---------------------------------------------------------------


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} twice in one object")
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name}, which JSON does not have (write null, or leave the column out)")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:40]}, past the range of numbers (write it as text)")
    return value


STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_finite)
"""Refuses NaN, numbers past the range, and a key that stands twice in an object."""


class _Walk:
    """A walk through the text of a valid list or object, value by value, that knows its line."""

    def __init__(self, text: str, path: Path) -> None:
        self.text, self.path = text, path
        self.position, self.line = 0, 1

    @property
    def source(self) -> str:
        return f"{self.path}:{self.line}"

    def skip(self, characters: str) -> None:
        """Move past any of some characters."""
        while self.position < len(self.text) and self.text[self.position] in characters:
            self.line += self.text[self.position] == "\n"
            self.position += 1

    def value(self) -> Any:
        """Return the value that starts here, and move past it."""
        try:
            value, end = STRICT.raw_decode(self.text, self.position)
        except (ValueError, RecursionError) as error:
            raise _invalid(ValueError(str(error)), self.path, self.line, ONE_LIST) from None
        self.line += self.text.count("\n", self.position, end)
        self.position = end
        return value

    def rows(self) -> Iterator[SourcedRow]:
        """Yield the objects of the list that starts here, and move past it."""
        self.skip(_SPACE)
        self.position += 1
        self.skip(_SPACE)
        number, last = 0, 0
        while self.text[self.position] != "]":
            number, line, source = number + 1, self.line, self.source
            value = self.value()
            self.skip(_SPACE + ",")
            if line == last or (line == self.line and self.text[self.position] != "]"):
                source += f" (row {number})"  # a place is one row's only
            last = line
            yield source, _columns(value, source)
        self.position += 1

    def members(self) -> Iterator[str]:
        """Yield each name of the object that starts here; the caller moves past its value."""
        seen: set[str] = set()
        self.skip(_SPACE)
        self.position += 1
        self.skip(_SPACE)
        while self.text[self.position] != "}":
            source, name = self.source, self.value()
            if name in seen:
                raise DataError(
                    f"{source}: expected each key once, found {name!r} twice in one object"
                )
            seen.add(name)
            self.skip(_SPACE + ":")
            yield name
            self.skip(_SPACE + ",")


# One object ---------------------------------------------------------------------------------------


def _object_rows(whole: dict[str, Any], text: str, path: Path) -> Iterator[SourcedRow]:
    """Return the rows of a file that is one object: its one list of objects, a table by columns as
    pandas writes it.
    """
    lists = [name for name, value in whole.items() if _is_list_of_objects(value)]
    values: dict[str, Any] = {}
    rows: list[SourcedRow] = []
    walk = _Walk(text, path)
    for name in walk.members():
        if lists == [name]:
            rows = list(walk.rows())
        else:
            values[name] = walk.value()
    if len(lists) > 1:
        raise DataError(
            f"{path}: expected one list of objects, found {listed(lists)}: keep one in a file of "
            "its own"
        )
    if not lists:
        return _table_rows(values, path)
    if any(isinstance(value, list) and len(value) == len(rows) for value in values.values()):
        raise DataError(
            f"{path}: expected a list of objects, found columns, one of them of objects, or rows "
            f"under {lists[0]!r} beside another list: save one object per row"
        )
    log.warning("%s: reads the rows under %r", path, lists[0])
    return iter(rows)


def _is_list_of_objects(value: Any) -> bool:
    """Return whether a value can be the rows of a file; messages are the turns of one row."""
    is_list = isinstance(value, list) and all(isinstance(one, dict) for one in value)
    return is_list and bool(value) and not _is_conversation(value)


def _is_conversation(value: Any) -> bool:
    is_list = isinstance(value, list) and bool(value)
    return is_list and all(isinstance(one, dict) and {"role", "from"} & {*one} for one in value)


def _table_rows(whole: dict[str, Any], path: Path) -> Iterator[SourcedRow]:
    """Return the rows of an object without a list of objects."""
    values = list(whole.values())
    if {"columns", "data"} <= {*whole} <= {"columns", "index", "data"}:  # orient="split"
        names, records = whole["columns"], whole["data"]
        if _is_table(names, records):
            return _numbered([dict(zip(names, one, strict=True)) for one in records], path)
    is_table = values and all(isinstance(value, list | dict) for value in values)
    if not is_table or any(map(_is_conversation, values)):
        raise DataError(f"{path}:1: expected a list of objects, found an object: put it in []")
    if all(isinstance(value, list) for value in values):
        columns = whole
    elif all(isinstance(value, dict) for value in values) and _are_columns(whole):
        columns = {name: list(column.values()) for name, column in whole.items()}
    else:
        raise DataError(
            f"{path}: expected a list of objects, found an object of objects: save one object per "
            'row, as pandas does with to_json(..., orient="records")'
        )
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        said = listed([f"{count} in {name!r}" for name, count in lengths.items()])
        raise DataError(f"{path}: expected columns of one length, found {said}: save the rows")
    rows = [dict(zip(columns, one, strict=True)) for one in zip(*columns.values(), strict=True)]
    return _numbered(rows, path)


def _is_table(names: Any, records: Any) -> bool:
    return (
        isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and len(set(names)) == len(names)
        and isinstance(records, list)
        and all(isinstance(one, list) and len(one) == len(names) for one in records)
    )


def _are_columns(whole: dict[str, dict[str, Any]]) -> bool:
    """Return whether objects are the columns of one index of numbers, as pandas writes them."""
    indices = [list(column) for column in whole.values()]
    return (
        all(index == indices[0] for index in indices)
        and all(name.isdecimal() for name in indices[0])
        and not all(name.isdecimal() for name in whole)
    )


def _numbered(rows: list[dict[str, Any]], path: Path) -> Iterator[SourcedRow]:
    places = (TablePlace(f"{path} row {number}", path) for number in range(1, len(rows) + 1))
    return zip(places, rows, strict=True)
