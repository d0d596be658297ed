"""Error lines: what an error of another library says, in one line of our own messages.

In: an exception. Out: text without a line break. Imports nothing but Python's own modules.
"""

import json


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says; empty where it says nothing."""
    return (str(error).strip().splitlines() or [""])[0]


def typed_line(error: BaseException) -> str:
    """Return an error's type and the first line of what it says."""
    return f"{type(error).__name__}: {first_line(error)}"


def telling_line(error: BaseException) -> str:
    """Return what an error says in one line, with its type where that says more than its text; of a
    heading, the line below it, too.
    """
    kind, said = type(error).__name__, str(error).strip()
    is_bare = isinstance(error, LookupError | TypeError | AttributeError | json.JSONDecodeError)
    lines = (f"{kind}: {said}" if said and is_bare else said or kind).splitlines()
    return " ".join(line.strip() for line in lines[: 2 if lines[0].rstrip().endswith(":") else 1])
