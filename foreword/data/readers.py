"""File readers: a data file as rows, one reader for each kind of file.

In: a path. Out: each row's place in the file, and its columns. Every problem is one `DataError`
line that names file and line. Does not know what the columns mean.
"""

import codecs
import csv
import importlib
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from foreword.errors import DataError, DependencyError

SourcedRow = tuple[str, dict[str, Any]]
"""Where a row stands, and its columns."""

_KINDS = {
    str: "text",
    bool: "a truth value",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def read_rows(path: Path) -> Iterator[SourcedRow]:
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
        raise DataError(
            f"{path}:1: expected a list of objects, found {kind_of(whole)}: put it in []"
        )
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
        raise DataError(f"{source}: expected an object of columns, found {kind_of(value)}")
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
        raise DataError(
            f"{path}: not a Parquet file, {first_line(error)}: write it again"
        ) from error


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
        raise DataError(
            f"{path}: the dataset is damaged, {first_line(error)}: save it again"
        ) from error
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


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def kind_of(value: Any) -> str:
    return _KINDS.get(type(value), type(value).__name__)
