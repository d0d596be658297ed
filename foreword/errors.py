"""Errors: every exception that foreword raises, drawn as one tree.

    ForewordError
    ├── InputError           the caller's data, file or argument is wrong
    │   ├── DataError        a row or a data file: names file and line
    │   │   ├── ColumnError  a row without a column that is named or needed
    │   │   └── BlankError   a row without a text or without an answer
    │   ├── ArtifactError    a prompt directory: truncated, hostile, not a soft prompt
    │   ├── NotFoundError    no prompt or version of that name
    │   ├── FormError        a view of a prompt that its form does not have; an AttributeError, too
    │   └── MismatchError    a prompt and a base model that do not belong together
    ├── UnsupportedError     a combination that would not be exact: refused by name
    ├── DependencyError      a missing extra or a release outside the tested range
    ├── BusyError            as many requests wait as may: come back later
    ├── UnavailableError     a served prompt whose files are gone or damaged on the server
    ├── TooSlowError         a request has taken longer than the server allows
    ├── ModelError           the model failed at one request; others go on
    ├── EngineDeadError      the engine has failed as a whole
    ├── StorageError         no space, no permission: says what was kept and where
    └── TrainingError        the run cannot go on: no gradient, a process of it that died
        └── DivergedError    a loss or a gradient that is not finite

A message is one line that says what, where, expected, got, and what to do. Each class carries the
exit code of the command line and the status of an HTTP answer, so that one place turns errors into
either.
"""

from typing import ClassVar


class ForewordError(Exception):
    """Root of every error that foreword raises on purpose."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500


class InputError(ForewordError):
    """Something that the caller gave is wrong and can be corrected by the caller."""

    exit_code = 2
    http_status = 400


class DataError(InputError):
    """A data file or one of its rows cannot be used; the message names file and line.

    Attributes:
        problems: each one's own message, where it tells of several.
    """

    problems: tuple[str, ...] = ()


class ColumnError(DataError):
    """A row without a column that an option names, or that rows need where none does."""


class BlankError(DataError):
    """A row without text before its answer, or without an answer."""


class ArtifactError(InputError):
    """A directory does not hold a readable soft prompt."""


class NotFoundError(InputError):
    """No prompt, or no version of it, goes by the name that was given."""

    http_status = 404


class FormError(InputError, AttributeError):
    """A view of a prompt that its form does not have; `hasattr` says so, too."""


class MismatchError(InputError):
    """A prompt, a cache or a tensor belongs to another base model or to another prompt."""


class UnsupportedError(ForewordError):
    """A combination that cannot be made equal to the oracle; says what to use instead."""

    exit_code = 3
    http_status = 400


class DependencyError(ForewordError):
    """A package is missing or its release is outside the tested range."""

    exit_code = 4


class BusyError(ForewordError):
    """As many requests wait as may; the same request will be served later."""

    http_status = 503


class UnavailableError(ForewordError):
    """A served prompt cannot be read on the server: no fault of the request's; the cause says why,
    with paths, and is for the server's log alone.
    """

    http_status = 503


class TooSlowError(ForewordError):
    """A request has taken longer than the server allows."""

    http_status = 504


class ModelError(ForewordError):
    """The model failed at one request; others go on."""

    http_status = 500


class EngineDeadError(ForewordError):
    """The engine has failed as a whole; the process ends and has to be started again."""

    http_status = 503


class StorageError(ForewordError):
    """A file could not be written; nothing that was there before is lost."""

    exit_code = 5


class TrainingError(ForewordError):
    """Training cannot go on; the best prompt so far is kept where there is one."""

    exit_code = 6


class DivergedError(TrainingError):
    """A loss or a gradient that is not finite; a run first goes back and tries a lower rate."""
