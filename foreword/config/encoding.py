"""Options of encoding: how an example becomes token ids, in training and in generation."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal, Self

from foreword.config.checks import check_types, not_negative
from foreword.config.declaring import fact, file_option, option, text_option
from foreword.errors import InputError

Opening = Literal["answer", "generation"]
BEFORE: dict[str, Any] = {"opening": "generation", "start_token": False, "plain": True}
"""How rows were encoded before there were options for it, where that is not their default."""


@dataclass(frozen=True)
class EncodingConfig:
    """How an example becomes token ids. Saved in the prompt: generation encodes as training did."""

    row_template: str | None = text_option(
        None,
        "text of a row around its {prompt}, instead of the chat template; for base models and "
        "for rows that should carry no system turn",
    )
    max_length: int | None = option(
        None, "longest row in tokens, virtual tokens not counted; default: the model's context"
    )
    truncate: bool = option(
        False,
        "shorten rows that are too long instead of refusing them: drop the oldest turns, then the "
        "start of the text; start token and system turn stay",
    )
    chat_template: str | None = file_option(
        None,
        "file with a chat template to use instead of the tokenizer's; it is saved in the prompt",
    )
    opening: Opening = option(
        "answer",
        "where an answer begins: right where the chat template writes one, past an empty block of "
        "thinking, or behind the template's generation prompt, for answers that hold reasoning",
    )
    start_token: bool = option(
        True, "begin a --row-template with the tokenizer's start token, unless it spells it out"
    )
    special_tokens: bool = option(
        False,
        "read special tokens that the text of a row spells out as these tokens; by default they "
        "are plain text",
    )
    plain: bool = option(
        False,
        "read rows of prompt and completion as plain text, one behind the other; by default each "
        "is one user turn and its answer, where the tokenizer has a chat template",
    )
    date: str | None = option(
        None,
        "day that a chat template prints as today's, as 2026-01-31; default: the day on which the "
        "run begins; generation prints it, too",
    )

    is_text: bool | None = fact(
        None,
        "whether the rows were plain text, without a template of any kind; a text is asked so, and "
        "so is a message; where only some were, each is asked as it is given",
    )
    held_text: str | None = fact(
        None, "what the virtual tokens hold in place of every row's beginning, as JSON"
    )
    held_tokens: int = fact(0, "how many tokens that is")
    held_hash: str | None = fact(None, "the hash of their ids")

    @classmethod
    def saved(cls, facts: Mapping[str, Any]) -> Self:
        """Return how rows are encoded that a prompt's facts describe; what they do not say is as it
        was before there were options for it, and as a model without a prompt is asked.

        Raises:
            InputError: what they say is no such option.
        """
        said = BEFORE | dict(facts)
        return cls(**{one.name: said[one.name] for one in fields(cls) if one.name in said})

    def check_given(self, *, has_turns: bool = True) -> None:
        """Refuse options that a run is given and that can change none of its rows; those that a
        prompt records say how it was, and may.

        Args:
            has_turns: whether some row is a conversation.

        Raises:
            InputError: names the first of them.
        """
        by_template = self.row_template is not None
        if not self.start_token and not by_template:
            raise InputError("--no-start-token is of --row-template: give that, too")
        if self.plain and by_template:
            raise InputError("--row-template says how rows are written: leave --plain out")
        of_chats = {
            "--opening": self.opening != "answer",
            "--date": self.date is not None,
            "--chat-template": self.chat_template is not None,
        }
        named = [name for name, is_given in of_chats.items() if is_given]
        if named and (by_template or (self.plain and not has_turns)):
            raise InputError(
                f"{named[0]} is of chat templates, and no row is written by one with "
                f"{'--row-template' if by_template else '--plain'}: leave it out"
            )

    def __post_init__(self) -> None:
        check_types(self)
        if self.row_template is not None and "{prompt}" not in self.row_template:
            raise InputError(f"--row-template must contain {{prompt}}, got {self.row_template!r}")
        not_negative(self, "held_tokens")
        if self.held_text is not None and not (self.held_tokens > 0 and self.held_hash):
            raise InputError("a held text needs the number of its tokens and their hash")
        if self.row_template is not None and self.held_text is not None:
            raise InputError("a prompt that holds a text takes no --row-template")
        if self.row_template is not None and self.chat_template is not None:
            raise InputError("--row-template and --chat-template exclude each other: give one")
        if self.max_length is not None and self.max_length < 2:
            raise InputError(f"--max-length must be at least 2 tokens, got {self.max_length}")
        if self.date is not None:
            try:
                datetime.fromisoformat(self.date)
            except (TypeError, ValueError):
                raise InputError(
                    f"--date must be a day, as 2026-01-31, got {self.date!r}"
                ) from None
