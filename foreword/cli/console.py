"""Console: free text as it is, and harmless where it would reach a terminal.

In: texts of models, files and users, tables, values for JSON. Out: lines on a stream. A text
reaches a file or a pipe unchanged; on a terminal, what would steer it is shown as an escape. Only
tables are laid out by rich. Knows no command.
"""

import json
import math
import sys
import unicodedata
from typing import Any, TextIO

from rich.console import Console
from rich.status import Status
from rich.text import Text

# Marks that turn the direction of the text after them, by which one text can look like another.
TURNS = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}
PLAIN: dict[str, Any] = {"soft_wrap": True, "markup": False, "highlight": False, "emoji": False}
MIN_WIDTH, MAX_WIDTH = 80, 100_000  # of tables in files and pipes


def visible(text: str, kept: str = "\n\t") -> str:
    """Return a text with escapes for what steers a terminal: control characters, turns, halves of
    surrogate pairs.
    """
    if text.isprintable():
        return text
    return "".join(c if c in kept or not _steers(c) else ascii(c)[1:-1] for c in text)


def one_line(text: object) -> str:
    """Return a text as one visible line."""
    return visible(str(text), kept="")


def _steers(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") or ord(character) in TURNS


def strict_json(value: Any, **options: Any) -> str:
    """Return a value as JSON that every reader takes: null for what is no finite number."""
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value


class TextConsole(Console):
    """A console that prints texts as they are: no markup, no emoji codes, no wrapping."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, **PLAIN)

    @property
    def stream(self) -> TextIO:
        """Where texts go: the process's own stream, or rich's stand-in beside a progress bar."""
        return sys.stderr if self.stderr else sys.stdout

    @property
    def is_watched(self) -> bool:
        """Whether the stream is a terminal, whatever the environment says of colours."""
        return self.stream.isatty()

    def print(self, *objects: Any, end: str = "\n", style: Any = None, **options: Any) -> None:
        """Print texts as they are, or visible on a terminal; everything else as rich does."""
        if not all(isinstance(one, str) for one in objects):
            if self.quiet or self.is_watched:
                super().print(*objects, end=end, style=style, **options)
                return
            # A table in a file is as wide as its cells.
            free = self.options.update(max_width=MAX_WIDTH)
            width = max(MIN_WIDTH, *(self.measure(one, options=free).maximum for one in objects))
            wide = Console(file=self.stream, width=width, **PLAIN)
            wide.print(*objects, end=end, style=style, **options)
            return
        text = " ".join(objects)
        if self.is_watched and style is not None:
            super().print(Text(visible(text)), end=end, style=style)
        elif not self.quiet:
            self._write((visible(text) if self.is_watched else text) + end)

    def status(self, status: Any, **options: Any) -> "TextStatus":
        """Return a spinner beside a text."""
        return TextStatus(status, console=self, **options)

    def _write(self, text: str) -> None:
        encoding = self.stream.encoding or "utf-8"
        self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        self.stream.flush()


class TextStatus(Status):
    """A spinner whose text is shown as it is."""

    def __init__(self, status: Any, **options: Any) -> None:
        super().__init__(_as_text(status), **options)

    def update(self, status: Any = None, **options: Any) -> None:
        """Show another text."""
        super().update(None if status is None else _as_text(status), **options)


def _as_text(status: Any) -> Text:
    return status if isinstance(status, Text) else Text(one_line(status))
