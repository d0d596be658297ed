"""A request's place in the batch, and how many there may be.

In: a handle. Out: a row that knows what has been read and what is read next. Knows nothing of the
model.
"""

from foreword.engine.request import Handle
from foreword.engine.sampling import Sampler


class Row:
    """A request's place in the batch: what it has read and what it reads next.

    Of what it has read, `num_sound` tokens are known to have given finite logits.

    Attributes:
        is_filled: whether its slots hold what it has read, virtual tokens included.
        twins: rows of the same prompt and ids that wait for this one to read them.
    """

    def __init__(self, handle: Handle, index: int) -> None:
        request = handle.request
        self.handle, self.index = handle, index
        self.ids = list(request.ids)
        self.num_virtual = request.prompt.num_virtual_tokens if request.prompt else 0
        self.content_hash = request.prompt.content_hash if request.prompt else None
        self.num_read = self.num_sound = 0
        self.is_filled = False
        self.twins: list[Row] = []
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

    def begin_at(self, num_known: int) -> None:
        """Take so many leading ids as read, but for the last, whose logits choose the first new
        one, and for those whose log-probabilities are asked for.
        """
        asks = self.handle.request.num_prompt_logprobs is not None
        self._take_as_read(0 if asks else min(num_known, len(self.ids) - 1))

    def follow(self, twin: "Row") -> None:
        """Take everything as read by a twin."""
        self._take_as_read(twin.num_read)
        self.handle.prompt_logprobs = list(twin.handle.prompt_logprobs)

    def _take_as_read(self, num_read: int) -> None:
        self.num_read = self.num_sound = self.handle.num_reused = num_read
        self.is_filled = True

    def is_twin_of(self, other: "Row") -> bool:
        """Whether both read the same, and report the same of it."""
        ours, theirs = self.handle.request, other.handle.request
        return (
            self.content_hash == other.content_hash
            and ours.num_prompt_logprobs == theirs.num_prompt_logprobs
            and ours.ids == theirs.ids
        )

    def num_shared(self, other: "Row") -> int:
        """Return how many leading ids another row has read soundly, behind the same prompt."""
        if self.content_hash != other.content_hash:
            return 0
        length = min(len(self.ids), other.num_sound)
        pairs = zip(self.ids[:length], other.ids, strict=False)
        return next((index for index, (one, two) in enumerate(pairs) if one != two), length)
