"""Argument grammar: arguments that are written one by one, by the JSON schema of a tool, for Lark.

In: how a chat template writes an argument, and a schema. Out: rules for llguidance: the arguments
that the schema names, in its order; texts as they are, other values as JSON. What a schema says
that cannot be held so is refused by name. Knows no request.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from foreword.data.argument_format import ArgumentFormat
from foreword.data.argument_types import resolved, types_of
from foreword.errors import InputError
from foreword.server.closed_schema import closed

CHARACTER = r"(.|\n)"
# What says nothing of which values a schema takes, or is looked at here.
_OF_TOOL = {"type", "properties", "required", "additionalProperties", "$defs", "definitions"}
_OF_TEXT = {"type", "enum", "const", "minLength", "maxLength"}
_SILENT = {
    "title",
    "description",
    "default",
    "examples",
    "$schema",
    "$id",
    "$comment",
    "deprecated",
}
_UNIONS = {"anyOf", "oneOf"}


class ArgumentGrammar:
    """Makes the rules of one grammar.

    Args:
        form: how arguments are written.
        literal: writes a text of the template.
        spaces: how JSON is written, for llguidance.
    """

    def __init__(
        self, form: ArgumentFormat, literal: Callable[[str], str], spaces: Mapping[str, Any]
    ) -> None:
        self._form, self._literal, self._spaces = form, literal, dict(spaces)
        self.rules: list[str] = []

    def arguments(self, tool: str, schema: Mapping[str, Any]) -> str:
        """Return the arguments of a call of a tool.

        Raises:
            InputError: a schema that says more than can be held here.
        """
        self._check_values(tool, schema)
        known, needed = schema.get("properties") or {}, schema.get("required") or []
        if more := sorted(schema.keys() - _OF_TOOL - _SILENT) or sorted({*needed} - known.keys()):
            raise _not_held(f"{tool}: the chat template writes arguments one by one", more[0])
        parts = []
        for name, own in known.items():
            if not name or self._form.between.strip() in name or name != name.strip():
                raise InputError(f"tools: {tool}: an argument called {name!r} cannot be written")
            value = self._argument(f"{tool}.{name}", own, schema)
            begun = self._literal(f"{self._form.opening}{name}{self._form.between}")
            parts.append(f"({begun} {value}){'' if name in needed else '?'}")
        return " ".join(parts)

    def _argument(self, place: str, schema: Any, root: Mapping[str, Any]) -> str:
        """Return a value and what closes it."""
        types, schema = types_of(schema, root), resolved(schema, root)
        schema = schema if isinstance(schema, Mapping) else {}
        own = schema.keys() - _SILENT
        if len(own) == 1 and own <= _UNIONS and "string" in types:
            ways = [self._argument(place, one, root) for one in schema[own.pop()]]
            return f"({' | '.join(ways)})"
        if not own:
            return self._text(place, schema)
        if "string" not in types:
            return self._json(schema, types, root)
        ways = [self._text(place, schema)]
        if others := [one for one in types if one != "string"]:
            ways.append(self._json({**schema, "type": others}, tuple(others), root))
        return f"({' | '.join(ways)})"

    def _check_values(self, place: str, schema: Any) -> None:
        """Refuse a text, anywhere in what a schema allows by name, at which a reader would end.

        Raises:
            InputError: names the argument.
        """
        end, left = self._form.closing.strip(), [schema]
        while left:
            one = left.pop()
            if isinstance(one, str) and end in one:
                raise InputError(
                    f"tools: {place}: {one!r:.80} holds {end!r}, which ends an argument in this "
                    "chat template: leave it out"
                )
            if isinstance(one, Mapping):
                left += [
                    value
                    for key, value in one.items()
                    if key not in _SILENT or key in ("$defs", "definitions")
                ]
            elif isinstance(one, list):
                left += one

    def _json(
        self, schema: Mapping[str, Any], types: tuple[str, ...], root: Mapping[str, Any]
    ) -> str:
        """Return a value that is no text; true, false and null by themselves are words."""
        close, words = self._literal(self._form.closing), self._form.words
        if types in (("boolean",), ("null",)) and not {*schema} - {"type"} - _SILENT:
            told = words[:2] if types == ("boolean",) else words[2:]
            return f"({' | '.join(map(json.dumps, told))}) {close}"
        shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
        whole = closed({**shared, **schema})
        if not types:  # a text would be quoted as JSON, and read as it is
            whole = {**whole, "type": ["object", "array", "number", "boolean", "null"]}
        return f"%json {json.dumps({**whole, 'x-guidance': self._spaces})} {close}"

    def _text(self, place: str, schema: Mapping[str, Any]) -> str:
        if more := sorted(schema.keys() - _OF_TEXT - _SILENT):
            raise _not_held(f"{place}: the chat template writes texts as they are", more[0])
        close = self._form.closing
        said = schema.get("enum") or ([schema["const"]] if "const" in schema else None)
        if said is not None:
            texts = [json.dumps(one, ensure_ascii=False) for one in said if isinstance(one, str)]
            if not texts:
                raise InputError(f"tools: {place}: a text, and none of its values is one")
            return f"({' | '.join(texts)}) {self._literal(close)}"
        end = close.strip()
        before = close[: close.index(end)]
        least, most = schema.get("minLength", 0), schema.get("maxLength", "")
        number = len(self.rules)
        self.rules += [
            f"text_{number}[suffix={json.dumps(end, ensure_ascii=False)}]: TEXT_{number}",
            f"TEXT_{number}: /{CHARACTER}{{{least},{most}}}{escaped(before)}/"
            f" & ~/{CHARACTER}*{escaped(end)}{CHARACTER}*/",
        ]
        rest = close[close.index(end) + len(end) :]
        return f"text_{number} {self._literal(rest)}".rstrip()


def _not_held(where: str, key: str) -> InputError:
    return InputError(
        f"tools: {where}, where {key!r} cannot be held to: leave it out, or give tool_choice "
        '"auto" without strict'
    )


def escaped(text: str) -> str:
    """Return a regular expression of a text as it is."""
    return "".join(c if c.isalnum() or ord(c) > 127 else f"\\x{ord(c):02x}" for c in text)
