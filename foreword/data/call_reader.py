"""Tool call parsing: the calls of tools in an answer, and the text around them, as both come.

In: an answer's text, piece by piece, and how its template writes calls. Out: text that is certain
to be text, and whole calls. What is not a well-formed call of a known tool stays text: nothing is
lost. Knows no template and no tokens.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import regex

from foreword.data.call_format import CallFormat, Path
from foreword.data.json_files import STRICT
from foreword.data.tool_calls import ToolCall

NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class ParsedAnswer:
    """A whole answer.

    Attributes:
        text: all that is no call.
        calls: in the order in which they were written.
    """

    text: str
    calls: tuple[ToolCall, ...]


class _Unfinished(Exception):
    """What came so far may become a call."""


class _NoCall(Exception):
    """What came is no call."""


class CallReader:
    """Reads one answer.

    Args:
        form: how its template writes calls.
        names: of the tools that it may call.
    """

    def __init__(self, form: CallFormat, names: Collection[str]) -> None:
        self._form, self._names = form, frozenset(names)
        self._mark = _spaced(form.opening)
        self._joint = _spaced(form.joint or "")
        self._closing = _spaced(form.closing)
        self._between = _spaced("" if form.paths else form.literals[1])
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
            except _Unfinished:
                yield from self._text(len(self._held[:start].rstrip()))
                # A call is read again each time by an eighth more of it: in linear time in all.
                self._num_due = len(self._held) + len(self._held) // 8
                return
            except _NoCall:
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
            call, place = self._call(text, _visible(text, place), is_whole)
            calls.append(call)
            after = _visible(text, place)
            if after == len(text):
                if is_whole:  # the end of the answer closes it, too
                    return calls, after
                if form.closing.strip() or not form.mark:
                    raise _Unfinished
            if (going_on := self._is_next(text, after)) is not None:
                place = going_on
                continue
            if not form.closing.strip():
                if not form.mark and after < len(text):
                    raise _NoCall  # without a mark, calls are the whole answer
                return calls, place
            closing = self._closing.match(text, after, partial=not is_whole)
            if closing is None:
                self._check_partial(text, after, is_whole)
                raise _NoCall
            if closing.partial:
                raise _Unfinished
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
            raise _Unfinished

    def _call(self, text: str, place: int, is_whole: bool) -> tuple[ToolCall, int]:
        if place == len(text):
            raise _NoCall if is_whole else _Unfinished
        if self._form.paths:
            value, place = _value(text, place, is_whole)
            return self._of_object(value), place
        name = NAME.match(text, place)
        if name is None:
            raise _NoCall
        between = self._between.match(text, name.end(), partial=not is_whole)
        if between is None:
            raise _NoCall
        if between.partial:
            raise _Unfinished
        arguments, place = _value(text, _visible(text, between.end()), is_whole)
        return self._checked(name[0], arguments, None), place

    def _of_object(self, value: dict[str, Any]) -> ToolCall:
        paths = self._form.paths
        known = {path[:size] for path in paths.values() for size in range(1, len(path) + 1)}
        if _keys(value, [*paths.values()]) - known - _FIXED:
            raise _NoCall  # it says more than a call, which would be lost
        found = {hole: _at(value, path) for hole, path in paths.items()}
        return self._checked(found["name"], found["arguments"], found.get("id"))

    def _checked(self, name: Any, arguments: Any, call_id: Any) -> ToolCall:
        if isinstance(arguments, str):
            try:
                arguments = STRICT.decode(arguments)
            except (ValueError, RecursionError):
                raise _NoCall from None
        is_named = isinstance(name, str) and name in self._names
        if not is_named or not isinstance(arguments, dict):
            raise _NoCall
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


def read_answer(text: str, form: CallFormat, names: Collection[str]) -> ParsedAnswer:
    """Return the calls of a whole answer, and the text around them."""
    reader = CallReader(form, names)
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
            raise _Unfinished
        raise _NoCall
    try:
        value, end = STRICT.raw_decode(text, place)
    except (ValueError, RecursionError):
        if is_whole:
            raise _NoCall from None
        raise _Unfinished from None
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


def _visible(text: str, place: int) -> int:
    """Return the next place that is no white space."""
    return len(text) - len(text[place:].lstrip())


def _spaced(literal: str) -> "regex.Pattern[str]":
    """Return a pattern of a literal with any white space where it has some, but none around it."""
    return regex.compile(r"\s*".join(map(re.escape, literal.split())))
