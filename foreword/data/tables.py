"""Tables: rows of Parquet and Arrow files, and of a dataset that `save_to_disk` wrote.

In: a path. Out: numbered rows, in which a class has its name where the file knows the names, as
the `datasets` library keeps them: `ClassLabel` features, also inside lists and objects.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foreword.compat.error_lines import typed_line
from foreword.data.sources import SourcedRow, TablePlace, import_extra
from foreword.data.text_files import other_kind
from foreword.errors import DataError

TABLE_ENDINGS = (".parquet", ".arrow")
_LISTS = ("Sequence", "List", "LargeList")


def parquet_rows(path: Path) -> Iterator[SourcedRow]:
    """Yield the rows of a Parquet file."""
    parquet = import_extra("pyarrow.parquet")
    try:
        file = parquet.ParquetFile(path)
        yield from _batch_rows(file.iter_batches(), file.schema_arrow, path)
    except (OSError, ValueError, NotImplementedError) as error:
        raise _damaged(path, "a Parquet file", error) from error


def arrow_rows(path: Path) -> Iterator[SourcedRow]:
    """Yield the rows of an Arrow file, or of a stream in a file, as `datasets` writes them."""
    ipc = import_extra("pyarrow.ipc")
    try:
        with path.open("rb") as file:
            is_file = file.read(6) == b"ARROW1"
            file.seek(0)
            if is_file:
                whole = ipc.open_file(file)
                batches = (whole.get_batch(index) for index in range(whole.num_record_batches))
                yield from _batch_rows(batches, whole.schema, path)
            else:
                stream = ipc.open_stream(file)
                yield from _batch_rows(stream, stream.schema, path)
    except (OSError, ValueError, NotImplementedError) as error:
        raise _damaged(path, "an Arrow file", error) from error


def saved_dataset_rows(path: Path) -> Iterator[SourcedRow]:
    """Yield the rows of a directory that `Dataset.save_to_disk` wrote."""
    datasets = import_extra("datasets")
    try:
        dataset = datasets.load_from_disk(str(path)).with_format(None)
        feature = dataset.features.to_dict()
    except Exception as error:  # whatever a damaged file leads the library into
        raise DataError(
            f"{path}: the dataset is damaged, {typed_line(error)}: save it again"
        ) from error
    number = 0
    try:
        for number, row in enumerate(dataset, 1):
            source = f"{path} row {number}"
            yield TablePlace(source, path), _with_names(row, feature, source)
    except DataError:
        raise
    except Exception as error:  # also of a package that decodes its images or sounds
        raise DataError(f"{path} row {number + 1}: cannot be read, {typed_line(error)}") from error


def _damaged(path: Path, expected: str, error: Exception) -> DataError:
    found = None
    if path.is_file():
        with path.open("rb") as file:
            found = other_kind(file.read(32))
    return DataError(
        f"{path}: not {expected}, found {found}"
        if found and expected not in found
        else f"{path}: not {expected}, {typed_line(error)}: write it again"
    )


def _batch_rows(batches: Any, schema: Any, path: Path) -> Iterator[SourcedRow]:
    if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise DataError(f"{path}: expected different names of columns, found {twice[0]!r} twice")
    feature = _features(schema.metadata or {})
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            source = f"{path} row {number}"
            yield TablePlace(source, path), _with_names(row, feature, source)


# Names of classes ---------------------------------------------------------------------------------


def _features(metadata: dict[bytes, bytes]) -> Any:
    """Return what `datasets` wrote of the columns into a file's schema; None where it did not."""
    try:
        return json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _with_names(value: Any, feature: Any, source: str) -> Any:
    """Return a value with the names of its classes in the place of their numbers."""
    if isinstance(feature, list) and isinstance(value, list):  # a list's feature, as one in a list
        return [_with_names(one, feature[0], source) for one in value] if feature else value
    if not isinstance(feature, dict) or value is None:
        return value
    kind = feature.get("_type")
    if kind == "ClassLabel":
        return _name(value, feature.get("names"), source)
    if kind in _LISTS:
        inner = feature.get("feature")
        if isinstance(value, list):
            return [_with_names(one, inner, source) for one in value]
        if isinstance(inner, dict) and isinstance(value, dict):  # a list of objects, by its columns
            return {
                name: _with_names(one, [inner.get(name)], source) for name, one in value.items()
            }
        return value
    if isinstance(value, dict) and not isinstance(kind, str):
        return {name: _with_names(one, feature.get(name), source) for name, one in value.items()}
    return value


def _name(value: Any, names: Any, source: str) -> Any:
    if not isinstance(names, list) or not names or type(value) is not int:
        return value
    if value == -1:  # how datasets writes that a row has no class
        return None
    if not 0 <= value < len(names):
        raise DataError(
            f"{source}: expected a class from 0 to {len(names) - 1}, found {value}, without a name"
        )
    return names[value]
