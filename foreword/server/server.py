"""Server process: from options to a running uvicorn server, and to its exit code.

In: the model, the store, options and keys. Out: 0 after a drain, 1 after the engine has failed.
SIGTERM and SIGINT stop new connections, let running requests finish for a while, then end them with
an error. Does not know what a request asks for.
"""

import asyncio
import functools
import logging
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn

from foreword.backbone import Backbone
from foreword.config import ServeConfig, check_keys, served_name
from foreword.engine.engine import Engine
from foreword.engine.limits import EngineLimits
from foreword.engine.serving_engine import ServingEngine
from foreword.errors import ForewordError, InputError
from foreword.os_calls import at_hangup
from foreword.prompt.store import Store
from foreword.server.app import create_app, max_requests
from foreword.server.catalog import Catalog
from foreword.server.connections import Connection, ConnectionBounds, check_all
from foreword.server.engine_thread import Worker
from foreword.server.middleware import LOOPBACK, AccessMiddleware
from foreword.server.sockets import listen, not_free
from foreword.server.tracing import Tracing

log = logging.getLogger("foreword.server")
HEAD_BYTES = 131_072
BATCH_TOKENS = 65536  # that the embedded engine keeps memory for
LEAVE_SECONDS = 3  # for answers to end once their time is up


def limits_of(config: ServeConfig, batch_tokens: int = BATCH_TOKENS) -> EngineLimits:
    """Return an engine's limits from the options, and its own default of tokens in memory."""
    return EngineLimits(
        max_rows=config.max_batch,
        max_length=config.max_length,
        max_slots=config.batch_tokens or batch_tokens,
        max_waiting=config.max_queue,
        chunk_tokens=config.chunk_tokens,
        max_state_bytes=config.cache_bytes,
        max_media_bytes=config.media_bytes,
    )


class Server(uvicorn.Server):
    """One model's server.

    Args:
        backbone: the model, with a tokenizer.
        store: where prompts lie, if any.
        config: the options.
        engine: what runs requests; default: the embedded engine on the backbone.
        api_key: what clients must send.
        admin_key: what loading at run time needs.
        origins: of web pages that may use the server from a browser.
        tracing: exports a span for each call.
        was_hung_up: whether a SIGHUP came before the server could take one.

    Raises:
        InputError: options that do not go together, or a name that no request could name.
    """

    def __init__(
        self,
        backbone: Backbone,
        store: Store | None,
        config: ServeConfig,
        *,
        engine: ServingEngine | None = None,
        api_key: str | None = None,
        admin_key: str | None = None,
        origins: Sequence[str] = (),
        tracing: Tracing | None = None,
        was_hung_up: Callable[[], bool] = lambda: False,
    ) -> None:
        if backbone.tokenizer is None:
            raise InputError("serving text needs a tokenizer; load a model that has one")
        check_keys(config, api_key, admin_key)
        name = served_name(config, backbone.name)
        self.worker = Worker(engine or Engine(backbone, limits_of(config)))
        self.catalog = Catalog(backbone, store, name)
        self.refused = self.catalog.load_all()
        app = create_app(
            backbone,
            self.catalog,
            self.worker,
            config,
            api_key=api_key,
            admin_key=admin_key,
            origins=origins,
            on_death=self.end,
            tracing=tracing,
        )
        self.options = config
        self._was_hung_up = was_hung_up
        self._reloading = ThreadPoolExecutor(1, "reload")  # one at a time
        super().__init__(_uvicorn_config(app, config, self._look_at_connections))

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve at sockets, by default those that `listen` makes, until the end.

        Raises:
            InputError: the address cannot be listened at.
        """
        sockets = sockets or listen(self.options.host, self.options.port)
        try:
            super().run(sockets)
        except OSError as error:
            if self.started:
                raise
            raise not_free(self.options.host, self.options.port, error) from error
        finally:
            for one in sockets:
                one.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and read the store again at each SIGHUP, where the system has that signal, and if
        one came before.
        """
        await super().startup(sockets)
        if threading.current_thread() is threading.main_thread():
            loop = asyncio.get_running_loop()
            at_hangup(loop, lambda: loop.run_in_executor(self._reloading, self.reload))
            if self._was_hung_up():
                loop.run_in_executor(self._reloading, self.reload)

    def reload(self) -> None:
        """Read the store again, and log what changed; requests under way keep their versions."""
        try:
            if self.catalog.store is not None:
                self.catalog.store.check()  # a directory that is away is no empty store
            said = self.catalog.reload()
        except (ForewordError, OSError) as error:
            log.error("the store was not read again: %s", error)
            return
        for name, what in said.items():
            log.info("%s: %s", name, what)
        log.info("the store was read again; %d names changed", len(said))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let running requests end; those that have not once the time is up end with an error."""
        loop = asyncio.get_running_loop()
        end = loop.call_later(
            self.options.drain_seconds, lambda: loop.run_in_executor(None, self.worker.stop)
        )
        try:
            await super().shutdown(sockets)
        finally:
            end.cancel()
        if self.force_exit:  # a second Ctrl-C, after which uvicorn leaves the application running
            await self.lifespan.shutdown()

    async def _look_at_connections(self) -> None:
        check_all(self.server_state.connections, asyncio.get_running_loop().time())

    def end(self) -> None:
        """Stop as after SIGTERM."""
        self.should_exit = True

    @property
    def address(self) -> str:
        """Where it listens, once it has started."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://{host}:{port}"


def serve(server: Server, sockets: list[socket.socket] | None = None) -> int:
    """Serve until a signal or the engine's death; return the exit code.

    Raises:
        InputError: the address cannot be listened at.
    """
    # uvicorn raises the signal again once it has stopped; ignored, a drained server exits with 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run(sockets)
    return 1 if server.worker.error is not None or not server.started else 0


def warnings_for(config: ServeConfig, api_key: str | None) -> list[str]:
    """Return warnings to print before the server starts."""
    if config.host not in LOOPBACK and not api_key:
        return [f"anybody who reaches {config.host}:{config.port} can use this server: set a key"]
    return []


def _uvicorn_config(app: AccessMiddleware, config: ServeConfig, each_second: Any) -> uvicorn.Config:
    # Beside a body: its request's head, and how it is cut into chunks.
    request_bytes = config.max_body_bytes + config.max_body_bytes // 16 + HEAD_BYTES
    bounds = ConnectionBounds(config.client_seconds, request_bytes, max_requests(config))
    options: dict[str, Any] = {
        "host": config.host,
        "port": config.port,
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "lifespan": "on",
        "http": functools.partial(Connection, bounds),
        "ws": "none",
        # The requests that are left end by themselves once the time is up; this is for the rest.
        "timeout_graceful_shutdown": round(config.drain_seconds) + LEAVE_SECONDS,
        "callback_notify": each_second,
        "timeout_notify": 1,
        "backlog": 512,
    }
    return uvicorn.Config(app, **options)
