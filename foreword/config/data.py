"""Options of data files: where the columns are, and which answers of a conversation are learned."""

import re
from dataclasses import dataclass
from typing import Literal

from foreword.config.checks import check_types
from foreword.config.declaring import option, text_option
from foreword.errors import InputError

Learn = Literal["all", "last"]
TEMPLATE_FIELD = re.compile(r"\{(\w[\w .-]*)\}")
"""A {column} of --template: one name in braces. Any other brace, as in JSON, is plain text."""


@dataclass(frozen=True)
class DataConfig:
    """Where the columns of a data file are, and which answers of a conversation are learned.

    With nothing set, the columns decide: see docs/data.md. A column that is named here is read.
    """

    messages_column: str | None = option(
        None, "column that holds a conversation; default: messages, or conversations"
    )
    prompt_column: str | None = option(
        None, "column that holds the text before the answer; default: prompt"
    )
    completion_column: str | None = option(
        None, "column that holds the answer; default: completion"
    )
    template: str | None = text_option(
        None, "text before the answer, with {column} fields; answers are in --label-column"
    )
    label_column: str | None = option(None, "column that holds the answer of a --template")
    skip_blank: bool = option(
        False, "leave out rows with a blank text or answer, and say how many; default: refuse them"
    )
    learn: Learn = option(
        "all", "which answers of a conversation are labels: all of them, or the last"
    )

    def __post_init__(self) -> None:
        check_types(self)
        if self.template is None and self.label_column is not None:
            raise InputError("--label-column is of --template: give that, too")
        if self.template is not None and not TEMPLATE_FIELD.search(self.template):
            raise InputError(f"--template must contain a {{column}}, got {self.template!r}")
        if self.template is not None and (named := self._named()):
            raise InputError(f"--template already says what is read: leave out {named[0]}")

    def check_answers(self) -> None:
        """Refuse to read answers where a template makes what is asked and nothing names them.

        Raises:
            InputError: says what to give.
        """
        if self.template is not None and self.label_column is None:
            raise InputError("--template says what is asked: give --label-column for the answers")

    def _named(self) -> list[str]:
        names = ("messages_column", "prompt_column", "completion_column")
        return [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) is not None]
