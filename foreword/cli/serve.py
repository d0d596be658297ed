"""Serve command: `foreword serve`, one model and every prompt of a store over HTTP.

In: a model, a store, options and keys. Out: a server that runs until it is stopped, foreword's own
or vLLM's. Knows no route.
"""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from foreword.cli import early, options
from foreword.cli.console import one_line, texts_as_log
from foreword.config import ServeConfig, check_keys, checked_key, checked_origin
from foreword.errors import DependencyError, ForewordError, InputError, UnsupportedError
from foreword.os_calls import become, held_hangups
from foreword.prompt.store_directory import VARIABLE, store_directory

if TYPE_CHECKING:
    from foreword.backbone import Backbone
    from foreword.engine.serving_engine import ServingEngine
    from foreword.prompt.store import Store

SERVED_BY = ("fastapi", "pydantic", "uvicorn", "prometheus_client", "llguidance")


@options.from_configs(ServeConfig)
def command(
    config: ServeConfig,
    model: Annotated[
        str, typer.Argument(help="'smollm2-135m', a Hub id, a directory or a .gguf file")
    ],
    prompts: Annotated[
        str | None, typer.Option(envvar=VARIABLE, help="directory of the store")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="FOREWORD_API_KEY", help="what clients send; better in the variable"),
    ] = None,
    admin_key: Annotated[
        str | None,
        typer.Option(envvar="FOREWORD_ADMIN_KEY", help="what loading at run time needs"),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="origin whose web pages may use the server from a browser, like "
            "https://app.example; may be given several times"
        ),
    ] = None,
    engine: Annotated[
        Literal["foreword", "llama.cpp", "vllm"],
        typer.Option(
            help="'llama.cpp' for a .gguf file as it is, also a quantized one; 'vllm' for more "
            "requests than one process answers; see docs/export.md and docs/vllm.md"
        ),
    ] = "foreword",
    engine_options: Annotated[
        list[str] | None, typer.Argument(help="options of the other engine itself, after --")
    ] = None,
) -> None:
    """Serve a model and the prompts of a store with OpenAI's API, and a page at /.

    Example: foreword serve smollm2-135m --prompts prompts
    """
    was_hung_up = held_hangups()  # loading takes minutes, and the store may change meanwhile
    _check_admin_key(admin_key, config, engine)
    api_key = checked_key("FOREWORD_API_KEY", _given(api_key, "FOREWORD_API_KEY"))
    admin_key = checked_key("FOREWORD_ADMIN_KEY", _given(admin_key, "FOREWORD_ADMIN_KEY"))
    prompts = store_directory(prompts)
    origins = [checked_origin(one) for one in allow_origin or []]
    store = _store(prompts, is_followed=engine == "vllm")
    early.check(model=model)
    if engine == "vllm":
        if origins:
            raise UnsupportedError(
                "--allow-origin: vLLM has its own, after --: --allowed-origins "
                f"'{json.dumps(origins)}'"
            )
        _become_vllm(config, model, prompts, api_key, engine_options or [])
    check_keys(config, api_key, admin_key)
    if engine_options and engine == "foreword":
        raise InputError(
            f"{' '.join(engine_options)}: only --engine llama.cpp and vllm take further options"
        )
    if engine == "llama.cpp":
        _check_llama(model, engine_options or [])
    _check_extra()
    with _logged(config):
        _serve(
            config, model, store, engine, engine_options or [], (api_key, admin_key), origins,
            was_hung_up,
        )  # fmt: skip


def _check_admin_key(admin_key: str | None, config: ServeConfig, engine: str) -> None:
    """Refuse an admin key that is typed where nothing can be loaded; in the environment it may be
    meant for others.

    Raises:
        InputError: names what is missing. UnsupportedError: the engine loads nothing over HTTP.
    """
    if admin_key is None or admin_key == os.environ.get("FOREWORD_ADMIN_KEY"):
        return
    if engine == "vllm":
        raise UnsupportedError(
            "--admin-key: vLLM loads nothing over HTTP, it follows the store; leave it out"
        )
    if not config.runtime_loading:
        raise InputError(
            "--admin-key is for loading at run time: give --runtime-loading, or leave it out"
        )


@contextlib.contextmanager
def _logged(config: ServeConfig) -> Iterator[None]:
    """Write the server's log; as JSON, also what else is said on standard error.

    Raises:
        Exit: what ended the command has been logged.
    """
    from foreword.server.logs import log_to_stderr

    is_json = config.log_format == "json"
    log = logging.getLogger("foreword.server")
    with log_to_stderr(config.log_format), texts_as_log(options.errors, log if is_json else None):
        try:
            yield
        except ForewordError as error:
            if not is_json:
                raise
            options.errors.print(f"error: {error}")
            raise typer.Exit(error.exit_code) from None


def _serve(
    config: ServeConfig,
    model: str,
    store: "Store | None",
    engine: str,
    words: list[str],
    keys: tuple[str | None, str | None],
    origins: list[str],
    was_hung_up: Callable[[], bool],
) -> None:
    """Listen, load, and serve until the end."""
    from foreword.server.sockets import listen

    with contextlib.ExitStack() as until_end:
        sockets = [until_end.enter_context(one) for one in listen(config.host, config.port)]
        from transformers.utils import logging as own_log

        from foreword.server import tracing
        from foreword.server.server import Server, serve, warnings_for

        if config.log_format == "json":
            own_log.disable_default_handler()  # it writes text
            own_log.enable_propagation()
        traces = tracing.from_environment()
        backbone, runner = _on_engine(engine, model, config, words)
        server = Server(
            backbone, store, config, engine=runner, api_key=keys[0], admin_key=keys[1],
            origins=origins, tracing=traces, was_hung_up=was_hung_up,
        )  # fmt: skip
        for line in warnings_for(config, keys[0]):
            options.errors.print(f"warning: {line}")
        for name, reason in server.refused.items():
            options.errors.print(f"not served: {name}: {one_line(reason)}")
        names = ", ".join(served.name for served in server.catalog.all())
        port = sockets[0].getsockname()[1]
        options.errors.print(f"serving {names} at http://{config.host}:{port}")
        # Threads that still encode for requests that are gone would hold the process up.
        options.end_at_once(serve(server, sockets))


def _on_engine(
    engine: str, model: str, config: ServeConfig, words: list[str]
) -> "tuple[Backbone, ServingEngine | None]":
    """Return a model, and what runs it where that is not the embedded engine."""
    if engine == "foreword":
        return options.load(model, None)[0], None
    from foreword.engine_llama import launch
    from foreword.engine_llama.words import context_options
    from foreword.server.server import limits_of

    chosen = context_options(words)
    with options.errors.status(f"loading {model}") as status:
        limits = limits_of(config, launch.BATCH_TOKENS)
        return launch.launch(model, limits, chosen, status.update)


def _check_extra() -> None:
    """Refuse to serve without the packages of the extra.

    Raises:
        DependencyError: names the first that is missing.
    """
    import importlib.util

    for package in SERVED_BY:
        if importlib.util.find_spec(package) is None:
            raise DependencyError(
                f"serving needs {package}; install it: pip install 'foreword[serve]'"
            )


def _check_llama(model: str, words: list[str]) -> None:
    """Refuse what llama.cpp does not take, before it is loaded."""
    from foreword.engine_llama.words import context_options
    from foreword.loading.hub import check_gguf

    context_options(words)
    check_gguf(model)


def _given(value: str | None, variable: str) -> str | None:
    """Return an option, or its variable, also an empty one, which the parser takes for none."""
    return value if value is not None else os.environ.get(variable)


def _store(prompts: str | None, *, is_followed: bool) -> "Store | None":
    """Return the store to serve, before a model is loaded for it.

    Args:
        prompts: its directory.
        is_followed: whether prompts are served as they come: it may be made later.

    Raises:
        InputError: no such directory, or a file.
    """
    from foreword.prompt.store import Store

    if prompts is None:
        return None
    found = Store(prompts)
    if is_followed and not os.path.lexists(prompts):
        options.errors.print(f"warning: {prompts}: no such directory yet; no prompt is served")
    else:
        found.check()
    return found


def _become_vllm(
    config: ServeConfig, model: str, prompts: str | None, api_key: str | None, extra: list[str]
) -> NoReturn:
    """Replace this process by vLLM's, with the plugin."""
    from foreword.loading import hub
    from foreword.vllm_plugin import launch, versions

    versions.check_vllm()
    with options.errors.status(f"loading {model}") as status:
        directory = hub.resolve(model, progress=status.update)
    found = launch.command(
        directory, model, prompts, config, extra, api_key=api_key, environment=os.environ
    )
    options.errors.print(f"serving {prompts} with vLLM at http://{config.host}:{config.port}")
    become(found.arguments, {**os.environ, **found.variables})
