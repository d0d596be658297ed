"""File readers: a data file, a directory or a dataset on the Hub as rows.

In: what a user calls it. Out: each row's place, and its columns. Every problem is one `DataError`
line that names file and line. Which reader a file needs is in its name; which files a directory's
split has, `splits` knows. Does not know what the columns mean.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from foreword.data import hub_datasets, splits
from foreword.data.csv_files import csv_rows
from foreword.data.json_files import json_rows, jsonl_rows
from foreword.data.sources import SourcedRow
from foreword.data.sources import kind_of as kind_of
from foreword.data.tables import arrow_rows, parquet_rows, saved_dataset_rows
from foreword.data.text_files import ending_of
from foreword.errors import DataError

_READERS: dict[str, Callable[[Path], Iterator[SourcedRow]]] = {
    ".jsonl": jsonl_rows,
    ".ndjson": jsonl_rows,
    ".json": json_rows,
    ".csv": csv_rows,
    ".tsv": csv_rows,
    ".parquet": parquet_rows,
    ".arrow": arrow_rows,
}


def read_rows(path: Path) -> Iterator[SourcedRow]:
    """Yield the rows of a file, a directory, or a dataset on the Hub.

    Args:
        path: a file, compressed or not; a directory, or `DIRECTORY/SPLIT`; else a Hub id, as
            `owner/name`, `owner/name:split` or `owner/name@revision`, `hub:` before it or not.

    Raises:
        DataError: it cannot be read; a directory has several splits without `train`.
        DependencyError: Parquet, Arrow, .zst or a saved dataset, without the extra.
    """
    if os.path.exists(path) and not os.path.isdir(path):
        return _file_rows(path)
    directory, split = _directory(path)
    return _directory_rows(directory, split)


def folder_read(path: str | Path) -> Path | None:
    """Return the folder of this machine whose files a path names; None where it names a file, a
    dataset of the Hub, or nothing.
    """
    path = Path(path)
    if os.path.exists(path) and not os.path.isdir(path):
        return None
    found = _local(path)
    return found[0] if found is not None else None


def check_is_there(path: str | Path) -> None:
    """Refuse what is no path and no name of a dataset, without reading or downloading any.

    Raises:
        DataError: there is no such path.
    """
    path = Path(path)
    if os.path.exists(path):
        return
    before = str(path).rpartition(":")[0]
    is_split = ending_of(path) not in _READERS and path.name in _known_splits(path.parent)
    if not (is_split or (before and os.path.isdir(before)) or hub_datasets.named_by(str(path))):
        raise _missing(path)


def check_held_out(path: str | Path) -> None:
    """Refuse a directory of several splits of which none is named: `train` is read of it, which is
    not what held-out rows are.

    Raises:
        DataError: names the splits. Also as `read_rows` where there is no such path.
    """
    path = Path(path)
    if os.path.exists(path) and not os.path.isdir(path):
        return
    directory, split = _directory(path)
    if split is None:
        splits.refuse_several(directory)


def _file_rows(path: Path) -> Iterator[SourcedRow]:
    reader = _READERS.get(ending_of(path))
    if reader is None:
        raise DataError(
            f"{path}: expected a file name that ends in {', '.join(_READERS)}, found "
            f"{ending_of(path) or 'no ending'!r}: convert or rename the file"
        )
    if not path.is_file():
        raise DataError(f"{path}: expected a file, found a device or a pipe: write it to a file")
    return reader(path)


def _directory_rows(directory: Path, split: str | None) -> Iterator[SourcedRow]:
    for part in splits.parts_of(directory, split):
        yield from saved_dataset_rows(part) if part.is_dir() else _file_rows(part)


def _directory(path: Path) -> tuple[Path, str | None]:
    """Return the directory that a path or a Hub id stands for, and the split that it names."""
    if (found := _local(path)) is not None:
        return found
    if dataset := hub_datasets.named_by(str(path)):
        return hub_datasets.download(dataset), dataset.split
    raise _missing(path)


def _local(path: Path) -> tuple[Path, str | None] | None:
    """Return the directory of this machine that a path stands for, and the split that it names."""
    if os.path.isdir(path):
        return path, None
    if ending_of(path) not in _READERS and path.name in _known_splits(path.parent):
        return path.parent, path.name
    before, _, name = str(path).rpartition(":")
    return (Path(before), name) if before and os.path.isdir(before) else None


def _missing(path: Path) -> DataError:
    return DataError(f"{path}: no such file: check the path")


def _known_splits(directory: Path) -> list[str]:
    try:
        return [name for name in splits.splits_of(directory) if name]
    except (DataError, OSError):
        return []
