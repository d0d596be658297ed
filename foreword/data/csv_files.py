"""Delimited files: CSV and TSV, with a header, in the delimiter that the header is written in.

In: a path. Out: rows of text, each with the physical line that it starts on.
"""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from foreword.data.problems import all_of
from foreword.data.sources import SourcedRow, TablePlace
from foreword.data.text_files import ending_of, read_text
from foreword.errors import DataError

DELIMITERS = (",", "\t", ";", "|")
_EXCELS_FIRST_LINE = re.compile(r'"?sep=(.)"?\r?\n', re.IGNORECASE)


def csv_rows(path: Path) -> Iterator[SourcedRow]:
    """Yield the rows of a file with a header. Spaces around a name of the header do not count."""
    text = read_text(path)
    # Each cell may be as long as the file. The setting is the process's: it is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    names: list[str] | None = None
    wrong: list[DataError] = []
    for source, cells in _records(text, path):
        if names is None:
            names = _names(cells, source)
        elif problem := _problem(cells, len(names), source):
            wrong.append(problem)
        else:
            yield TablePlace(source, path), dict(zip(names, cells, strict=True))
    if wrong:
        raise all_of(wrong)


def _names(cells: list[str], source: str) -> list[str]:
    """Return the names in a header."""
    if problem := _problem(cells, len(cells), source):
        raise problem
    names = [cell.strip() for cell in cells]
    if len(set(names)) < len(names):
        raise DataError(f"{source}: expected different names, found {', '.join(names)!r}")
    return names


def _problem(cells: list[str], count: int, source: str) -> DataError | None:
    """Return what is wrong with a record, if anything is."""
    if len(cells) != count:
        return DataError(
            f"{source}: expected {count} cells as in the header, found {len(cells)}: "
            + (
                "put quotes around a cell that holds a separator"
                if len(cells) > count
                else "fill in the missing ones, or close the quotes of the row before"
            )
        )
    return _spaced_quotes(cells, source)


def _records(text: str, path: Path) -> Iterator[tuple[str, list[str]]]:
    """The cells of each record, with the physical line that the record starts on."""
    stream, first = io.StringIO(text, newline=""), 0
    if named := _EXCELS_FIRST_LINE.match(text):
        stream.readline()
        delimiter, first = named[1], 1
    else:
        delimiter = _delimiter(text, "\t" if ending_of(path) == ".tsv" else ",")
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    source = f"{path}:{first + 1}"
    try:
        for cells in reader:
            if "".join(cells).strip() or len(cells) > 1:
                yield source, cells
            source = f"{path}:{first + reader.line_num + 1}"
    except csv.Error as error:
        raise DataError(f"{source}: {error}: check the quotes, or save as .jsonl") from None


def _delimiter(text: str, expected: str) -> str:
    """Return the delimiter of a file's header: the one that its ending says, or where that leaves
    one column, the only other one that divides it.
    """
    if len(_header(text, expected)) > 1:
        return expected
    dividing = [one for one in DELIMITERS if len(_header(text, one)) > 1]
    return dividing[0] if len(dividing) == 1 else expected


def _header(text: str, delimiter: str) -> list[str]:
    """Return the cells of the first record that is not blank, none where it is damaged."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        return next((cells for cells in reader if "".join(cells).strip()), [])
    except csv.Error:
        return []


def _spaced_quotes(cells: list[str], source: str) -> DataError | None:
    """Return the error of a cell that a file with a space behind each separator means otherwise
    than it says.
    """
    for cell in cells:
        bare = cell.strip(" ")
        if bare != cell and len(bare) > 1 and bare[0] == bare[-1] == '"':
            return DataError(
                f"{source}: expected quotes at both ends of a cell, found spaces around them in "
                f"{cell[:40]!r}: remove the spaces"
            )
    return None
