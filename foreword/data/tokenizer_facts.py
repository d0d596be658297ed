"""Tokenizer facts: what tells one tokenizer and its chat template from another.

In: a tokenizer of transformers. Out: hashes that a prompt keeps, and what differs from those of
another. Encodes nothing.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from foreword.errors import MismatchError

NAMES = {"vocabulary": "the tokenizer's vocabulary", "chat_template": "the chat template"}
NUM_DIGITS = 12  # of a hash, in a message


def tokenizer_facts(tokenizer: Any) -> dict[str, Any] | None:
    """Return hashes of the vocabulary and of the chat template: a prompt is trained on both."""
    if tokenizer is None:
        return None
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    return {"vocabulary": _hash(vocabulary), "chat_template": template_hash(tokenizer)}


def template_hash(tokenizer: Any) -> str:
    """Return the hash of a tokenizer's chat template, or of its having none."""
    return _hash(json.dumps(getattr(tokenizer, "chat_template", None)))


def differences(
    theirs: Mapping[str, Any] | None, ours: Mapping[str, Any] | None, *names: str
) -> list[str]:
    """Say which recorded hashes are not those of a tokenizer, with both; what only one of the two
    knows is not compared.
    """
    pairs = ((name, (theirs or {}).get(name), (ours or {}).get(name)) for name in names or NAMES)
    return [
        f"{NAMES[name]} (expected {str(then)[:NUM_DIGITS]}, got {str(now)[:NUM_DIGITS]})"
        for name, then, now in pairs
        if None not in (then, now) and then != now
    ]


def check_vocabulary(facts: Mapping[str, Any], ours: Mapping[str, Any] | None, name: str) -> None:
    """Refuse a prompt, by its facts, that was trained with another vocabulary than a model's.

    Raises:
        MismatchError: names the model, and both hashes.
    """
    if found := differences(facts.get("tokenizer"), ours, "vocabulary"):
        raise MismatchError(
            f"the prompt was trained with another tokenizer than that of {name}: "
            f"{found[0]} differs; load the tokenizer of its training"
        )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
