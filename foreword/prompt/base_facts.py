"""Base facts: what a prompt's file says of the model that it was made for.

In: the facts of a prompt. Out: the model's name, or a refusal of another hidden size. Imports no
torch: commands ask before a model is loaded.
"""

from collections.abc import Mapping
from typing import Any

from foreword.errors import MismatchError


def base_name(facts: Mapping[str, Any]) -> str:
    """Return how a prompt's file calls its base."""
    return (facts.get("base") or {}).get("name") or "a base that its file does not name"


def check_width(found: int, expected: int, name: str, facts: Mapping[str, Any]) -> None:
    """Refuse embeddings of another hidden size.

    Raises:
        MismatchError: names both models and both sizes.
    """
    if found != expected:
        raise MismatchError(
            f"the prompt has hidden size {found}, {name} has {expected}; it was made for "
            f"{base_name(facts)}"
        )
