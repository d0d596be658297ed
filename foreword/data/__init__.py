"""Training data: from a file of rows to token ids with a label mask, and to padded batches.

In: a file, or rows as mappings. Out: `Example` (text), `Row` (ids) and `Batch` (`[B, T]`). Knows no
model and no prompt; a tokenizer or a processor is given.
"""
