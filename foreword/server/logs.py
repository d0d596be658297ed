"""Logging: the server's log lines on standard error, as text or as one JSON object each.

In: records of the loggers `foreword` and `uvicorn.error`; as JSON, of all others and of Python's
warnings, too, so that every line is an object. Out: lines that hold no users' text. A call's record
brings its numbers as `fields`, which are keys of its own in JSON.
"""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any, Literal

LogFormat = Literal["text", "json"]
LOGGERS = ("foreword", "uvicorn.error")
TEXT = "%(asctime)s %(name)s %(levelname)s %(message)s"


class StderrLog(logging.Handler):
    """Writes lines to what standard error is when they come."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


class JsonFormatter(logging.Formatter):
    """Writes a record as one JSON object: time (UTC, to the millisecond), level, logger, and the
    fields of a call or the message of anything else.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03}Z",
            "level": record.levelname,
            "logger": record.name,
        }
        fields = getattr(record, "fields", None)
        line |= fields if isinstance(fields, dict) else {"message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


@contextlib.contextmanager
def log_to_stderr(form: LogFormat = "text") -> Iterator[None]:
    """Write the server's log lines to standard error; afterwards loggers are as they were."""
    handler = StderrLog()
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(TEXT))
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger, logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        logger.propagate = False
    if form == "json":
        logging.getLogger().addHandler(handler)
        logging.captureWarnings(True)
    try:
        yield
    finally:
        if form == "json":
            logging.captureWarnings(False)
            logging.getLogger().removeHandler(handler)
        for logger, level, propagate in before:
            logger.setLevel(level)
            logger.removeHandler(handler)
            logger.propagate = propagate
