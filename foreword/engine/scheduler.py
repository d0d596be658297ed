"""Requests that wait: which are taken on, and in which order they leave.

In: requests, from any thread. Out: their handles, first come, first served: for a row in the batch,
or for their turn alone. What the model could not read, or there is no room for, is refused here.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence

from foreword.engine import unbatched
from foreword.engine.limits import EngineLimits
from foreword.engine.request import Handle, Request
from foreword.errors import BusyError, InputError
from foreword.model import checks
from foreword.model.capabilities import Capabilities


class Waiting:
    """Two queues in order: for a row, and for a turn alone.

    Args:
        capabilities: of the model.
        limits: how much to take on.

    Attributes:
        max_length: tokens of one request, virtual, given and new ones together.
    """

    def __init__(self, capabilities: Capabilities, limits: EngineLimits) -> None:
        self.capabilities, self.limits = capabilities, limits
        known = (limits.max_length, capabilities.context_length, limits.max_slots)
        self.max_length = min(length for length in known if length is not None)
        self._for_row: deque[Handle] = deque()
        self._alone: deque[Handle] = deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._for_row) + len(self._alone)

    @property
    def is_row_awaited(self) -> bool:
        """Whether a request waits for a row."""
        return bool(self._for_row)

    def add(self, requests: Sequence[Request]) -> list[Handle]:
        """Take all requests on, or none.

        Raises:
            InputError: ids that the model does not have, or more tokens than it takes.
            BusyError: too many requests wait, or too large ones.
        """
        for request in requests:
            self.check(request)
        call = object()
        handles = [Handle(request, call) for request in requests]
        with self._lock:
            if len(self) + len(handles) > self.limits.max_waiting:
                raise BusyError(
                    f"{len(self)} requests wait already, of {self.limits.max_waiting} at most; "
                    "try again later"
                )
            if self._media_bytes(requests) > self.limits.max_media_bytes:
                raise BusyError("requests with images or sounds wait already; try again later")
            for handle in handles:
                is_alone = unbatched.is_needed(self.capabilities, handle)
                (self._alone if is_alone else self._for_row).append(handle)
        return handles

    def next_for_row(self, has_room: Callable[[Handle], bool]) -> Handle | None:
        """Take the first of those that wait for a row, if there is room for it."""
        with self._lock:
            if not self._for_row or not has_room(self._for_row[0]):
                return None
            return self._for_row.popleft()

    def next_alone(self) -> Handle | None:
        """Take the first of those that wait for their turn alone."""
        with self._lock:
            return self._alone.popleft() if self._alone else None

    def drop_cancelled(self) -> None:
        """End the requests that were cancelled while they waited."""
        with self._lock:
            cancelled = []
            for queue in (self._for_row, self._alone):
                found = [handle for handle in queue if handle.is_cancelled]
                for handle in found:
                    queue.remove(handle)
                cancelled += found
        for handle in cancelled:
            handle.end("cancelled")

    def check(self, request: Request) -> None:
        """Refuse a request that cannot be served.

        Raises:
            InputError: names what is wrong.
        """
        size = self.capabilities.vocab_size
        if not request.ids or not 0 <= min(request.ids) <= max(request.ids) < size:
            raise InputError(f"expected at least one id, each from 0 to {size - 1}")
        self._check_media(request)
        if request.sampling.logit_bias and not (
            0 <= min(request.sampling.logit_bias) <= max(request.sampling.logit_bias) < size
        ):
            raise InputError(f"logit_bias: expected ids from 0 to {size - 1}")
        virtual = request.prompt.num_virtual_tokens if request.prompt else 0
        total = virtual + len(request.ids) + request.max_new_tokens
        if total > self.max_length or request.max_new_tokens < 0:
            raise InputError(
                f"{len(request.ids)} tokens, {virtual} virtual ones and {request.max_new_tokens} "
                f"new ones make {total}; at most {self.max_length} are served"
            )
        real = len(request.ids) + request.max_new_tokens
        checks.check_length(self.capabilities, real, virtual)

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
        waiting = [handle.request.media for handle in self._alone] if any(ours) else []
        return sum({id(one): one.num_bytes for one in (*ours, *waiting) if one}.values())
