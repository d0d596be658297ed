"""Extensions: methods and initializers of other packages, by the names that options take.

In: what a decorator registers, or an entry point of an installed package names. Out: the same by
name. An entry point's module is imported when its name is first asked for, and registers itself.
"""

import functools
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from foreword.errors import DependencyError, InputError

GROUPS = {"method": "foreword.methods", "init": "foreword.initializers"}
T = TypeVar("T")

_registered: dict[str, dict[str, Any]] = {option: {} for option in GROUPS}


def register(option: str, name: str, is_taken: bool) -> Callable[[T], T]:
    """Return a decorator that lets an option take a name.

    Raises:
        InputError: the name is one of foreword's own.
    """
    if is_taken or not name:
        raise InputError(f"--{option} {name!r} is foreword's own: register another name")

    def decorate(value: T) -> T:
        _registered[option][name] = value
        return value

    return decorate


def names(option: str) -> list[str]:
    """Return the names that an option takes beside foreword's own; imports none of them."""
    return sorted({*_registered.get(option, {}), *_installed(option)})


def find(option: str, name: str | None) -> Any:
    """Return what is registered under a name; None where nothing is.

    Raises:
        DependencyError: an installed package's module cannot be imported, or registers no such
            name.
    """
    known = _registered.get(option, {})
    if name in known or name not in _installed(option):
        return known.get(str(name))
    point = _installed(option)[str(name)]
    try:
        point.load()
    except Exception as error:  # whatever the other package's module raises
        raise DependencyError(f"--{option} {name}: {point.value}: {error}") from error
    if name not in known:
        raise DependencyError(f"--{option} {name}: {point.value} registers no such name")
    return known[str(name)]


@functools.cache
def _installed(option: str) -> dict[str, EntryPoint]:
    group = GROUPS.get(option)
    return {point.name: point for point in entry_points(group=group)} if group else {}
