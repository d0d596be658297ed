"""Server process: from options to a running uvicorn server, and to its exit code.

In: the model, the store, options and keys. Out: 0 after a drain, 1 after the engine has failed.
SIGTERM and SIGINT stop new connections, let running requests finish for a while, then cancel them.
Does not know what a request asks for.
"""

import logging
import signal
import sys
from typing import Any

import uvicorn

from foreword.backbone import Backbone
from foreword.config import ServeConfig
from foreword.engine.engine import Engine
from foreword.engine.limits import EngineLimits
from foreword.errors import InputError
from foreword.prompt.store import Store
from foreword.server.app import create_app
from foreword.server.catalog import Catalog
from foreword.server.engine_thread import Worker
from foreword.server.middleware import LOOPBACK, AccessMiddleware

log = logging.getLogger("foreword.server")


def limits_of(config: ServeConfig) -> EngineLimits:
    """Return the engine's limits from the options."""
    return EngineLimits(
        max_rows=config.max_batch,
        max_length=config.max_length,
        max_slots=config.batch_tokens,
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
        api_key: what clients must send.
        admin_key: what loading at run time needs.

    Raises:
        InputError: options that do not go together.
    """

    def __init__(
        self,
        backbone: Backbone,
        store: Store | None,
        config: ServeConfig,
        *,
        api_key: str | None = None,
        admin_key: str | None = None,
    ) -> None:
        if backbone.tokenizer is None:
            raise InputError("serving text needs a tokenizer; load a model that has one")
        if config.runtime_loading and not admin_key:
            raise InputError("--runtime-loading needs an admin key: set FOREWORD_ADMIN_KEY")
        self.worker = Worker(Engine(backbone, limits_of(config)))
        self.catalog = Catalog(backbone, store, config.served_name or backbone.name)
        self.refused = self.catalog.load_all()
        app = create_app(
            backbone,
            self.catalog,
            self.worker,
            config,
            api_key=api_key,
            admin_key=admin_key,
            on_death=self.end,
        )
        super().__init__(_uvicorn_config(app, config))

    def end(self) -> None:
        """Stop as after SIGTERM."""
        self.should_exit = True

    @property
    def address(self) -> str:
        """Where it listens, once it has started."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://{host}:{port}"


def serve(server: Server) -> int:
    """Serve until a signal or the engine's death; return the exit code."""
    # uvicorn raises the signal again once it has stopped; ignored, a drained server exits with 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run()
    return 1 if server.worker.error is not None or not server.started else 0


def log_to_stderr() -> None:
    """Write foreword's log lines, which are JSON or sentences without users' text."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    for name in ("foreword", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        logger.propagate = False


def warnings_for(config: ServeConfig, api_key: str | None) -> list[str]:
    """Return warnings to print before the server starts."""
    if config.host not in LOOPBACK and not api_key:
        return [f"anybody who reaches {config.host}:{config.port} can use this server: set a key"]
    return []


def _uvicorn_config(app: AccessMiddleware, config: ServeConfig) -> uvicorn.Config:
    options: dict[str, Any] = {
        "host": config.host,
        "port": config.port,
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "lifespan": "on",
        "http": "h11",
        "ws": "none",
        "timeout_graceful_shutdown": max(1, round(config.drain_seconds)),
        # Streams wait in the queue with their connections open; past these, 503 at once.
        "limit_concurrency": 4 * (config.max_queue + config.max_batch),
        "backlog": 512,
    }
    return uvicorn.Config(app, **options)
