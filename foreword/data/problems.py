"""Problems: all that is wrong with the rows of a file, in one error.

In: errors of single rows. Out: one error that says the first of them, what several rows have only
once, and counts the rest. Knows no file.
"""

from collections.abc import Sequence

from foreword.errors import DataError

MOST_SAID = 10


def all_of(errors: Sequence[DataError]) -> DataError:
    """Return one error that says what several say; a single one stays as it is."""
    problems = tuple(one for error in errors for one in error.problems or (str(error),))
    if len(problems) == 1:
        return errors[0]
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
