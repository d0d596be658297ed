"""Tool call parsing: the calls of tools in an answer, and the text around them, as both come.

In: an answer's text, piece by piece, and how its template writes calls. Out: text that is certain
to be text, and whole calls. What is not a well-formed call of a known tool stays text: nothing is
lost. Knows no template and no tokens.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foreword.data.argument_reader import ArgumentReader, NoCall, Unfinished, spaced, visible
from foreword.data.argument_types import types_of, value_of
from foreword.data.call_format import CallFormat, Path
from foreword.data.json_files import STRICT
from foreword.data.tool_calls import ToolCall

NAME = re.compile(r"[A-Za-z0-9_.-]+")
ToolSchemas = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class ParsedAnswer:
    """A whole answer.

    Attributes:
        text: all that is no call.
        calls: in the order in which they were written.
    """

    text: str
    calls: tuple[ToolCall, ...]


class CallReader:
    """Reads one answer.

    Args:
        form: how its template writes calls.
        tools: that it may call, by name: the JSON schema of the arguments of each.
    """

    def __init__(self, form: CallFormat, tools: ToolSchemas) -> None:
        self._form, self._tools = form, tools
        self._mark = spaced(form.opening)
        self._joint = spaced(form.joint or "")
        self._closing = spaced(form.closing)
        self._between = spaced("" if form.paths else form.literals[1])
        self._arguments: ArgumentReader | None = None
        if form.argument is not None:
            behind = [one for one in (form.closing, form.joint) if one]
            self._arguments = ArgumentReader(form.argument, behind)
        self._held = ""  # that may become a call, or white space before one
        self._num_due = 0  # characters held with which it is worth to look again
        self._has_begun = False  # text that is no white space came, or a call
        self._has_called = False

    def put(self, text: str) -> list[str | ToolCall]:
        """Take text; return what is certain now."""
        self._held += text
        if len(self._held) < self._num_due:
            return []
        return self._joined(self._read(is_whole=False))

    def end(self) -> list[str | ToolCall]:
        """Return what was held back, now that nothing follows."""
        return self._joined(self._read(is_whole=True))

    def _read(self, *, is_whole: bool) -> Iterator[str | ToolCall]:
        self._num_due = 0
        while self._held:
            start, mark_end = self._next(is_whole)
            if mark_end is None:
                if is_whole and self._has_called and not self._held.strip():
                    return  # white space behind a call, as between two
                yield from self._text(start)
                return
            try:
                calls, end = self._calls(self._held, mark_end, is_whole)
            except Unfinished:
                yield from self._text(len(self._held[:start].rstrip()))
                # A call is read again each time by an eighth more of it: in linear time in all.
                self._num_due = len(self._held) + len(self._held) // 8
                return
            except NoCall:
                yield from self._text(max(1, mark_end))
                continue
            before = self._held[:start].rstrip()  # white space before a call is its template's
            if before:
                yield before
            yield from calls
            self._has_begun = self._has_called = True
            self._held = self._held[end:]

    def _next(self, is_whole: bool) -> tuple[int, int | None]:
        """Return where the next call may start, and where its mark ends; None: up to there all is
        text.
        """
        size = len(self._held)
        if self._form.mark:
            found = self._mark.search(self._held, partial=not is_whole)
            if found is not None and not found.partial:
                return found.start(), found.end()
            start = found.start() if found is not None else size
            return (start if is_whole else len(self._held[:start].rstrip())), None
        begun = self._held.lstrip()
        if self._has_begun:
            return size, None
        if begun.startswith(self._form.literals[0].strip()[:1] or "{"):
            return size - len(begun), size - len(begun)
        return (size if begun or is_whole else 0), None

    def _text(self, size: int) -> Iterator[str]:
        """Yield what is held up to some size as text."""
        text, self._held = self._held[:size], self._held[size:]
        self._has_begun = self._has_begun or bool(text.strip())
        if text:
            yield text

    def _calls(self, text: str, place: int, is_whole: bool) -> tuple[list[ToolCall], int]:
        """Return the calls behind a mark, and where they end."""
        calls, form = [], self._form
        while True:
            call, place = self._call(text, visible(text, place), is_whole)
            calls.append(call)
            after = visible(text, place)
            if after == len(text):
                if is_whole:  # the end of the answer closes it, too
                    return calls, after
                if form.closing.strip() or not form.mark:
                    raise Unfinished
            if (going_on := self._is_next(text, after)) is not None:
                place = going_on
                continue
            if not form.closing.strip():
                if not form.mark and after < len(text):
                    raise NoCall  # without a mark, calls are the whole answer
                return calls, place
            closing = self._closing.match(text, after, partial=not is_whole)
            if closing is None:
                self._check_partial(text, after, is_whole)
                raise NoCall
            if closing.partial:
                raise Unfinished
            return calls, closing.end()

    def _is_next(self, text: str, place: int) -> int | None:
        """Return where the next call of a list begins; None: the list ends here."""
        joint = self._form.joint
        if joint is None or self._form.is_each_marked:
            return None
        if not joint.strip():
            return place if text.startswith("{", place) and self._form.paths else None
        found = self._joint.match(text, place)
        return found.end() if found is not None else None

    def _check_partial(self, text: str, place: int, is_whole: bool) -> None:
        """Wait where a list may go on."""
        if is_whole or self._form.joint is None or self._form.is_each_marked:
            return
        if self._joint.match(text, place, partial=True) is not None:
            raise Unfinished

    def _call(self, text: str, place: int, is_whole: bool) -> tuple[ToolCall, int]:
        if place == len(text):
            raise NoCall if is_whole else Unfinished
        if self._form.paths:
            value, place = _value(text, place, is_whole)
            return self._of_object(value), place
        name = NAME.match(text, place)
        if name is None:
            raise NoCall
        between = self._between.match(text, name.end(), partial=not is_whole)
        if between is None:
            raise NoCall
        if between.partial:
            raise Unfinished
        if self._arguments is not None:
            texts, place = self._arguments.read(text, between.end(), is_whole)
            return self._checked(name[0], self._typed(name[0], texts), None), place
        arguments, place = _value(text, visible(text, between.end()), is_whole)
        return self._checked(name[0], arguments, None), place

    def _typed(self, name: str, texts: Mapping[str, str]) -> dict[str, Any]:
        root = self._tools.get(name, {})
        known = root.get("properties") or {}
        return {key: value_of(text, types_of(known.get(key), root)) for key, text in texts.items()}

    def _of_object(self, value: dict[str, Any]) -> ToolCall:
        paths = self._form.paths
        known = {path[:size] for path in paths.values() for size in range(1, len(path) + 1)}
        if _keys(value, [*paths.values()]) - known - _FIXED:
            raise NoCall  # it says more than a call, which would be lost
        found = {hole: _at(value, path) for hole, path in paths.items()}
        return self._checked(found["name"], found["arguments"], found.get("id"))

    def _checked(self, name: Any, arguments: Any, call_id: Any) -> ToolCall:
        if isinstance(arguments, str):
            try:
                arguments = STRICT.decode(arguments)
            except (ValueError, RecursionError):
                raise NoCall from None
        is_named = isinstance(name, str) and name in self._tools
        if not is_named or not isinstance(arguments, dict):
            raise NoCall
        return ToolCall(name, arguments, call_id if isinstance(call_id, str) else None)

    @staticmethod
    def _joined(events: Iterator[str | ToolCall]) -> list[str | ToolCall]:
        found: list[str | ToolCall] = []
        for one in events:
            if isinstance(one, str) and found and isinstance(found[-1], str):
                found[-1] += one
            else:
                found.append(one)
        return found


def read_answer(text: str, form: CallFormat, tools: ToolSchemas) -> ParsedAnswer:
    """Return the calls of a whole answer, and the text around them."""
    reader = CallReader(form, tools)
    events = [*reader.put(text), *reader.end()]
    return ParsedAnswer(
        "".join(one for one in events if isinstance(one, str)),
        tuple(one for one in events if isinstance(one, ToolCall)),
    )


_FIXED = {("type",)}
"""What some write beside a call, and what says nothing."""


def _value(text: str, place: int, is_whole: bool) -> tuple[Any, int]:
    """Return the JSON object that starts at a place, and where it ends."""
    if not text.startswith("{", place):
        if place >= len(text) and not is_whole:
            raise Unfinished
        raise NoCall
    try:
        value, end = STRICT.raw_decode(text, place)
    except (ValueError, RecursionError):
        if is_whole:
            raise NoCall from None
        raise Unfinished from None
    return value, end


def _at(value: Any, path: Path) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _keys(value: Any, ends: Sequence[Path], before: Path = ()) -> set[Path]:
    """Return the places in an object, those below its arguments left out."""
    found: set[Path] = set()
    for key, one in value.items():
        place = (*before, key)
        found.add(place)
        if isinstance(one, dict) and place not in ends:
            found |= _keys(one, ends, place)
    return found
