"""Marked row: a row of ids as a person reads it, with its labels marked.

In: a row and its tokenizer. Out: one line. Long text before the labels is cut at its start.
"""

from typing import TYPE_CHECKING

from foreword.data.row import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST = 400  # characters before the labels, and of the labels
OPEN, CLOSE, LINE_BREAK = "⟦", "⟧", "⏎"


def marked(row: Row, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return what the model reads of a row, special tokens included, and its labels in ⟦⟧."""
    cut = len(row.input_ids) - row.num_labels
    before, labels = (
        str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
        for ids in (row.input_ids[:cut], row.input_ids[cut:])
    )
    start = "…" if len(before) > LONGEST else ""
    end = "…" if len(labels) > LONGEST else ""
    line = f"{start}{before[-LONGEST:]}{OPEN}{labels[:LONGEST]}{end}{CLOSE}"
    return line.replace("\n", LINE_BREAK)
