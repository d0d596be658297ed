"""Launch command: `foreword serve --engine vllm` as vLLM's own command with the right options.

In: the model, the store, options and keys. Out: arguments and variables of a process. An option
that vLLM has no counterpart of is refused, never dropped. Imports neither vLLM nor torch.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from foreword.config import ServeConfig, served_name
from foreword.errors import InputError, UnsupportedError
from foreword.vllm_plugin import CONNECTOR, NAME, settings

# Each option that vLLM has too, and its name there.
COUNTERPARTS = {
    "host": "--host",
    "port": "--port",
    "served_name": "--served-model-name",
    "max_batch": "--max-num-seqs",
    "max_queue": "--max-num-queued-reqs",
    "max_length": "--max-model-len",
    "drain_seconds": "--shutdown-timeout",
}
GRAMMARS = "--structured-outputs-config"
ALWAYS = ("host", "port", "served_name", "max_queue", "drain_seconds")


@dataclass(frozen=True)
class LaunchCommand:
    """A process to run.

    Attributes:
        arguments: the program first.
        variables: what its environment needs beside this one's.
    """

    arguments: list[str]
    variables: dict[str, str]


def command(
    model: str,
    name: str,
    prompts: str | None,
    config: ServeConfig,
    extra: Sequence[str] = (),
    *,
    api_key: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> LaunchCommand:
    """Return vLLM's command.

    Args:
        model: a directory or a Hub id.
        name: how the bare model is called where `--served-name` does not say.
        prompts: the store.
        config: the options; where they are the defaults, vLLM's own are kept but for a few.
        extra: vLLM's own options.
        api_key: what clients send.
        environment: this process's.

    Raises:
        InputError: no store. UnsupportedError: an option that vLLM has no counterpart of.
    """
    if prompts is None:
        raise InputError("--engine vllm serves a store: give --prompts DIRECTORY")
    changed = {
        one.name: value
        for one in fields(ServeConfig)
        if (value := getattr(config, one.name)) != one.default or one.name in ALWAYS
    }
    if unknown := [option for option in changed if option not in COUNTERPARTS]:
        options = ", ".join(f"--{option.replace('_', '-')}" for option in unknown)
        raise UnsupportedError(
            f"{options}: vLLM has no such option; leave it out, or serve with foreword's own engine"
        )
    if not _has_option(extra, COUNTERPARTS["served_name"]):
        name = served_name(config, name)
    changed["served_name"] = name
    changed["drain_seconds"] = round(config.drain_seconds)
    given = [
        word
        for option, value in changed.items()
        for word in (COUNTERPARTS[option], str(value))
        if not _has_option(extra, COUNTERPARTS[option])
    ]
    arguments = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model, *given]
    arguments += ["--enable-prompt-embeds", "--enable-prompt-tokens-details"]
    if not _has_option(extra, "--kv-transfer-config"):
        transfer = {"kv_connector": CONNECTOR, "kv_role": "kv_both"}
        arguments += ["--kv-transfer-config", json.dumps(transfer)]
    if not any(word.startswith(GRAMMARS) for word in extra):  # also --structured-outputs-config.x
        arguments += [GRAMMARS, json.dumps({"backend": "guidance"})]
    return LaunchCommand([*arguments, *extra], _variables(prompts, api_key, environment or {}))


def _variables(prompts: str, api_key: str | None, environment: Mapping[str, Any]) -> dict[str, str]:
    plugins = [one for one in environment.get("VLLM_PLUGINS", "").split(",") if one]
    found = {
        "VLLM_PLUGINS": ",".join(dict.fromkeys([*plugins, NAME])),
        settings.VARIABLE: prompts,
        # foreword tells nobody what it serves.
        "VLLM_NO_USAGE_STATS": environment.get("VLLM_NO_USAGE_STATS", "1"),
    }
    return found | ({"VLLM_API_KEY": api_key} if api_key else {})


def _has_option(extra: Sequence[str], option: str) -> bool:
    return any(word == option or word.startswith(f"{option}=") for word in extra)
