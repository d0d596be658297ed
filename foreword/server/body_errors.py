"""Errors of bodies: what is wrong with a request, as lines that name the field.

In: pydantic's errors, and the model that they are of. Out: lines, and the field for `param`. Knows
no field by name.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from foreword.compat import pydantic_errors
from foreword.config.checks import did_you_mean

# A line that begins with a field, and goes on with what is wrong with it.
OF_A_FIELD = re.compile(r"(\w+)([\w.\[\]]*)(?::| (?:is|needs|goes) )", re.ASCII)


def errors_of(error: ValidationError) -> list[Any]:
    """Return the errors that pydantic found, each with its value and without an address."""
    return list(error.errors(include_url=False))


def place_of(location: Sequence[Any]) -> str:
    """Return a field's place in a body; what stands in brackets is its kind, not its name."""
    names = (str(part) for part in location if part != "body")
    return ".".join(name for name in names if not name.startswith("(")) or "body"


def problem_of(error: Mapping[str, Any], kind: type[BaseModel]) -> str:
    """Return one of pydantic's errors as a line: its field, and what is wrong.

    Args:
        error: as pydantic tells it.
        kind: the model of the whole body.
    """
    where, reason = place_of(error["loc"]), said(error)
    if error["type"] == "extra_forbidden":
        reason += _meant(error["loc"], kind)
    is_whole = where == "body" and error["type"] in pydantic_errors.OWN
    return reason if is_whole else f"{where}: {reason}"


def said(error: Mapping[str, Any]) -> str:
    """Return what is wrong, without the field."""
    if error["type"] == "kind":  # of a field of several kinds, which says what is expected alone
        return f"{error['msg']}, got {pydantic_errors.kind_of(error['input'])}"
    return pydantic_errors.said(error)


def param_of(line: str, kind: type[BaseModel] | None) -> str | None:
    """Return the field of a body that a line begins with; None where it names none."""
    found = OF_A_FIELD.match(line)
    if found is None or kind is None or found[1] not in names_of(kind):
        return None
    return found[1] + found[2]


def names_of(kind: type[BaseModel]) -> list[str]:
    """Return the names of a body's fields, as JSON has them."""
    return [field.alias or name for name, field in kind.model_fields.items()]


def _meant(location: Sequence[Any], kind: type[BaseModel]) -> str:
    """Return which field of the same place an unknown one may stand for."""
    kinds = [kind]
    for part in location[:-1]:
        fields = [
            field.annotation
            for one in kinds
            for name, field in one.model_fields.items()
            if part == (field.alias or name)
        ]
        if fields:  # else a place in a list, or the kind of a field
            kinds = [inner for one in fields for inner in _models_in(one)]
    known = [name for one in kinds for name in names_of(one)]
    return did_you_mean(str(location[-1])[:80], known) or "; GET /docs lists all"


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
