"""Compatibility: the releases of transformers that everything is tested with, and how they differ.

In: nothing. Out: nothing, or an error that names the release. Imports neither torch nor
transformers, so that a wrong release is named before it fails in another way.
"""

import contextlib
import os
from collections.abc import Iterator
from importlib import metadata

from packaging.version import Version

from foreword.errors import DependencyError

OLDEST_TRANSFORMERS = Version("5.16")
NEWEST_TRANSFORMERS = Version("5.24")  # exclusive
GROUPED_HEADS = "TRANSFORMERS_SDPA_FORCE_GQA"


def check_transformers() -> None:
    """Refuse a release of transformers outside the tested range.

    Raises:
        DependencyError: names the release and the range.
    """
    found = Version(metadata.version("transformers"))
    if not OLDEST_TRANSFORMERS <= found < NEWEST_TRANSFORMERS:
        wanted = f">={OLDEST_TRANSFORMERS},<{NEWEST_TRANSFORMERS}"
        raise DependencyError(
            f"transformers {found} is outside the tested range, {wanted}; "
            f"install one of it: pip install 'transformers{wanted}'"
        )


@contextlib.contextmanager
def grouped_heads(is_wanted: bool) -> Iterator[None]:
    """Keep transformers from repeating keys and values for every query head under a mask.

    On a CPU, grouped attention gives the same bits in half the time. transformers uses it without
    a mask only, unless this variable says so; older releases do not know it. It is the process's: a
    forward pass of another thread meanwhile gets the same bits too. A user's own setting stays.
    """
    if not is_wanted or GROUPED_HEADS in os.environ:
        yield
        return
    os.environ[GROUPED_HEADS] = "1"
    try:
        yield
    finally:
        os.environ.pop(GROUPED_HEADS, None)


def are_heads_grouped() -> bool:
    """Return whether `grouped_heads`, or the user, asks for grouped attention now."""
    return GROUPED_HEADS in os.environ
