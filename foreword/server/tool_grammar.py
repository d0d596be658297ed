"""Tool grammar: which ids may come next in an answer that calls tools, as a Lark grammar.

In: how a chat template writes calls, and the schemas of the tools' arguments. Out: the text of a
grammar for llguidance, in which a call is exactly as the template writes it. Knows no request.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from foreword.data.call_format import CallFormat
from foreword.server.argument_grammar import ArgumentGrammar, escaped
from foreword.server.closed_schema import closed

ANY = r"(.|\n)*"


class CallableTool(NamedTuple):
    """A tool by its name, and the JSON schema of its arguments."""

    name: str
    schema: Mapping[str, Any]


def call_grammar(
    form: CallFormat,
    tools: Sequence[CallableTool],
    special: Mapping[int, str],
    *,
    is_forced: bool,
    has_one: bool,
    text_schema: Mapping[str, Any] | None = None,
) -> str:
    """Return the grammar of an answer.

    Args:
        form: how calls are written.
        tools: that may be called.
        special: special tokens in it, by their ids.
        is_forced: whether the answer is calls and nothing else.
        has_one: whether it holds one call at most.
        text_schema: what an answer without calls follows; None: any text.
    """
    literal = _Literals(special)
    paired = ArgumentGrammar(form.argument, literal, _spaces(form)) if form.argument else None
    rules = ["ID: /[a-zA-Z0-9]{9}/", "call: " + " | ".join(f"call_{i}" for i in range(len(tools)))]
    for index, tool in enumerate(tools):
        arguments = paired.arguments(*tool) if paired else _json(tool.schema, form)
        rules.append(f"call_{index}: {literal.call(form, tool.name, arguments)}")
    rules += paired.rules if paired else []
    more = "" if has_one or form.joint is None else f"({literal(form.joint)} call)*"
    behind = " ".join(filter(None, ["call", more, literal(form.closing)]))
    whole = " ".join(filter(None, [literal(form.opening), behind]))
    if is_forced:
        return "\n".join([f"start: {whole}", *rules])
    if text_schema is not None:
        return "\n".join([f"start: {_json(text_schema, form)} | {whole}", *rules])
    if not form.mark:
        rules.append(rf"TEXT: /{ANY}/ & ~/\s*\{{{ANY}/")
        return "\n".join([f"start: TEXT | {whole}", *rules])
    mark, rest = form.mark, form.opening[form.opening.index(form.mark) + len(form.mark) :]
    rules.append(f"TEXT: /{ANY}/ & ~/{ANY}{_pattern(mark)}{ANY}/")
    first = literal.split(mark)[0]
    if first in special.values():
        lead = f"TEXT {literal(mark + rest)}"
    else:  # the text up to the mark, and the mark
        rules.append(f"lead[suffix={_quoted(first)}]: /{ANY}/")
        lead = " ".join(filter(None, ["lead", literal(mark[len(first) :] + rest)]))
    return "\n".join([f"start: TEXT | {lead} {behind}", *rules])


class _Literals:
    """Writes text of a template, whose special tokens are ids."""

    def __init__(self, special: Mapping[int, str]) -> None:
        self._ids = {text: token_id for token_id, text in special.items()}
        ordered = sorted(self._ids, key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join(map(re.escape, ordered))})") if ordered else None

    def __call__(self, text: str) -> str:
        return " ".join(
            f"<[{self._ids[part]}]>" if part in self._ids else _quoted(part)
            for part in self.split(text)
        )

    def split(self, text: str) -> list[str]:
        """Return a text cut at special tokens."""
        parts = self._pattern.split(text) if self._pattern else [text]
        return [part for part in parts if part]

    def call(self, form: CallFormat, name: str, arguments: str) -> str:
        """Return one call of a tool, whose arguments are rules."""
        written, pieces = form.literals[0], []
        for hole, text in zip(form.holes, form.literals[1:], strict=True):
            if hole == "name":
                written += name + text
                continue
            pieces.append(self(written))
            pieces.append("ID" if hole == "id" else arguments)
            written = text
        return " ".join(filter(None, [*pieces, self(written)]))


def _json(schema: Mapping[str, Any], form: CallFormat) -> str:
    """Return a value by a JSON schema, with the white space that the template writes."""
    return f"%json {json.dumps({**closed(schema), 'x-guidance': _spaces(form)})}"


def _spaces(form: CallFormat) -> dict[str, Any]:
    return {
        "whitespace_flexible": False,
        "key_separator": form.colon,
        "item_separator": form.comma,
    }


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _pattern(text: str) -> str:
    """Return a regular expression of a text, with any white space where it has some."""
    return r"\s*".join(map(escaped, text.split()))
