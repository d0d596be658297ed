"""Connections: HTTP/1.1 on uvicorn, with a bound on how long a client may be silent or slow.

In: bytes of clients. Out: requests to the application. A client that does not send its request, or
does not take its answer, loses its connection; where there are too many, the one that has been
silent longest makes room. What is no HTTP is refused in OpenAI's format. Knows no route.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from foreword.server.middleware import error_body

PROGRESS_BYTES = 65_536  # of an answer, that a client takes within its time
GRACE_SECONDS = 5.0  # for the application to refuse a slow body itself


@dataclass(frozen=True)
class ConnectionBounds:
    """What one client may take.

    Attributes:
        seconds: to send a request whole, and to take each 64 KiB of an answer.
        request_bytes: as they come: a body in chunks of one byte each takes six times its size.
        max_connections: at once; past these, the one silent longest is closed.
    """

    seconds: float
    request_bytes: int
    max_connections: int


class Connection(H11Protocol):
    """One connection.

    Args:
        bounds: what its client may take.
        options: uvicorn's own.
    """

    def __init__(self, bounds: ConnectionBounds, **options: Any) -> None:
        super().__init__(**options)
        self.access_log = False  # uvicorn's own line holds all that a client sent
        self._bounds = bounds
        self._receives_since: float | None = None
        self._num_received = 0
        self._sends_since: tuple[float, int] | None = None  # when, and how much was left then

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request, and make room where there is none."""
        super().connection_made(transport)
        self._note_receiving()
        if len(self.connections) > self._bounds.max_connections:
            others = (one for one in self.connections if isinstance(one, Connection))
            silent = [one for one in others if one is not self and one.is_silent]
            if silent:
                min(silent, key=lambda one: one._receives_since or 0.0).drop()

    def data_received(self, data: bytes) -> None:
        """Take what a client sends."""
        self._num_received += len(data)
        if self._num_received > self._bounds.request_bytes:
            self._refuse(413, "the request is larger than its body may be")
            return
        super().data_received(data)
        self._note_receiving()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        super().on_response_complete()
        self._note_receiving()

    def resume_writing(self) -> None:
        """Note that the client has taken something."""
        self._sends_since = None
        super().resume_writing()

    @property
    def is_silent(self) -> bool:
        """Whether no whole head of a request has come, and the connection is not being dropped."""
        return self.conn.their_state is h11.IDLE and self._receives_since is not None

    def drop(self) -> None:
        """Close the connection, and lose what its client has not taken."""
        self._receives_since = None
        self.transport.abort()

    def check(self, now: float) -> None:
        """Close the connection where its client is too slow; `now` is the event loop's time."""
        left = self.transport.get_write_buffer_size()
        since, before = self._sends_since or (now, left + PROGRESS_BYTES)
        if left == 0:
            self._sends_since = None
        elif left <= before - PROGRESS_BYTES:
            self._sends_since = now, left
        elif now - since > self._bounds.seconds:
            self.drop()
            return
        if self._receives_since is not None and not self.transport.is_closing():
            self._check_receiving(now - self._receives_since)

    def _check_receiving(self, seconds: float) -> None:
        if seconds <= self._bounds.seconds:
            return
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._refuse(408, "the request did not come in time")
        elif self.conn.their_state is h11.IDLE or self.cycle.response_complete:
            self.transport.close()
        elif seconds > self._bounds.seconds + GRACE_SECONDS:
            self.drop()

    def _note_receiving(self) -> None:
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._receives_since, self._num_received = None, 0
        elif self._receives_since is None:
            self._receives_since = self.loop.time()

    # Answers without the application ------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(400, "this is no HTTP request")

    def _refuse(self, status: int, message: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error_body(message, status)).encode()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            reason = STATUS_PHRASES[status]
            for event in (
                h11.Response(status_code=status, headers=headers, reason=reason),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: another protocol is not spoken, and the request is answered as it is."""


def check_all(connections: Iterable[Any], now: float) -> None:
    """Close every connection whose client is too slow."""
    for connection in list(connections):
        if isinstance(connection, Connection):
            connection.check(now)
