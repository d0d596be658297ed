"""Problems: all that is wrong with the rows of a file, in one error.

In: rows as they come, and what is made of each. Out: what was made of all of them, or one error
that says the first problems and counts the rest. Knows no file.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from foreword.errors import DataError

T = TypeVar("T")
MOST_SAID = 10


def collected(
    rows: Iterable[tuple[str, Mapping[str, Any]]], use: Callable[[str, Mapping[str, Any]], T]
) -> list[T]:
    """Return what `use` makes of every row, which it is given with its place.

    Raises:
        DataError: all that `use` refused, and what is wrong with the file itself.
    """
    found: list[T] = []
    wrong: list[DataError] = []
    try:
        for source, row in rows:
            try:
                found.append(use(source, row))
            except DataError as error:
                wrong.append(error)
    except DataError as error:  # the file's own, at its end or where it cannot be read further
        wrong.append(error)
    if wrong:
        raise all_of(wrong)
    return found


def all_of(errors: Sequence[DataError]) -> DataError:
    """Return one error that says what several say; a single one stays as it is."""
    problems = tuple(one for error in errors for one in error.problems or (str(error),))
    if len(problems) == 1:
        return errors[0]
    rest = len(problems) - MOST_SAID
    more = f"; and {rest} more" if rest > 0 else ""
    found = DataError(f"{len(problems)} problems: {'; '.join(problems[:MOST_SAID])}{more}")
    found.problems = problems
    return found


def none_in(path: str | Path) -> DataError:
    """Return the error of a file without rows."""
    return DataError(f"{path}: expected rows, found none: add at least one")
