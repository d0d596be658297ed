"""A request's place in the batch, and how many there may be.

In: a handle. Out: a row that knows what has been read and what is read next. Knows nothing of the
model.
"""

from dataclasses import dataclass

from foreword.request import Handle
from foreword.sampling import Sampler


@dataclass(frozen=True)
class EngineLimits:
    """How much an engine takes on at once.

    Attributes:
        max_rows: requests in the batch.
        max_length: tokens of one request, virtual, given and new ones together; None is the model's
            context.
        max_slots: rows times capacity: the tokens that memory is made for.
        max_waiting: requests that may wait for a row.
        chunk_tokens: tokens of prompts that one step reads.
        max_state_bytes: states of prompts and conversations that are kept.
        max_media_bytes: images and sounds of requests that wait, as a processor returns them.
    """

    max_rows: int = 32
    max_length: int | None = None
    max_slots: int = 65536
    max_waiting: int = 1024
    chunk_tokens: int = 256
    max_state_bytes: int = 1 << 30
    max_media_bytes: int = 1 << 30


class Row:
    """A request's place in the batch: what it has read and what it reads next.

    Of what it has read, `num_sound` tokens are known to have given finite logits.
    """

    def __init__(self, handle: Handle, index: int, num_reused: int) -> None:
        request = handle.request
        self.handle, self.index = handle, index
        self.ids = list(request.ids)
        self.num_virtual = request.prompt.num_virtual_tokens if request.prompt else 0
        self.num_read = self.num_sound = num_reused
        self.sampler = Sampler(request.sampling, request.ids)

    @property
    def num_held(self) -> int:
        """Tokens in its slots, virtual ones included."""
        return self.num_virtual + self.num_read

    @property
    def num_unread(self) -> int:
        """Tokens that the model has to read before the next choice."""
        return len(self.ids) - self.num_read

    @property
    def is_over(self) -> bool:
        """Whether its request has ended, or should."""
        return self.handle.is_cancelled or self.handle.finish_reason is not None
