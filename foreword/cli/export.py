"""Export command: `foreword export`, a prompt in the files of another engine.

In: prompts' directories, the base that they were trained on, the engine. Out: files, and how they
are used there. Knows no file format.
"""

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from foreword.cli import early, options
from foreword.errors import InputError

if TYPE_CHECKING:
    from foreword.export.llama_state import StateFile
    from foreword.prompt.soft_prompt import SoftPrompt
    from foreword.prompt.stored_prompt import StoredPrompt

Target = Literal["checkpoint", "gguf", "llama-state", "mlx"]


OF_STATE = ("cache_type", "flash_attention", "server", "slot")


def command(
    context: typer.Context,
    prompt: Annotated[
        list[str],
        typer.Option(
            help="directory or Hub id of a soft prompt, or NAME=DIRECTORY; several for checkpoint "
            "and gguf"
        ),
    ],
    to: Annotated[
        Target,
        typer.Option(
            help="'checkpoint' or 'gguf': the base with the prompts as tokens of its vocabulary; "
            "'llama-state': a slot file of llama.cpp's llama-server; 'mlx': mlx-lm's prompt cache"
        ),
    ],
    model: Annotated[str, typer.Option(help="the base: for llama.cpp a .gguf file")],
    output: Annotated[str, typer.Option(help="file to write; for checkpoint a directory")],
    cache_type: Annotated[
        Literal["f16", "f32"],
        typer.Option(help="numbers of the server's cache: its --cache-type-k and --cache-type-v"),
    ] = "f16",
    flash_attention: Annotated[
        bool,
        typer.Option(
            "--flash-attention/--no-flash-attention",
            help="whether the server runs with --flash-attn on, as it does by itself",
        ),
    ] = True,
    server: Annotated[
        str | None,
        typer.Option(
            help="address of a running llama-server whose --slot-save-path is the output's "
            "directory: restore the file there (written unless it is there) and check that it is "
            "used"
        ),
    ] = None,
    slot: Annotated[int, typer.Option(min=0, max=1023, help="slot to restore into")] = 0,
) -> None:
    """Write a prompt for another engine, which then answers behind it without foreword.

    Example: foreword export --prompt home --to checkpoint --model smollm2-135m --output home-model

    Example: foreword export --prompt home --to llama-state --model base.gguf --output home.bin
    """
    named = _named(prompt)
    if len(named) > 1 and to not in ("checkpoint", "gguf"):
        raise InputError(f"--to {to} takes one --prompt, got {len(named)}")
    _check_options(context, to)
    early.check(model=model)
    from foreword.prompt import stored_prompt

    stored = {name: stored_prompt.read(source) for name, source in named.items()}
    _check(to, stored, model, output, server)
    options.quiet()
    from foreword.prompt.soft_prompt import SoftPrompt

    prompts = {name: SoftPrompt.from_stored(one) for name, one in stored.items()}
    if to in ("checkpoint", "gguf"):
        _vocabulary(to, prompts, model, output)
        return
    [loaded] = prompts.values()
    if to == "mlx":
        _mlx(loaded, model, output)
        return
    _llama_state(loaded, model, output, cache_type, flash_attention, server, slot)


def _check_options(context: typer.Context, to: Target) -> None:
    """Refuse options that the target does not use.

    Raises:
        InputError: names the first.
    """
    for name in OF_STATE:
        source = context.get_parameter_source(name)
        if to != "llama-state" and source is not None and source.name == "COMMANDLINE":
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} is of --to llama-state, got --to {to}: leave it out")


def _check(
    to: Target,
    prompts: "Mapping[str, StoredPrompt]",
    model: str,
    output: str,
    server: str | None,
) -> None:
    """Refuse what the target does not take, before anything slow is imported."""
    from foreword.export import targets
    from foreword.loading import hub

    if to in ("checkpoint", "gguf"):
        targets.check_forms({name: one.form for name, one in prompts.items()})
        targets.check_new(output)
    if to in ("gguf", "llama-state"):
        hub.check_gguf(model)
    if to == "llama-state" and not _is_written(output, server):
        targets.check_state(output)
    if to == "mlx":
        targets.check_mlx(output)
    targets.check_server(server)


def _is_written(output: str, server: str | None) -> bool:
    """Return whether a state is there, which a server is to restore."""
    return server is not None and os.path.lexists(output)


def _named(prompts: list[str]) -> dict[str, str]:
    """Return each prompt's source by its name: as given, or that of its directory.

    Raises:
        InputError: two of one name.
    """
    named: dict[str, str] = {}
    for one in prompts:
        name, equals, source = one.partition("=")
        if not equals or os.path.exists(one):
            name, source = os.path.basename(os.path.abspath(one)), one
        if not source:
            raise InputError(f"--prompt {one!r:.80}: expected NAME=DIRECTORY")
        if name in named:
            raise InputError(f"two prompts are called {name}: give --prompt NAME=DIRECTORY")
        named[name] = source
    return named


def _vocabulary(to: Target, prompts: "dict[str, SoftPrompt]", model: str, output: str) -> None:
    """Write prompts as tokens, and say how they are asked."""
    from foreword.export import checkpoint, gguf_rows

    write = checkpoint.export if to == "checkpoint" else gguf_rows.export
    with options.errors.status(f"writing {output}"):
        facts = write(prompts, model, output)
    for one in facts["prompts"]:
        ids = one["ids"]
        options.output.print(f"{one['name']}: {len(ids)} tokens, ids {ids[0]} to {ids[-1]}")
    quoted = shlex.quote(output)
    if to == "checkpoint":
        options.output.print(f"head: {facts['head']}")
        lines = [f"vllm serve {quoted}", f"python -m sglang.launch_server --model-path {quoted}"]
    else:
        lines = [
            f"llama-server -m {quoted} --jinja",
            f"ollama create NAME -f Modelfile   # whose one line is: FROM {quoted}",
        ]
    names = [one["name"] for one in facts["prompts"]]
    lines.append(
        f"chat requests answer behind {names[0]}"
        + (
            '; {"chat_template_kwargs": {"prompt": "' + names[-1] + '"}} behind another'
            if len(names) > 1
            else ""
        )
        + ', with "base" as the bare model'
    )
    options.output.print("\n".join(lines))


def _mlx(prompt: "SoftPrompt", model: str, output: str) -> None:
    """Write a prompt cache, and say how it is used."""
    from foreword.export import mlx_cache

    facts: dict[str, Any] = mlx_cache.export(prompt, model, output)
    options.output.print(
        f"wrote {output}: keys and values of {facts['virtual_tokens']} tokens\n"
        "from mlx_lm import generate, load\n"
        "from mlx_lm.models.cache import load_prompt_cache\n"
        f"model, tokenizer = load({model!r})\n"
        "ids = [...]  # of a row, written as the prompt's training wrote it\n"
        f"cache = load_prompt_cache({output!r})  # again for every row\n"
        "print(generate(model, tokenizer, ids, prompt_cache=cache))",
        markup=False,
    )


def _llama_state(
    prompt: "SoftPrompt",
    model: str,
    output: str,
    cache_type: str,
    flash_attention: bool,
    server: str | None,
    slot: int,
) -> None:
    """Write the state of a sequence, and say how it is restored, or restore it."""
    from foreword.export import llama_server, llama_state

    of_cache: Any = {"cache_type": cache_type, "has_flash_attention": flash_attention}
    if _is_written(output, server):
        llama_state.check_written(prompt, model, output, **of_cache)
    else:
        with options.errors.status(f"reading {model}") as status:
            written = llama_state.export(prompt, model, output, progress=status.update, **of_cache)
        options.errors.print(f"wrote {written.path}, {written.sidecar.name} beside it")
        if written.without_template:
            options.note(f"there is no chat template: {written.without_template}; send ids")
    if server is not None:
        found = llama_server.restore(server, output, slot=slot)
        options.output.print(f"{server}: slot {slot} answers behind {found} tokens of its cache")
        return
    options.output.print(_how_to_use(written, model, cache_type, slot, flash=flash_attention))


def _how_to_use(
    written: "StateFile", model: str, cache_type: str, slot: int, *, flash: bool
) -> str:
    """Return how the server is started, and the three calls."""
    directory = shlex.quote(str(Path(written.path).parent))
    template = f" --chat-template-file {shlex.quote(str(written.template))}"
    text = "YOUR TEXT" if written.template is not None else "IDS OF A ROW"
    asked = {
        "id_slot": slot, "cache_prompt": True, "n_predict": 64, "prompt": [*written.ids, text],
    }  # fmt: skip
    kind = "-H 'Content-Type: application/json'"
    lines = [
        f"llama-server -m {shlex.quote(model)} --slot-save-path {directory} --kv-unified"
        f" --cache-type-k {cache_type} --cache-type-v {cache_type}"
        f" --flash-attn {'on' if flash else 'off'}"
        + (template if written.template is not None else ""),
        f"curl 'localhost:8080/slots/{slot}?action=restore' {kind}"
        f" -d {_quoted({'filename': written.path.name})}",
        f"curl localhost:8080/completion {kind} -d {_quoted(asked)}",
    ]
    if written.template is not None:
        turns = [{"role": "user", "content": "YOUR TEXT"}]
        lines.append(
            f"curl localhost:8080/v1/chat/completions {kind}"
            f" -d {_quoted({'id_slot': slot, 'messages': turns})}"
        )
    number = written.facts["virtual_tokens"]
    lines.append(
        f"timings.cache_n of an answer is {number} or more; fewer, and the prompt was not used: "
        "restore it again"
    )
    return "\n".join(lines)


def _quoted(body: Any) -> str:
    """Return a request's body as one word of a shell."""
    return shlex.quote(json.dumps(body, ensure_ascii=False))
