"""`foreword serve`: one model and every prompt of a store, over HTTP."""

from typing import Annotated

import typer

from foreword.cli import options
from foreword.config import ServeConfig


@options.from_configs(ServeConfig)
def command(
    config: ServeConfig,
    model: Annotated[
        str, typer.Argument(help="'smollm2-135m', a Hub id, a directory or a .gguf file")
    ],
    prompts: Annotated[
        str | None, typer.Option(envvar="FOREWORD_PROMPTS", help="directory of the store")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="FOREWORD_API_KEY", help="what clients send; better in the variable"),
    ] = None,
    admin_key: Annotated[
        str | None,
        typer.Option(envvar="FOREWORD_ADMIN_KEY", help="what loading at run time needs"),
    ] = None,
) -> None:
    """Serve a model and the prompts of a store with OpenAI's API, and a page at /.

    Example: foreword serve smollm2-135m --prompts prompts
    """
    try:
        from foreword.server import run
    except ImportError as error:
        from foreword.errors import DependencyError

        raise DependencyError(
            f"serving needs {error.name}; install it: pip install 'foreword[serve]'"
        ) from None
    from foreword.store import Store

    run.log_to_stderr()
    backbone, _ = options.load(model, None)
    store = Store(prompts) if prompts is not None else None
    server = run.Server(backbone, store, config, api_key=api_key, admin_key=admin_key)
    for line in run.warnings_for(config, api_key):
        options.errors.print(f"warning: {line}")
    for name, reason in server.refused.items():
        options.errors.print(f"not served: {name}: {reason}")
    names = ", ".join(served.name for served in server.catalog.all())
    options.errors.print(f"serving {names} at http://{config.host}:{config.port}")
    raise typer.Exit(run.serve(server))
