"""Unsaid answers: answers of which the labels say another text, as a tokenizer may make of them.

In: examples, and the rows that they became. Out: a sentence, where the labels of some do not hold
their answer as it is written: characters that a tokenizer does not know, or changes. Encodes
nothing.
"""

import unicodedata
from collections.abc import Sequence
from typing import Any

from foreword.data.example import Example, counted
from foreword.data.row import Row

NUM_SHOWN = 40  # characters of an answer, in a message


def unsaid(examples: Sequence[Example], rows: Sequence[Row], tokenizer: Any) -> tuple[str, ...]:
    """Say of how many rows the labels do not hold the answer, and show the first; nothing where
    all do. White space around an answer does not count, which chat templates trim.

    Args:
        examples: with the answers as they are written.
        rows: of the examples, in their order.
        tokenizer: that encoded them.
    """
    found = [
        (example, said)
        for example, row in zip(examples, rows, strict=True)
        if not example.is_beyond_text and (said := _otherwise(example, row, tokenizer)) is not None
    ]
    if not found:
        return ()
    example, said = found[0]
    return (
        f"the labels do not hold the answer as it is written ({counted(len(found))}): "
        f"{_shown(example.completion)} of {example.source} becomes {_shown(said)}, which is what "
        "is learned; write answers in characters that the tokenizer and the chat template keep, or "
        "take another base",
    )


def _otherwise(example: Example, row: Row, tokenizer: Any) -> str | None:
    """Return what labels say that do not hold their answer."""
    ids = list(row.input_ids[-row.num_labels :])
    said = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(said, str)
    written = example.completion.strip()
    end = tokenizer.eos_token or ""
    ways = (written, written.removesuffix(end).rstrip())  # some write a space before an end
    if any(_composed(one) in _composed(said) for one in ways):
        return None
    return said.strip().removesuffix(end)


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _shown(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= NUM_SHOWN else f"{text[:NUM_SHOWN]}...")
