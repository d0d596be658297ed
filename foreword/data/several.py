"""Lists of arguments: what is given as several things, and not as one text or one mapping.

In: an argument. Out: a list, or one line that says what was expected. Imports no torch.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from foreword.errors import InputError


def several(name: str, given: Any, kind: str) -> list[Any]:
    """Return an argument as a list; it is read once, so a generator will do.

    Args:
        name: of the argument.
        given: any iterable but a text, whose letters nobody means, or a mapping.
        kind: what it should hold, for the message.

    Raises:
        InputError: something else.
    """
    is_table = type(given).__name__ == "DataFrame"  # whose columns it yields
    is_one = isinstance(given, str | bytes | Mapping)
    if is_one or is_table or not isinstance(given, Iterable):
        shown = f"{given!r:.80}" if isinstance(given, str) else type(given).__name__
        more = "; of a DataFrame give df.to_dict('records')" if is_table else ""
        raise InputError(f"{name}: expected a list of {kind}, got {shown}{more}")
    return list(given)
