"""Problems: all that is wrong with the rows of a file, in one error.

In: errors of single rows. Out: one error that says the first of them, what several rows have only
once, and counts the rest. A column that a table does not have is said once for the table. Knows no
file.
"""

from collections.abc import Sequence

from foreword.data.sources import TablePlace
from foreword.errors import ColumnError, DataError

MOST_SAID = 10


def of_table(error: DataError, place: str) -> DataError:
    """Return what is wrong with a row, told of its table where all rows of the table have it."""
    if not isinstance(error, ColumnError) or not isinstance(place, TablePlace):
        return error
    return ColumnError(f"{place.table}: {str(error).removeprefix(f'{place}: ')}")


def all_of(errors: Sequence[DataError], row_count: int = 0) -> DataError:
    """Return one error that says what several say; a single one stays as it is.

    Args:
        errors: of rows and of tables, in their order.
        row_count: how many rows there are, good ones too; 0 where that is not known.
    """
    errors = list({str(error): error for error in errors}.values())
    problems = tuple(one for error in errors for one in error.problems or (str(error),))
    if len(problems) == 1:
        return errors[0]
    if len(problems) == row_count and len({one.partition(": ")[2] for one in problems}) == 1:
        found = DataError(f"{problems[0]}; the same in all {row_count} rows")
        found.problems = problems
        return found
    said, known = list[str](), set[str]()
    for one in problems[:MOST_SAID]:
        place, _, what = one.partition(": ")
        said.append(f"{place}: the same" if what in known else one)
        known.add(what)
    rest = len(problems) - MOST_SAID
    more = f"; and {rest} more" if rest > 0 else ""
    found = DataError(f"{len(problems)} problems: {'; '.join(said)}{more}")
    found.problems = problems
    return found
