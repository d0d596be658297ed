"""Sourced rows: a row of columns with its place, and the words that all readers share.

In: values, places, names of modules. Out: what they are called in a message. Reads no file.
"""

import importlib
from typing import Any

from foreword.errors import DependencyError

SourcedRow = tuple[str, dict[str, Any]]
"""Where a row stands, and its columns."""


class TablePlace(str):
    """Where a row of a table stands. All rows of a table have the same columns.

    Attributes:
        table: where the table stands.
    """

    __slots__ = ("table",)
    table: str

    def __new__(cls, place: str, table: object) -> "TablePlace":
        """Return a row's place in a table."""
        found = super().__new__(cls, place)
        found.table = str(table)
        return found


_KINDS = {
    str: "text",
    bool: "a truth value",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def kind_of(value: Any) -> str:
    """Return what a value is called in a message."""
    return _KINDS.get(type(value), type(value).__name__)


def listed(names: list[str]) -> str:
    """Return names with commas between, the first ten of them."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def import_extra(module: str) -> Any:
    """Import a module of the extra `data`.

    Raises:
        DependencyError: it is not installed; says how to.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DependencyError(
            "Parquet, Arrow and .zst files and datasets directories need an extra: "
            "pip install 'foreword[data]'"
        ) from error
