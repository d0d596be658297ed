"""Argument parsing: the arguments of a call that are written one by one, as the call's text comes.

In: an answer's text, and how its template writes arguments. Out: the text of each value, by its
name, exactly as it stands between the marks. Knows no types.
"""

import re
from collections.abc import Sequence

import regex

from foreword.data.argument_format import ArgumentFormat


class Unfinished(Exception):
    """What came so far may become a call."""


class NoCall(Exception):
    """What came is no call."""


class ArgumentReader:
    """Reads the arguments of one call.

    Args:
        form: how they are written.
        behind: what may follow the last of them.
    """

    def __init__(self, form: ArgumentFormat, behind: Sequence[str]) -> None:
        self._opening, self._between = spaced(form.opening), spaced(form.between)
        self._closing = spaced(form.closing)
        self._next = [self._opening, *map(spaced, behind)]
        self._before = form.between[len(form.between.rstrip()) :]
        self._after = form.closing[: len(form.closing) - len(form.closing.lstrip())]

    def read(self, text: str, place: int, is_whole: bool) -> tuple[dict[str, str], int]:
        """Return the text of each value by its name, and where the last one ends.

        Raises:
            Unfinished: they may go on. NoCall: they are none.
        """
        found: dict[str, str] = {}
        while True:
            opening = self._opening.match(text, visible(text, place), partial=not is_whole)
            if opening is None:
                return found, place
            if opening.partial:
                raise Unfinished
            name, place = self._name(text, opening.end(), is_whole)
            if name in found:
                raise NoCall
            found[name], place = self._value(text, place, is_whole)

    def _name(self, text: str, place: int, is_whole: bool) -> tuple[str, int]:
        between = self._between.search(text, place, partial=not is_whole)
        if between is None:
            raise NoCall
        if between.partial:
            raise Unfinished
        if name := text[place : between.start()].strip():
            return name, between.end()
        raise NoCall

    def _value(self, text: str, place: int, is_whole: bool) -> tuple[str, int]:
        """Return a value, which ends at the first mark that is followed as the last mark is."""
        start = place
        while (end := self._closing.search(text, start, partial=not is_whole)) is not None:
            if end.partial:
                raise Unfinished
            after = visible(text, end.end())
            found = [one.match(text, after, partial=not is_whole) for one in self._next]
            if any(one and not one.partial for one in found) or (is_whole and after == len(text)):
                value = text[place : end.start()].removeprefix(self._before)
                return value.removesuffix(self._after), end.end()
            if any(found):
                raise Unfinished
            start = end.start() + 1
        raise NoCall


def visible(text: str, place: int) -> int:
    """Return the next place that is no white space."""
    return len(text) - len(text[place:].lstrip())


def spaced(literal: str) -> "regex.Pattern[str]":
    """Return a pattern of a literal with any white space where it has some, but none around it."""
    return regex.compile(r"\s*".join(map(re.escape, literal.split())))
