"""Targets: what an export refuses of its file's name, its base's name and a prompt's form.

In: names and forms. Out: nothing, or the error. Imports no torch, so that a command can say so
before anything slow is imported.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from foreword.config import Form, is_http
from foreword.errors import InputError
from foreword.prompt.store import check_free, check_name

MLX_ENDING = ".safetensors"


def check_new(output: str | os.PathLike[str]) -> None:
    """Refuse to write over what is there.

    Raises:
        InputError: something is.
    """
    if os.path.lexists(output):
        raise InputError(f"{Path(output)} is there already: choose another --output")


def state_files(output: str | os.PathLike[str]) -> tuple[Path, Path, Path]:
    """Return the files of a llama.cpp state: itself, what it belongs to, its chat template."""
    path = Path(output)
    return path, path.with_name(path.name + ".json"), path.with_name(path.name + ".jinja")


def check_state(output: str | os.PathLike[str]) -> None:
    """Refuse to write a llama.cpp state over what is there.

    Raises:
        InputError: something is, under its name or one of those beside it.
    """
    for path in state_files(output):
        check_new(path)


def check_mlx(output: str | os.PathLike[str]) -> None:
    """Refuse the name of a prompt cache that mlx-lm would not read, or that is taken.

    Raises:
        InputError: says how it must end, or what is there.
    """
    if Path(output).suffix != MLX_ENDING:
        raise InputError(
            f"{Path(output)}: mlx-lm reads a prompt cache by its name; end it {MLX_ENDING}"
        )
    check_new(output)


def check_forms(prompts: Mapping[str, Form]) -> None:
    """Refuse prompts that are no rows of a vocabulary.

    Raises:
        InputError: a name that is none, or keys and values.
    """
    if not prompts:
        raise InputError("no prompt is named: give --prompt")
    for name, form in prompts.items():
        check_free(check_name(name))
        if form != "embeddings":
            raise InputError(
                f"{name} holds keys and values, which no token of a vocabulary can stand for; "
                "learn embeddings from it: foreword distill --context PROMPT --form embeddings"
            )


def check_server(server: str | None) -> None:
    """Refuse an address that is none.

    Raises:
        InputError: says what is expected.
    """
    if server is not None and not (is_http(server) and "@" not in server):
        raise InputError(f"--server: {server!r:.200} is no address; expected http://HOST:PORT")
