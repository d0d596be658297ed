"""Template texts: the chat templates that a tokenizer or a processor has, one or several by name.

In: a tokenizer or a processor of transformers. Out: all texts of templates, or the one that
transformers fills for a conversation. Fills none.
"""

from collections.abc import Mapping
from typing import Any

DEFAULT, TOOLS = "default", "tool_use"


def texts_of(reader: Any) -> list[str]:
    """Return the texts of all chat templates that there are."""
    known = getattr(reader, "chat_template", None)
    found = [*known.values()] if isinstance(known, Mapping) else [known]
    return [one for one in found if isinstance(one, str) and one]


def text_of(reader: Any, has_tools: bool = False) -> str | None:
    """Return the chat template that is filled where none is named, as transformers chooses it: of
    several the one for tools where some are shown, or else the default. None: there is none.
    """
    known = getattr(reader, "chat_template", None)
    if isinstance(known, Mapping):
        known = known[TOOLS] if has_tools and TOOLS in known else known.get(DEFAULT)
    return known if isinstance(known, str) and known else None
