"""Option declarations: a field of a config class with its default, its help and how it is read.

In: a default and a sentence. Out: a dataclass field, from which the command line is derived. Knows
no option by name.
"""

from dataclasses import field
from typing import Any, Literal

AUTO: Literal["auto"] = "auto"
Rate = float | Literal["auto"]


def option(default: Any, help: str) -> Any:
    """Declare one option: its default and the sentence that `--help` prints."""
    return field(default=default, metadata={"help": help})


def fact(default: Any, meaning: str) -> Any:
    """Declare a field that no command line sets: a prompt records it."""
    return field(default=default, metadata={"help": meaning, "is_fact": True})


def text_option(default: Any, help: str) -> Any:
    """Declare an option whose value is a text; the command line takes @FILE in its place."""
    return field(default=default, metadata={"help": f"{help}; or @FILE", "is_text": True})


def file_option(default: Any, help: str) -> Any:
    """Declare an option whose value is the text of a file, which the command line names."""
    return field(default=default, metadata={"help": help, "is_file": True})


def rate_option(default: Any, help: str) -> Any:
    """Declare an option that is a number or "auto", under two names."""
    metadata = {"help": help, "names": ("--learning-rate", "--lr"), "parser": rate}
    return field(default=default, metadata=metadata)


def rate(text: str) -> Rate:
    """Read a learning rate, or "auto".

    Raises:
        ValueError: neither.
    """
    try:
        return AUTO if text == AUTO else float(text)
    except ValueError:
        raise ValueError(f"expected a number or {AUTO!r}, got {text!r:.80}") from None
