"""Push command: `foreword prompts push`, a prompt to a repository on the Hugging Face Hub.

In: a prompt's directory, a repository's id. Out: where it lies then, or with --dry-run its card.
Loads no model.
"""

from typing import Annotated

import typer

from foreword.cli import options


def command(
    source: Annotated[str, typer.Argument(help="directory of a trained prompt")],
    repository: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub")],
    private: Annotated[
        bool, typer.Option("--private", help="make the repository private where it is new")
    ] = False,
    license: Annotated[
        str | None, typer.Option(help="license of the prompt, as apache-2.0; default: none said")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the card and the files; upload nothing")
    ] = False,
) -> None:
    """Upload a prompt's two files, once verified, with a model card made from its facts.

    Example: foreword prompts push my-prompt owner/my-prompt --private
    """
    from foreword.prompt.push import push

    done = push(source, repository, is_private=private, license=license, is_dry_run=dry_run)
    if done.local_base is not None:
        options.errors.print(
            f"note: the prompt's files name its base as {done.local_base}, a path of this machine; "
            "they are uploaded as they are, and who loads them gives --model"
        )
    files = ", ".join(done.files)
    if done.url is None:
        options.output.print(f"{done.card}\nnot uploaded: {files}")
    else:
        options.output.print(
            f"pushed {files} to {done.url}\ntry it:   foreword chat --prompt {repository}"
        )
