"""Stop strings: where the first of some strings ends in a text that comes in pieces.

In: text, piece by piece. Out: the text that is certain to be before any of them. The string that
ends first in the text counts; of several that end there, the longest. So the pieces' borders change
nothing. Each character is looked at once, by Knuth, Morris and Pratt. Knows no tokens.
"""

import copy
from collections.abc import Sequence


class StopStrings:
    """Holds back what may begin a stop string.

    Args:
        strings: none of them empty.

    Attributes:
        is_found: whether one of them came; nothing follows then.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self.is_found = False
        self._matches = [_Match(string) for string in strings]
        self._held = ""

    def __bool__(self) -> bool:
        """Return whether there are any strings."""
        return bool(self._matches)

    def copy(self) -> "StopStrings":
        """Return the same state, for a text that may go on in another way."""
        other = copy.copy(self)
        other._matches = [copy.copy(match) for match in self._matches]
        return other

    def put(self, text: str) -> str:
        """Take text; return what is certain now."""
        if self.is_found or not self._matches:
            return "" if self.is_found else text
        before = self._held + text
        for place, char in enumerate(text, len(self._held) + 1):
            whole = [match.size for match in self._matches if match.advance(char)]
            if whole:
                self.is_found, self._held = True, ""
                return before[: place - max(whole)]
        certain = len(before) - max(match.num_matched for match in self._matches)
        self._held = before[certain:]
        return before[:certain]

    def end(self) -> str:
        """Return what was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held


class _Match:
    """How much of one string the text ends with."""

    def __init__(self, string: str) -> None:
        self.string, self.size, self.num_matched = string, len(string), 0
        self._shorter = [0]  # for each beginning, the longest shorter one that it ends with
        for index in range(1, self.size):
            size = self._shorter[-1]
            while size and string[size] != string[index]:
                size = self._shorter[size - 1]
            self._shorter.append(size + (string[size] == string[index]))

    def advance(self, char: str) -> bool:
        """Take the next character; return whether the whole string has come."""
        if self.num_matched == self.size:
            self.num_matched = self._shorter[-1]
        while self.num_matched and self.string[self.num_matched] != char:
            self.num_matched = self._shorter[self.num_matched - 1]
        self.num_matched += self.string[self.num_matched] == char
        return self.num_matched == self.size
