"""Store directory: where the store lies, by an option or by the environment.

In: an option that may be left out. Out: a directory, read in one way wherever it is named: a line
break at its end, as of a file that was read into the variable, is no part of it. Opens nothing.
"""

import os

from foreword.errors import InputError

VARIABLE = "FOREWORD_PROMPTS"


def store_directory(given: str | None) -> str | None:
    """Return the store's directory; None where neither the option nor the variable names one.

    Args:
        given: the option; None reads the variable, also an empty one.

    Raises:
        InputError: it is named, and empty.
    """
    found = given if given is not None else os.environ.get(VARIABLE)
    if found is None:
        return None
    directory = found.rstrip("\r\n")
    if not directory.strip():
        where = "--prompts" if given is not None and not os.environ.get(VARIABLE) else VARIABLE
        raise InputError(f"{where} is empty: name the store's directory, or leave it out")
    return directory
