"""The scheduler of continuous batching: it decides, and the engine does what it says.

In: requests, from any thread; the requests that run. Out: which request is admitted next, from what
it starts, and which prefill next and how far. What the model cannot take, or there is no room for,
is refused here. First come, first served, in two queues: for a place in the batch, and for a turn
alone. Holds no tensor.
"""

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from foreword.engine import unbatched
from foreword.engine.limits import EngineLimits
from foreword.engine.prefix_cache import CacheEntry, PrefixCache
from foreword.engine.request import Handle, Request
from foreword.engine.request_state import RequestState
from foreword.errors import BusyError, InputError
from foreword.model import checks
from foreword.model.capabilities import Capabilities


class Start(NamedTuple):
    """What a request starts from: the KV cache of another request, an entry of the prefix cache, or
    neither; and how many of its ids that holds.
    """

    other: RequestState | None
    entry: CacheEntry | None
    num_shared: int


class Scheduler:
    """Decides which requests run, and which of them prefill next.

    Args:
        capabilities: of the model.
        limits: how much to take on.

    Attributes:
        max_length: tokens of one request, virtual, given and new ones together.
        prefilling: the requests that prefill, the one whose turn it is first.
    """

    def __init__(self, capabilities: Capabilities, limits: EngineLimits) -> None:
        self.capabilities, self.limits = capabilities, limits
        known = (limits.max_length, capabilities.context_length, limits.max_slots)
        self.max_length = min(length for length in known if length is not None)
        self.prefilling: deque[RequestState] = deque()
        self._waiting: deque[Handle] = deque()
        self._alone: deque[Handle] = deque()
        self._lock = threading.Lock()

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a place in the batch, or for their turn alone."""
        return len(self._waiting) + len(self._alone)

    @property
    def is_batch_awaited(self) -> bool:
        """Whether a request waits for a place in the batch."""
        return bool(self._waiting)

    # Waiting: from any thread --------------------------------------------------------------------

    def add(self, requests: Sequence[Request]) -> list[Handle]:
        """Take all requests on, or none.

        Raises:
            InputError: ids that the model does not have, or more tokens than it takes.
            BusyError: too many requests wait, or too large ones.
        """
        for request in requests:
            self.check(request)
        if len(requests) > self.limits.max_waiting:
            raise InputError(
                f"{len(requests)} answers in one call, of {self.limits.max_waiting} at most that "
                "may wait: ask for fewer"
            )
        call = object()
        handles = [Handle(request, call) for request in requests]
        with self._lock:
            if self.num_waiting + len(handles) > self.limits.max_waiting:
                raise BusyError(
                    f"{self.num_waiting} requests wait already, of {self.limits.max_waiting} at "
                    "most; try again later"
                )
            if self._media_bytes(requests) > self.limits.max_media_bytes:
                raise BusyError("requests with images or sounds wait already; try again later")
            alone = [unbatched.is_needed(self.capabilities, handle) for handle in handles]
            for handle, is_alone in zip(handles, alone, strict=True):
                (self._alone if is_alone else self._waiting).append(handle)
        return handles

    def check(self, request: Request) -> None:
        """Refuse a request that cannot be served.

        Raises:
            InputError: names what is wrong.
        """
        size = self.capabilities.vocab_size
        if not request.ids:
            raise InputError("the prompt is empty: expected at least one id")
        if not 0 <= min(request.ids) <= max(request.ids) < size:
            raise InputError(f"expected ids from 0 to {size - 1}")
        self._check_media(request)
        self._check_reports(request)
        if request.sampling.logit_bias and not (
            0 <= min(request.sampling.logit_bias) <= max(request.sampling.logit_bias) < size
        ):
            raise InputError(f"logit_bias: expected ids from 0 to {size - 1}")
        virtual = request.prompt.num_virtual_tokens if request.prompt else 0
        total = virtual + len(request.ids) + request.max_new_tokens
        if total > self.max_length or request.max_new_tokens < 0:
            raise InputError(too_long(request, virtual, self.max_length))
        real = len(request.ids) + request.max_new_tokens
        checks.check_length(self.capabilities, real, virtual)

    def _check_reports(self, request: Request) -> None:
        first, most = request.logprobs_from, request.num_prompt_logprobs
        if first < 1:
            raise InputError(
                f"logprobs_from: expected at least 1, got {first}: nothing stands before the first "
                "id that tells how likely it is"
            )
        for name, number in (
            ("num_prompt_logprobs", most),
            ("num_logprobs", request.sampling.num_logprobs),
        ):
            if number is not None and number < 0:
                raise InputError(f"{name}: expected 0 or more, got {number}")

    def _check_media(self, request: Request) -> None:
        if request.media is not None:
            if request.media.num_bytes > self.limits.max_media_bytes:
                raise InputError(
                    f"the images or sounds take {request.media.num_bytes} bytes; at most "
                    f"{self.limits.max_media_bytes} are served"
                )
            return
        for modality in self.capabilities.modalities:
            if modality.token_id in request.ids:
                raise InputError(
                    f"id {modality.token_id} stands for an {modality.name}, and there is none; "
                    "leave it out of the text"
                )

    def _media_bytes(self, requests: Sequence[Request]) -> int:
        """Return the size of media and of all that waits; several answers may share one."""
        ours = [request.media for request in requests]
        queues = (*self._alone, *self._waiting)
        waiting = [handle.request.media for handle in queues] if any(ours) else []
        return sum({id(one): one.num_bytes for one in (*ours, *waiting) if one}.values())

    def drop_cancelled(self) -> None:
        """End the requests that were cancelled while they waited."""
        with self._lock:
            cancelled = []
            for queue in (self._waiting, self._alone):
                found = [handle for handle in queue if handle.is_cancelled]
                for handle in found:
                    queue.remove(handle)
                cancelled += found
        for handle in cancelled:
            handle.end("cancelled")

    # Admission -----------------------------------------------------------------------------------

    def next_admitted(self, running: Sequence[RequestState]) -> Handle | None:
        """Take the first request that waits for a place beside those that run, if there is one."""
        with self._lock:
            if not self._waiting or not self.has_room_for(self._waiting[0], running):
                return None
            return self._waiting.popleft()

    def next_alone(self) -> Handle | None:
        """Take the first of those that wait for their turn alone."""
        with self._lock:
            return self._alone.popleft() if self._alone else None

    def has_room_for(self, handle: Handle, running: Sequence[RequestState]) -> bool:
        if not running:
            return True
        num_rows, capacity = len(running) + 1, capacity_of(handle, running)
        return num_rows <= self.limits.max_rows and num_rows * capacity <= self.limits.max_slots

    def duplicate_of(
        self, state: RequestState, running: Sequence[RequestState]
    ) -> RequestState | None:
        """Return a request that prefills the very same, for this one to wait for."""
        shared = self._shared_with(state, running)
        found = (one for one in shared if one in self.prefilling and not one.is_over)
        return next(filter(state.is_duplicate_of, found), None)

    def start_of(
        self, state: RequestState, running: Sequence[RequestState], cache: PrefixCache
    ) -> Start:
        """Return what saves a request the most of its prefill."""
        usable = state.num_usable(len(state.ids))
        # A recurrent state is of all that has run: it is used as a whole or not at all.
        is_whole = self.capabilities.is_recurrent
        found = cache.find(state.content_hash, state.ids[:usable] if is_whole else state.ids)
        shared = self._shared_with(state, running)
        if is_whole:
            shared = [one for one in shared if usable >= one.num_computed == state.num_shared(one)]
        other = max(shared, key=state.num_shared, default=state)
        if (num_shared := state.num_shared(other)) > (found[1] if found else 0):
            return Start(other, None, num_shared)
        return Start(None, *found) if found else Start(None, None, 0)

    def _shared_with(
        self, state: RequestState, running: Sequence[RequestState]
    ) -> Sequence[RequestState]:
        """Return the requests whose prefill may save this one its own: those of its own call only,
        where nothing is to be kept, since others could tell by the time to a first token what was
        asked.
        """
        live = [one for one in running if not one.is_over]  # what failed may be half written
        if self.limits.max_state_bytes:
            return live
        return [one for one in live if one.handle.call is state.handle.call]

    # Prefill -------------------------------------------------------------------------------------

    def next_prefill(self) -> tuple[list[RequestState], int]:
        """Choose requests that need chunks of similar length, the one whose turn it is among them,
        and the length of a chunk that brings the most of them to their end.
        """
        turns = [state for state in self.prefilling if not state.is_over]
        if not turns:
            return [], 0
        budget = self.limits.chunk_tokens
        least = min(turns[0].num_pending, budget)

        def near(limit: int) -> list[RequestState]:
            states = [one for one in turns if 2 * min(one.num_pending, limit) >= limit]
            states.sort(key=lambda one: one.num_pending > limit and one is not turns[0])
            return states[: max(1, budget // limit)]

        def num_ending(limit: int) -> int:
            return sum(one.num_pending <= limit for one in near(limit))

        most = min(2 * least, budget)
        lengths = {one.num_pending for one in turns if least < one.num_pending <= most}
        limit = max([least, *sorted(lengths)], key=num_ending)
        return near(limit), limit

    def took_turn(self, states: Iterable[RequestState]) -> None:
        """Let requests that have prefilled a chunk take their turn again behind all others, or
        leave where nothing is pending.
        """
        for state in states:
            self.prefilling.remove(state)
            if state.num_pending and not state.is_over:
                self.prefilling.append(state)

    def leave(self, state: RequestState) -> None:
        """Forget a request that has ended."""
        if state in self.prefilling:
            self.prefilling.remove(state)


def capacity_of(handle: Handle, running: Sequence[RequestState]) -> int:
    """Return the slots of a row that hold the longest of a request and those that run."""
    return max(handle.num_tokens, *(state.handle.num_tokens for state in running), 0)


def too_long(request: Request, virtual: int, max_length: int) -> str:
    """Say that a request's tokens, `virtual` ones and new ones are more than are served."""
    total = virtual + len(request.ids) + request.max_new_tokens
    return (
        f"{len(request.ids)} tokens, {virtual} virtual ones and {request.max_new_tokens} new ones "
        f"make {total}; at most {max_length} are served"
    )
