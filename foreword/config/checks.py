"""Option checks: whether a value is of its option's type, finite, and in its range.

In: a config object. Out: nothing, or an error that names the option, what it takes and what it got.
"""

import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from foreword.config import extensions
from foreword.config.declaring import AUTO
from foreword.errors import InputError

LARGEST = {
    "": 2**31 - 1,  # of what has no entry of its own
    "bytes": 2**53,
    "image_pixels": 2**53,
    "seed": 2**62,
    "encoder_size": 2**20,
    "num_resamples": 10**6,
    "repetition_penalty": 10**6,
}
"""The largest number that an option takes; more of it can only be a slip."""


def check_known(call: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse the first option of a call that it does not take.

    Raises:
        InputError: names the option, and the one that may be meant.
    """
    names = sorted(known)
    for name in given:
        if name not in names:
            raise InputError(f"{call}({name}=...): no such option{did_you_mean(name, names)}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a refusal: which known name an unknown one may stand for, if any does."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def check_types(config: Any) -> None:
    """Refuse the first option of a config class whose value is not of its type, or is no number
    that anything can be done with: not finite, or larger than its `LARGEST`.

    Raises:
        InputError: names the option, what it takes, and what it got.
    """
    for one in fields(config):
        value, kinds = getattr(config, one.name), _kinds(one.type)
        name = f"--{one.name.replace('_', '-')}"
        is_right = any(_is_of(value, kind) for kind in kinds)
        if not is_right and not (isinstance(value, str) and extensions.find(one.name, value)):
            taken = " or ".join(_named(kind) for kind in kinds if kind is not NoneType)
            taken += "".join(f", {more}" for more in extensions.names(one.name))
            raise InputError(f"{name} must be {taken}, got {value!r:.80}")
        largest = LARGEST.get(one.name, LARGEST["bytes" if "bytes" in one.name else ""])
        if isinstance(value, int | float) and abs(value) > largest:
            raise InputError(f"{name} must be at most {largest:,}, got {value!r:.80}")


def _kinds(annotation: Any) -> tuple[Any, ...]:
    is_union = get_origin(annotation) in (Union, UnionType)
    return get_args(annotation) if is_union else (annotation,)


def _is_of(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind in (int, float):
        is_number = isinstance(value, int | kind) and not isinstance(value, bool)
        return is_number and (isinstance(value, int) or math.isfinite(value))
    return isinstance(value, kind)


def _named(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    names = {int: "an integer", float: "a finite number", str: "text", bool: "true or false"}
    return names[kind]


def at_least_one(config: Any, *names: str) -> None:
    _check(config, names, lambda value: not value < 1, "be at least 1")


def above_zero(config: Any, *names: str) -> None:
    _check(config, names, lambda value: value > 0, "be above 0")


def not_negative(config: Any, *names: str) -> None:
    _check(config, names, lambda value: not value < 0, "not be negative")


def _check(config: Any, names: tuple[str, ...], is_right: Callable[[Any], bool], what: str) -> None:
    """Refuse the first option, of those that are set to a number, whose number is not right."""
    for name in names:
        value = getattr(config, name)
        if value not in (None, AUTO) and not is_right(value):
            raise InputError(f"--{name.replace('_', '-')} must {what}, got {value}")
