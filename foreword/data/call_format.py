"""Tool call format: how a chat template writes calls of tools, seen by filling it with probes.

In: a chat template. Out: what it writes before, between and behind calls, and the text of one call
with holes for its name, its arguments and its id. So an answer is read, and held to a grammar, as
the rows of training were written, whatever the family. Knows no token ids and no answers.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from foreword.config import EncodingConfig, Opening
from foreword.data.argument_format import ArgumentFormat, PairedCall, paired_call
from foreword.data.chat_template import ChatTemplate
from foreword.data.media_parts import Message
from foreword.data.row_text import RowText
from foreword.errors import DataError, InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Hole = Literal["name", "arguments", "id"]
Path = tuple[str, ...]
"""Keys from a JSON object down to a value in it."""

_ASKED: Message = {"role": "user", "content": "a"}
_IDS = ("fwprobe01", "fwprobe02")  # nine letters and digits, as Mistral's templates want them
_NAMES = ("foreword_probe_1", "foreword_probe_2")
_ARGUMENTS = {"foreword_key": "foreword_value", "foreword_number": 0}
_WRITTEN = re.compile(
    r'\{\s*"foreword_key"(?P<colon>\s*:\s*)"foreword_value"(?P<comma>\s*,\s*)'
    r'"foreword_number"\s*:\s*0\s*\}'
)
_PROPERTIES = {"foreword_key": {"type": "string"}, "foreword_number": {"type": "integer"}}


@dataclass(frozen=True)
class CallFormat:
    """How calls of tools are written in an answer.

    Attributes:
        opening: before the first call; blank where the first call itself begins the answer.
        joint: between two calls; None where the template writes one call at most.
        closing: behind the last call.
        literals: what is written of a call around its holes: one more than there are holes.
        holes: what stands between the literals.
        paths: where a call is a JSON object, the place in it of each hole; else empty.
        colon: between a name and a value of the arguments.
        comma: between two arguments.
        argument: how each argument is written, where they stand one by one.
    """

    opening: str
    joint: str | None
    closing: str
    literals: tuple[str, ...]
    holes: tuple[Hole, ...]
    paths: Mapping[Hole, Path]
    colon: str = ": "
    comma: str = ", "
    argument: ArgumentFormat | None = None

    @property
    def is_each_marked(self) -> bool:
        """Whether each call has the opening and the closing to itself."""
        joint, own = self.joint, self.closing
        return bool(
            self.opening.strip()
            and joint is not None
            and len(joint) >= len(own + self.opening)
            and joint.startswith(own)
            and joint.endswith(self.opening)
        )

    @property
    def mark(self) -> str:
        """What tells calls from text: "" where only the beginning of an answer does."""
        return self.opening.strip()

    @property
    def texts(self) -> tuple[str, ...]:
        """All that is written around holes."""
        one = self.argument
        own = (one.opening, one.between, one.closing) if one is not None else ()
        return (self.opening, self.joint or "", self.closing, *self.literals, *own)

    def special_tokens(self, tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
        """Return the special tokens that are part of calls, by their ids."""
        return {
            token_id: str(token)
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if token.special and any(str(token) in text for text in self.texts)
        }


def call_format(tokenizer: "PreTrainedTokenizerBase", config: EncodingConfig) -> CallFormat:
    """Return how calls are written in answers to rows that are encoded so.

    Raises:
        InputError: rows without a chat template, or one that writes no calls that can be read.
    """
    if config.row_template is not None:
        raise InputError(
            "tools: the rows of this prompt's training were written by a row template, which shows "
            "no tools: leave them out"
        )
    template = RowText(tokenizer, config).template
    try:
        found = format_of(template, config.opening)
    except DataError as error:
        reason = re.sub(r"^message \d+: ", "", str(error))  # of a probe, not of a client
        raise InputError(f"tools: {reason}") from None
    if found is None:
        raise InputError(
            "tools: the chat template writes calls in a form that is not read here (expected a "
            "name, and arguments in JSON or each between marks): leave them out, or give a "
            "--chat-template that writes them so"
        )
    return found


def format_of(template: ChatTemplate, opening: Opening) -> CallFormat | None:
    """Return how a template writes calls; None where a call is not a name and a JSON object.

    Raises:
        InputError: no template. DataError: a template that writes no calls.
    """
    template = replace(template, tools=_tools())
    before = template.opened([_ASKED], opening)

    def written(*calls: dict[str, Any]) -> str:
        answer = {"role": "assistant", "content": "", "tool_calls": [*calls]}
        return template.answer([_ASKED], answer, before)

    one = written(_call(0))
    found = _single(one)
    if found is None:
        paired = paired_call(lambda arguments: written(_call(0, arguments)), _NAMES[0])
        if paired is None:
            return None
        found = _of_pairs(paired)
    try:
        two = written(_call(0), _call(1))
    except DataError:
        two = ""
    start, behind = one.removesuffix(found.closing), found.closing
    second = start.removeprefix(found.opening)
    for first, other in ((_NAMES[0], _NAMES[1]), (_IDS[0], _IDS[1])):
        second = second.replace(first, other)
    end = second + behind
    if two.startswith(start) and two.endswith(end) and len(two) >= len(start + end):
        found = replace(found, joint=two[len(start) : len(two) - len(end)])
    return found


def _of_pairs(call: PairedCall) -> CallFormat:
    """Return the format of calls whose arguments are written one by one."""
    holes: tuple[Hole, ...] = ("name", "arguments")
    literals = ("", call.head, "")
    return CallFormat(call.opening, None, call.behind, literals, holes, {}, argument=call.argument)


def _single(one: str) -> CallFormat | None:
    """Return the format of an answer with one call."""
    arguments = _WRITTEN.search(one)
    at = one.find(_NAMES[0])
    if arguments is None or at < 0:
        return None
    spaces = arguments["colon"], arguments["comma"]
    for start in _braces(one, min(at, arguments.start())):
        try:
            value, end = json.JSONDecoder().raw_decode(one, start)
        except ValueError:
            continue
        paths = dict(_paths(value))
        if end >= arguments.end() and {"name", "arguments"} <= {*paths}:
            holes, literals = _holes(one[start:end])
            if len(holes) == len(paths):
                return CallFormat(one[:start], None, one[end:], literals, holes, paths, *spaces)
    end = arguments.end()
    if at > arguments.start() or _IDS[0] in one:
        return None
    holes, literals = _holes(one[at:end])
    is_plain = holes == ("name", "arguments") and literals[1].strip()
    return CallFormat(one[:at], None, one[end:], literals, holes, {}, *spaces) if is_plain else None


def _holes(text: str) -> tuple[tuple[Hole, ...], tuple[str, ...]]:
    """Return the holes of one written call, and what is around them."""
    pattern = re.compile(
        f"(?P<name>{_NAMES[0]})|(?P<id>{_IDS[0]})|(?P<arguments>{_WRITTEN.pattern})"
    )
    holes: list[Hole] = []
    literals, done = [], 0
    for found in pattern.finditer(text):
        kinds: tuple[Hole, ...] = ("name", "id", "arguments")
        holes.append(next(kind for kind in kinds if found[kind] is not None))
        literals.append(text[done : found.start()])
        done = found.end()
    return tuple(holes), (*literals, text[done:])


def _paths(value: Any, before: Path = ()) -> Iterator[tuple[Hole, Path]]:
    """Yield where in an object of JSON a call's name, arguments and id stand."""
    if value == _ARGUMENTS:
        yield "arguments", before
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _paths(one, (*before, key))
    elif value == _NAMES[0]:
        yield "name", before
    elif value == _IDS[0]:
        yield "id", before


def _braces(text: str, end: int) -> Iterator[int]:
    return (place for place in range(end) if text[place] == "{")


def _call(number: int, arguments: Mapping[str, Any] = _ARGUMENTS) -> dict[str, Any]:
    function = {"name": _NAMES[number], "arguments": dict(arguments)}
    return {"id": _IDS[number], "type": "function", "function": function}


def _tools() -> Sequence[dict[str, Any]]:
    parameters = {"type": "object", "properties": _PROPERTIES, "required": [*_PROPERTIES]}
    return [
        {
            "type": "function",
            "function": {"name": name, "description": name, "parameters": parameters},
        }
        for name in _NAMES
    ]
