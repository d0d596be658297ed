"""Byte stops: whether a stop string ends within a run of single bytes, before the run is a text.

In: bytes of a vocabulary that falls back to bytes, and what some stop strings have matched before
them. Out: whether one of them ends if the answer does. A run is a text only as a whole, as a byte
that is wrong makes all of it wrong; but an answer that ends here has no such byte. Knows no tokens.
"""

import codecs

from foreword.data.stop_strings import StopStrings


class ByteStops:
    """Looks for stop strings in one run.

    Args:
        stops: what they have matched before the run; not changed.
        before: text before the run that they have not seen.
    """

    def __init__(self, stops: StopStrings, before: str) -> None:
        self._stops = stops.copy()
        self._stops.put(before)
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._is_wrong = False

    def put(self, byte: int) -> bool:
        """Take the next byte; return whether a stop string has come, and no half character."""
        try:
            text = "" if self._is_wrong else self._utf8.decode(bytes([byte]))
        except UnicodeDecodeError:
            self._is_wrong, text = True, ""
        self._stops.put(text)
        return bool(text) and self._stops.is_found
