"""Prompts command: `foreword prompts`, the store that `foreword serve` serves from.

In: names, versions, directories. Out: the store changed, or its entries as lines or JSON. Loads no
model.
"""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli import options

if TYPE_CHECKING:
    from foreword.prompt.store import Entry, Store

app = typer.Typer(
    help="Keep named, versioned prompts in a directory: list, add, remove, alias, show.",
    no_args_is_help=True,
)
Directory = Annotated[
    str,
    typer.Option("--prompts", envvar="FOREWORD_PROMPTS", help="directory of the store"),
]
Reference = Annotated[str, typer.Argument(help="NAME, NAME@VERSION or an alias")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def _store(prompts: str) -> "Store":
    from foreword.prompt.store import Store

    return Store(prompts)


@app.command("list")
@options.checked
def list_command(prompts: Directory = "prompts", as_json: AsJson = False) -> None:
    """List names, current versions and aliases.

    Example: foreword prompts list --prompts prompts
    """
    store = _store(prompts)
    rows = [describe(store.resolve(name)) for name in store.names()]
    aliases = store.aliases()
    if as_json:
        options.output.print(json.dumps({"prompts": rows, "aliases": aliases}))
        return
    for row in rows:
        versions = len(store.versions(row["name"]))
        more = f"  ({versions} versions)" if versions > 1 else ""
        options.output.print(
            f"{row['name']}@{row['version']}  P={row['virtual_tokens']}  base {row['base']}{more}"
        )
    for alias, target in aliases.items():
        options.output.print(f"{alias} -> {target}")
    if not rows:
        options.output.print(f"no prompts in {prompts}; add one: foreword prompts add NAME DIR")


@app.command("add")
@options.checked
def add_command(
    name: Annotated[str, typer.Argument(help="the name that clients will ask for")],
    source: Annotated[str, typer.Argument(help="directory of a trained prompt")],
    prompts: Directory = "prompts",
) -> None:
    """Copy a prompt into the store; it becomes the current version of its name.

    Example: foreword prompts add home runs/home-commands/prompt
    """
    from foreword.prompt.soft_prompt import SoftPrompt

    SoftPrompt.load(source)  # refuses what is not a prompt, with the reason
    entry = _store(prompts).add(name, source)
    options.output.print(f"added {entry}")


@app.command("remove")
@options.checked
def remove_command(reference: Reference, prompts: Directory = "prompts") -> None:
    """Remove a name with all its versions, one version, or an alias.

    Example: foreword prompts remove home@3fa9c2d1
    """
    store = _store(prompts)
    gone = store.remove(reference)
    what = ", ".join(str(entry) for entry in gone) or f"alias {reference}"
    options.output.print(f"removed {what}")
    if gone and gone[0].name in store.names():
        options.output.print(f"current: {store.resolve(gone[0].name)}")


@app.command("alias")
@options.checked
def alias_command(
    alias: Annotated[str, typer.Argument(help="the other name")],
    reference: Annotated[str, typer.Argument(help="NAME, or NAME@VERSION to stay at one version")],
    prompts: Directory = "prompts",
) -> None:
    """Let another name stand for a prompt or for one version of it.

    Example: foreword prompts alias assistant home
    """
    options.output.print(f"{alias} -> {_store(prompts).alias(alias, reference)}")


@app.command("show")
@options.checked
def show_command(
    reference: Reference, prompts: Directory = "prompts", as_json: AsJson = False
) -> None:
    """Say what an entry is: versions, base, form, size, metrics, the curve of its training.

    Example: foreword prompts show home
    """
    from foreword.prompt import history
    from foreword.prompt.store import facts_of

    store = _store(prompts)
    entry = store.resolve(reference)
    store.verify(entry)
    facts = describe(entry) | {"versions": [e.version for e in store.versions(entry.name)]}
    known = facts_of(entry.path).get("history")
    unfit = history.wrong(known) if known is not None else None
    if as_json:
        options.output.print(
            json.dumps(facts | ({"history": known} if known and not unfit else {}))
        )
        return
    facts["history"] = unfit or (history.line(known) if known else "not recorded")
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        options.output.print(f"{name:<{width}}  {shown}")


def describe(entry: "Entry") -> dict[str, Any]:
    """Return what an entry's files say of it; its values are not loaded."""
    from foreword.prompt.store import facts_of

    facts = facts_of(entry.path)
    base = facts.get("base") or {}
    known = {
        "name": entry.name,
        "version": entry.version,
        "base": base.get("name") or facts.get("base_model_name_or_path") or "not recorded",
        "form": facts.get("form") or facts.get("peft_type"),
        "virtual_tokens": facts.get("num_virtual_tokens"),
        "num_bytes": facts.get("num_bytes"),
        "created": facts.get("created"),
        "metrics": facts.get("metrics"),
    }
    return {name: value for name, value in known.items() if value is not None}
