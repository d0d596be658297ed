"""Training data: from a file of rows to token ids with a label mask, and to padded batches.

In: a file, or rows as mappings. Out: `Example` (text), `Row` (ids) and `Batch` (`[B, T]`). Knows no
model and no prompt; a tokenizer or a processor is given.
"""

from typing import TYPE_CHECKING

from foreword.lazy import lazy_names

if TYPE_CHECKING:
    from foreword.data.examples import Example as Example
    from foreword.data.examples import read_examples as read_examples

__getattr__, __dir__ = lazy_names(__name__, examples="Example read_examples")
