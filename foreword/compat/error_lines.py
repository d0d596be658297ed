"""Error lines: what an error of another library says, in one line of our own messages.

In: an exception. Out: text without a line break. Imports nothing but Python's own modules.
"""

import json
import re

_UNUSED = re.compile(r"model_kwargs.{0,3} are not used by the model: (\[[^\]]*\])")


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


def unused_arguments(error: BaseException) -> list[str]:
    """Return the arguments that transformers' `generate` says are none of it or of the model."""
    found = _UNUSED.search(str(error))
    return re.findall(r"'([^']+)'", found[1]) if found else []
