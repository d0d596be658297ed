"""Field types: what the fields of a body are made of, each bounded in length and in its errors.

In: JSON values. Out: the same values, or a few errors, however much is wrong with them: a list ends
at its first error, a map is not looked into where it is too long. Knows no field by name.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from foreword.config import MAX_SERVED_NAME
from foreword.server.body_errors import errors_of, said

MAX_CHARACTERS = 10_000_000  # of one text; the size of a body bounds it before that
# What stands between brackets tells the kinds of a field apart, and is no part of its name.
TEXT, LIST, IDS, LISTS_OF_IDS = "(text)", "(list)", "(ids)", "(lists of ids)"


class Strict(BaseModel):
    """A body, or a part of one: JSON's own types, no unknown field, no NaN, null as left out."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _given(cls, data: Any) -> Any:
        """Leave out nulls, and of the unknown fields all but one, which is refused."""
        if not isinstance(data, dict):
            return data
        known = {field.alias or name for name, field in cls.model_fields.items()}
        given = {name: value for name, value in data.items() if value is not None}
        for name in [name for name in given if name not in known][1:]:
            del given[name]
        return given


def text_or_list(value: Any) -> str | None:
    """Return which of both a value is."""
    if isinstance(value, str):
        return TEXT
    return LIST if isinstance(value, list) else None


def _kind_of_prompt(value: Any) -> str | None:
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, list):
        return LISTS_OF_IDS
    is_id = isinstance(first, int) and not isinstance(first, bool)
    return IDS if is_id else text_or_list(value)


def small_map(max_length: int) -> WrapValidator:
    """Return a validator of maps that reports the first error only, the length before all else."""

    def check(value: Any, check_items: Callable[[Any], Any]) -> Any:
        if isinstance(value, dict) and len(value) > max_length:
            raise PydanticCustomError(
                "too_long",
                "expected at most {limit} entries, got {size}",
                {"limit": max_length, "size": len(value)},
            )
        try:
            return check_items(value)
        except ValidationError as error:
            first = errors_of(error)[0]
            where = "".join(f"{str(part)[:80]}: " for part in first["loc"][:1])
            raise PydanticCustomError("map", "{what}", {"what": where + said(first)}) from None

    return WrapValidator(check)


def is_longer(value: Any, most: int) -> bool:
    """Return whether a value of a body holds more characters and numbers, at any depth and with the
    names of free fields, than `most`; little more than that is looked at.
    """
    size, left = 0, [value]
    while left and size <= most:
        one = left.pop()
        if isinstance(one, str):
            size += len(one)
        elif isinstance(one, BaseModel):
            left += one.__dict__.values()
        elif isinstance(one, Mapping):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            left += one[: most + 1]
        else:
            size += one is not None
    return size > most


def one_of(kind_of: Callable[[Any], str | None], expected: str) -> Discriminator:
    """Return what chooses among the kinds of a field, so that the errors are of one of them."""
    return Discriminator(
        kind_of, custom_error_type="kind", custom_error_message=f"expected {expected}"
    )


Text = Annotated[str, StringConstraints(max_length=MAX_CHARACTERS)]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=MAX_SERVED_NAME)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Stops = Annotated[
    Annotated[StopString, Tag(TEXT)]
    | Annotated[list[StopString], Field(max_length=8, fail_fast=True), Tag(LIST)],
    one_of(text_or_list, "a text or a list of texts"),
]
TokenId = Annotated[int, Field(ge=0, le=10_000_000)]
StopIds = Annotated[list[TokenId], Field(max_length=128, fail_fast=True)]
Ids = Annotated[list[TokenId], Field(min_length=1, max_length=1_000_000, fail_fast=True)]
Prompts = Field(min_length=1, max_length=256, fail_fast=True)
Prompt = Annotated[
    Annotated[Text, Tag(TEXT)]
    | Annotated[list[Text], Prompts, Tag(LIST)]
    | Annotated[Ids, Tag(IDS)]
    | Annotated[list[Ids], Prompts, Tag(LISTS_OF_IDS)],
    one_of(_kind_of_prompt, "a text, a list of texts, ids, or a list of lists of ids"),
]
BiasedId = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,7})$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
LogitBias = Annotated[dict[BiasedId, Bias], small_map(1024)]
Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ],
    small_map(16),
]
