"""Export command: `foreword export`, a prompt in the files of another engine.

In: a prompt's directory, the base that it was trained on, the engine. Out: files, and how they are
used there. Loads no model in torch.
"""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from foreword.cli import options
from foreword.errors import InputError

if TYPE_CHECKING:
    from foreword.export.llama_state import StateFile


def command(
    prompt: Annotated[str, typer.Option(help="directory or Hub id of a soft prompt")],
    to: Annotated[
        Literal["llama-state"],
        typer.Option(help="'llama-state': a slot file of llama.cpp's llama-server"),
    ],
    model: Annotated[str, typer.Option(help="the base: for llama.cpp a .gguf file")],
    output: Annotated[str, typer.Option(help="file to write")],
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
            "directory: restore the file there and check that it is used"
        ),
    ] = None,
    slot: Annotated[int, typer.Option(min=0, max=1023, help="slot to restore into")] = 0,
) -> None:
    """Write a prompt for another engine, which then answers behind it without foreword.

    Example: foreword export --prompt home --to llama-state --model base.gguf --output home.bin
    """
    from foreword.export import llama_server, llama_state
    from foreword.prompt.soft_prompt import SoftPrompt

    if server is not None and not server.startswith(("http://", "https://")):
        raise InputError(f"--server: {server!r:.80} is no address; expected http://HOST:PORT")
    loaded = SoftPrompt.load(prompt)
    with options.errors.status(f"reading {model}") as status:
        written = llama_state.export(
            loaded,
            model,
            output,
            cache_type=cache_type,
            has_flash_attention=flash_attention,
            progress=status.update,
        )
    options.errors.print(f"wrote {written.path}, {written.sidecar.name} beside it")
    if server is not None:
        found = llama_server.restore(server, written.path, slot=slot)
        options.output.print(f"{server}: slot {slot} answers behind {found} tokens of its cache")
        return
    options.output.print(_how_to_use(written, model, cache_type, slot, flash=flash_attention))


def _how_to_use(
    written: "StateFile", model: str, cache_type: str, slot: int, *, flash: bool
) -> str:
    """Return how the server is started, and the three calls."""
    directory = shlex.quote(str(Path(written.path).parent))
    template = f" --chat-template-file {shlex.quote(str(written.template))}"
    ids = ", ".join(map(str, written.ids))
    kind = "-H 'Content-Type: application/json'"
    lines = [
        f"llama-server -m {shlex.quote(model)} --slot-save-path {directory} --kv-unified"
        f" --cache-type-k {cache_type} --cache-type-v {cache_type}"
        f" --flash-attn {'on' if flash else 'off'}"
        + (template if written.template is not None else ""),
        f"curl 'localhost:8080/slots/{slot}?action=restore' {kind}"
        f' -d \'{{"filename": "{written.path.name}"}}\'',
        f"curl localhost:8080/completion {kind}"
        f' -d \'{{"id_slot": {slot}, "cache_prompt": true, "n_predict": 64,'
        f' "prompt": [{ids}, "YOUR TEXT"]}}\'',
    ]
    if written.template is not None:
        lines.append(
            f"curl localhost:8080/v1/chat/completions {kind}"
            f' -d \'{{"id_slot": {slot}, "messages": [{{"role": "user",'
            f' "content": "YOUR TEXT"}}]}}\''
        )
    number = written.facts["virtual_tokens"]
    lines.append(
        f"timings.cache_n of an answer is {number} or more; fewer, and the prompt was not used: "
        "restore it again"
    )
    return "\n".join(lines)
