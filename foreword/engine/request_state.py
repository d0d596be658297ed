"""A request's place in the batch: what of it has run, and what is pending.

In: a handle. Out: numbers that scheduler and engine go by. Knows nothing of the model.
"""

from typing import Literal

from foreword.engine.request import Handle
from foreword.engine.sampling import Sampler

RequestStatus = Literal["prefilling", "decoding", "finished"]


class RequestState:
    """One running request.

    Attributes:
        index: its row of the KV cache.
        ids: the given ones, then the new ones.
        status: "prefilling" until all given ids have run, then "decoding"; "finished" once its row
            is free. A request that waits has no state yet.
        num_computed: ids whose keys and values are in the KV cache.
        num_finite: those of them that are known to have given finite logits.
        is_filled: whether its row holds what has run, virtual tokens included.
        shift: rotary position of its next tokens minus their slot, which images change.
        duplicates: requests of the same prompt and ids that wait for this one to prefill them.
    """

    def __init__(self, handle: Handle, index: int) -> None:
        request = handle.request
        self.handle, self.index = handle, index
        self.ids = list(request.ids)
        self.num_virtual = request.prompt.num_virtual_tokens if request.prompt else 0
        self.content_hash = request.prompt.content_hash if request.prompt else None
        self.status: RequestStatus = "prefilling"
        self.num_computed = self.num_finite = 0
        self.is_filled = False
        self.shift = 0
        self.duplicates: list[RequestState] = []
        self.sampler = Sampler(request.sampling, request.ids)

    @property
    def num_cached(self) -> int:
        """Tokens in its row of the KV cache, virtual ones included."""
        return self.num_virtual + self.num_computed

    @property
    def num_pending(self) -> int:
        """Tokens that have to run before the next choice."""
        return len(self.ids) - self.num_computed

    @property
    def is_over(self) -> bool:
        """Whether its request has ended, or should."""
        return self.handle.is_cancelled or self.handle.finish_reason is not None

    def num_usable(self, num_known: int) -> int:
        """Return how many of so many known leading ids need not run: all but the last, whose logits
        choose the first new one, and fewer where log-probabilities of given ids are asked for.
        """
        request, most = self.handle.request, len(self.ids) - 1
        if request.num_prompt_logprobs is not None:
            most = min(most, request.logprobs_from - 1)
        return min(num_known, most)

    def begin_at(self, num_computed: int) -> None:
        """Take so many leading ids as computed: their row holds them."""
        self._take_as_computed(num_computed)

    def begin_after_media(self, num_computed: int, shift: int) -> None:
        """Take so many leading ids, media among them, as computed for this request alone."""
        self._take_as_computed(num_computed)
        self.handle.num_reused, self.shift = 0, shift

    def follow(self, other: "RequestState") -> None:
        """Take everything as computed by a duplicate."""
        self._take_as_computed(other.num_computed)
        self.shift = other.shift
        self.handle.prompt_logprobs = list(other.handle.prompt_logprobs)

    def _take_as_computed(self, num_computed: int) -> None:
        self.num_computed = self.num_finite = self.handle.num_reused = num_computed
        self.is_filled = True

    def is_duplicate_of(self, other: "RequestState") -> bool:
        """Whether both prefill the same, and report the same of it."""
        ours, theirs = self.handle.request, other.handle.request
        return (
            self.content_hash == other.content_hash
            and ours.num_prompt_logprobs == theirs.num_prompt_logprobs
            and ours.logprobs_from == theirs.logprobs_from
            and ours.ids == theirs.ids
            and ours.media is theirs.media
        )

    def num_shared(self, other: "RequestState") -> int:
        """Return how many leading ids another request has computed, behind the same prompt; none
        where media stand among them.
        """
        if self.content_hash != other.content_hash or other.handle.request.media is not None:
            return 0
        length = min(len(self.ids), other.num_finite)
        pairs = zip(self.ids[:length], other.ids, strict=False)
        return next((index for index, (one, two) in enumerate(pairs) if one != two), length)
