"""Console: free text as it is, and harmless where it would reach a terminal.

In: texts of models, files and users, tables, values for JSON. Out: lines on a stream. A text
reaches a file or a pipe unchanged; on a terminal, what would steer it is shown as an escape. Only
tables are laid out by rich. Knows no command.
"""

import contextlib
import errno
import json
import logging
import math
import os
import sys
import threading
import time
import unicodedata
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

from rich.console import Console
from rich.status import Status
from rich.text import Text

from foreword.cli.progress_lines import SECONDS_BETWEEN, duration
from foreword.errors import StorageError

# Marks that turn the direction of the text after them, by which one text can look like another.
TURNS = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}
PLAIN: dict[str, Any] = {"soft_wrap": True, "markup": False, "highlight": False, "emoji": False}
LEVELS = {"error": logging.ERROR, "warning": logging.WARNING}
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
        self.sink: logging.Logger | None = None  # takes texts in the place of the stream

    @property
    def stream(self) -> TextIO | None:
        """Where texts go: the process's own stream, or rich's stand-in beside a progress bar; None
        where the process was started with that stream closed.
        """
        return sys.stderr if self.stderr else sys.stdout

    @property
    def is_watched(self) -> bool:
        """Whether the stream is a terminal, whatever the environment says of colours."""
        return self.stream is not None and self.stream.isatty()

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
        if self.sink is not None:
            self.sink.log(LEVELS.get(text.partition(":")[0], logging.INFO), "%s", one_line(text))
        elif self.is_watched and style is not None:
            super().print(Text(visible(text)), end=end, style=style)
        elif not self.quiet:
            self._write((visible(text) if self.is_watched else text) + end)

    def status(self, status: Any, **options: Any) -> "TextStatus":
        """Return a spinner beside a text; where no terminal shows one, a line now and then."""
        if self.sink is not None:
            options["console"] = Console(quiet=True)
        return TextStatus(status, self, **{"console": self, **options})

    def _write(self, text: str) -> None:
        if self.stream is None:
            return
        encoding = self.stream.encoding or "utf-8"
        try:
            self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self.stream.flush()
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            _let_go(self.stream)
            raise StorageError(f"the output cannot be written ({error.strerror})") from None


def _let_go(stream: TextIO) -> None:
    """Lead a stream that takes nothing to nowhere: the interpreter flushes it in the end."""
    with contextlib.suppress(OSError, ValueError):  # of no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class VisibleLog(logging.Handler):
    """Print what is logged as visible lines on a console, where nobody else takes it."""

    def __init__(self, console: TextConsole) -> None:
        super().__init__(logging.WARNING)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        self.console.print(f"note: {one_line(record.getMessage())}")


@contextlib.contextmanager
def texts_as_log(console: TextConsole, log: logging.Logger | None) -> Iterator[None]:
    """Let what is printed on a console be logged, where there is a log for it."""
    console.sink = log
    try:
        yield
    finally:
        console.sink = None


@contextlib.contextmanager
def warnings_on(console: TextConsole) -> Iterator[None]:
    """Print what modules log or warn of as visible lines, as it may name files of any name."""

    def show(message: Warning | str, *of_its_source: Any) -> None:
        console.print(f"note: {one_line(message)}")

    before, shown = logging.lastResort, warnings.showwarning
    logging.lastResort, warnings.showwarning = VisibleLog(console), show  # type: ignore[assignment]
    try:
        yield
    finally:
        logging.lastResort, warnings.showwarning = before, shown


class TextStatus(Status):
    """A spinner whose text is shown as it is. Where no terminal shows it, the console is given the
    text as a line every 30 seconds, with the time so far.
    """

    def __init__(self, status: Any, says: TextConsole, **options: Any) -> None:
        super().__init__(_as_text(status), **options)
        self._says, self._is_over = says, threading.Event()

    def update(self, status: Any = None, **options: Any) -> None:
        """Show another text."""
        super().update(None if status is None else _as_text(status), **options)

    def start(self) -> None:
        """Begin to show the text."""
        super().start()
        if self._says.sink is not None or not self._says.is_watched:
            self._is_over.clear()
            threading.Thread(target=self._say_lines, daemon=True).start()

    def stop(self) -> None:
        """Show it no more."""
        self._is_over.set()
        super().stop()

    def _say_lines(self) -> None:
        started = time.monotonic()
        while not self._is_over.wait(SECONDS_BETWEEN):
            self._says.print(f"{self.status}, {duration(time.monotonic() - started)} so far")


def _as_text(status: Any) -> Text:
    return status if isinstance(status, Text) else Text(one_line(status))
