"""Prompts command: `foreword prompts`, the store that `foreword serve` serves from.

In: names, versions, directories, texts. Out: the store changed, or its entries as lines or JSON.
Loads a model only to read a text.
"""

import contextlib
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli import options, push
from foreword.cli.console import one_line, strict_json
from foreword.errors import ForewordError, InputError, NotFoundError
from foreword.prompt.store_directory import VARIABLE, store_directory

if TYPE_CHECKING:
    from foreword.prompt.store import Entry, Store
    from foreword.prompt.stored_prompt import StoredPrompt

app = typer.Typer(
    help="Keep named, versioned prompts in a directory: add, list, alias, roll back; push one.",
    no_args_is_help=True,
)
app.command("push")(options.checked(push.command))


def _directory(context: typer.Context, value: str) -> str:
    """Return the store's directory; the parser takes an empty variable for none."""
    source = context.get_parameter_source("prompts")
    is_left_out = source is not None and source.name == "DEFAULT"
    return store_directory(None if is_left_out else value) or value


Directory = Annotated[
    str,
    typer.Option("--prompts", envvar=VARIABLE, help="directory of the store", callback=_directory),
]
Reference = Annotated[str, typer.Argument(help="NAME, NAME@VERSION or an alias")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def _store(prompts: str) -> "Store":
    from foreword.prompt.store import Store

    return Store(prompts)


@app.command("list")
@options.checked
def list_command(prompts: Directory = "prompts", as_json: AsJson = False) -> None:
    """List names, current versions and aliases; a damaged prompt with what is wrong with it.

    Example: foreword prompts list --prompts prompts
    """
    store = _store(prompts)
    rows = [row for name in store.names() if (row := listed(store, name)) is not None]
    aliases = store.aliases()
    if as_json:
        options.output.print(strict_json({"prompts": rows, "aliases": aliases}))
        return
    for row in rows:
        options.output.print(_line(store, row))
    for alias, target in aliases.items():
        options.output.print(_alias_line(store, alias, target))
    if not rows:
        options.output.print(f"no prompts in {prompts}; add one: foreword prompts add NAME DIR")


@app.command("add")
@options.checked
def add_command(
    name: Annotated[str, typer.Argument(help="the name that clients will ask for")],
    source: Annotated[
        str | None, typer.Argument(help="directory or Hub id of a trained prompt")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(help="instead of a prompt: a long instruction, or @FILE, exact and read once"),
    ] = None,
    messages: Annotated[
        str | None,
        typer.Option(help="instead of a prompt: JSON file of the turns that come first"),
    ] = None,
    model: options.Model = None,
    prompts: Directory = "prompts",
) -> None:
    """Copy a prompt into the store, or put a text under a name; it becomes the current version.

    Example: foreword prompts add home runs/home-commands/prompt

    Example: foreword prompts add support --text @system.txt --model smollm2-135m
    """
    from foreword.prompt import directories, stored_prompt
    from foreword.prompt.store import check_free

    check_free(name)
    if [source, text, messages].count(None) != 2:
        raise InputError("give one of a directory, --text and --messages")
    if source is None:
        entry, said = _add_text(name, text, messages, model, prompts)
        options.output.print(f"added {entry}\n{said}")
        return
    if model is not None:
        raise InputError("--model reads a --text or --messages; a prompt names its own base")
    with directories.plain_files(source) as found:
        stored_prompt.read(found)  # refuses what is not a prompt, with the reason
        entry = _store(prompts).add(name, found)
    options.output.print(f"added {entry}")


def _add_text(
    name: str, text: str | None, messages: str | None, model: str | None, prompts: str
) -> "tuple[Entry, str]":
    """Put a text under a name; return the entry and what to know of it."""
    from tempfile import TemporaryDirectory

    from foreword.data import held_text

    if model is None:
        raise InputError("a text is read by a model: give --model, the base that will serve it")
    if text is not None:
        value: Any = options.text_of(text, "--text")
    else:
        value = options.json_of(str(messages), "--messages")
    value = held_text.checked(value)
    backbone, _ = options.load(model, None)
    from foreword.named_text import text_prompt

    prompt = text_prompt(backbone, value)
    with TemporaryDirectory() as folder:
        prompt.save(folder)
        entry = _store(prompts).add(name, folder)
    said = (
        f"{prompt.num_virtual_tokens} tokens, exact, read once; serve it: "
        f"foreword serve {model} --prompts {prompts}"
    )
    return entry, said


@app.command("compose")
@options.checked
def compose_command(
    name: Annotated[str, typer.Argument(help="the name that clients will ask for")],
    first: Annotated[str, typer.Argument(help="a name of the store, or a prompt as for add")],
    second: Annotated[str, typer.Argument(help="the same: the prompt that stands behind it")],
    model: options.Model = None,
    prompts: Directory = "prompts",
) -> None:
    """Put two prompts under a name as one, the second behind the first, its keys moved there.

    Example: foreword prompts compose both handbook support
    """
    from tempfile import TemporaryDirectory

    from foreword.prompt.store import check_free, check_name

    check_free(check_name(name))
    store = _store(prompts)
    pair = [_prompt(store, reference) for reference in (first, second)]
    base = pair[0].facts.get("base") or {}
    if not (model or base.get("name")):
        raise InputError("which model? give --model; the first prompt does not name its base")
    revision = None if model else base.get("revision")
    backbone, _ = options.load(model or base["name"], None, revision=revision)
    from foreword import compose
    from foreword.prompt.soft_prompt import SoftPrompt

    prompt = compose(backbone, *(SoftPrompt.from_stored(one) for one in pair))
    with TemporaryDirectory() as folder:
        prompt.save(folder)
        entry = store.add(name, folder)
    sizes = " and ".join(str(one.num_virtual_tokens) for one in pair)
    options.output.print(f"added {entry}: {sizes} virtual tokens, one behind the other")


def _prompt(store: "Store", reference: str) -> "StoredPrompt":
    """Return a prompt by its name in the store, where there is such a name, else by its place."""
    from foreword.prompt import stored_prompt
    from foreword.prompt.store import NAME

    try:
        entry = store.resolve(reference)
    except NotFoundError:
        if not os.path.isdir(reference):
            raise
    except InputError:
        name = reference.partition("@")[0]
        if not os.path.isdir(reference) and NAME.fullmatch(name) and store.has(name):
            raise  # else it is no name, but a directory or a Hub id
    else:
        return stored_prompt.read(store.verify(entry))
    return stored_prompt.read(reference)


@app.command("add-all")
@options.checked
def add_all_command(
    sources: Annotated[list[str], typer.Argument(help="directories of trained prompts")],
    prompts: Directory = "prompts",
) -> None:
    """Add many prompts, each under the name of its directory; all are checked before the first.

    Example: foreword prompts add-all runs/*
    """
    from contextlib import ExitStack

    from foreword.prompt import directories, stored_prompt
    from foreword.prompt.store import check_free, check_name

    names: dict[str, str] = {}
    for source in sources:
        name = os.path.basename(os.path.abspath(source))
        check_free(check_name(name))
        if name in names:
            raise InputError(f"{source} and {names[name]} are both called {name}: add one by name")
        names[name] = source
    with ExitStack() as found:
        places = {
            name: found.enter_context(directories.plain_files(source))
            for name, source in names.items()
        }
        for place in places.values():
            stored_prompt.read(place)
        store = _store(prompts)
        store.check_all(names)
        for name, place in places.items():
            options.output.print(f"added {store.add(name, place)}")


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
    if gone and store.has(gone[0].name):
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
    from foreword.prompt.store import check_free

    check_free(alias)
    store = _store(prompts)
    entry = store.alias(alias, reference)
    options.output.print(_alias_line(store, alias, str(entry) if "@" in reference else entry.name))


@app.command("use")
@options.checked
def use_command(
    reference: Annotated[str, typer.Argument(help="NAME@VERSION, one that the store holds")],
    prompts: Directory = "prompts",
) -> None:
    """Make an older version current again, or a newer one; a server takes it at its next reload.

    Example: foreword prompts use home@3fa9c2d1
    """
    store = _store(prompts)
    before = None
    with contextlib.suppress(InputError):  # what is damaged is mended
        before = store.resolve(reference.partition("@")[0])
    entry = store.use(reference)
    instead = f"instead of {before.version}" if before is not None else "instead of none"
    was = "it was already" if entry == before else instead
    options.output.print(f"current: {entry}, {was}")


@app.command("show")
@options.checked
def show_command(
    reference: Reference, prompts: Directory = "prompts", as_json: AsJson = False
) -> None:
    """Say what an entry is: versions, base, form, size, metrics, the curve of its training.

    Example: foreword prompts show home
    """
    from foreword.prompt import history

    store = _store(prompts)
    entry = store.resolve(reference)
    facts = describe(store, entry)
    known = facts.pop("history", None)
    added = {one.version: one.added for one in store.versions(entry.name)}
    facts["versions"] = list(added)
    if as_json:
        facts["added"] = {version: time.isoformat() for version, time in added.items()}
        options.output.print(strict_json(facts | ({"history": known} if known else {})))
        return
    facts["versions"] = [f"{one} ({time:%Y-%m-%d %H:%M:%S} UTC)" for one, time in added.items()]
    facts["history"] = history.line(known) if known else "not recorded"
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        options.output.print(f"{name:<{width}}  {one_line(shown)}")


def describe(store: "Store", entry: "Entry") -> dict[str, Any]:
    """Return what the files of an entry say of it, once they are what its version says.

    Raises:
        InputError: they are not, or hold anything but plain, bounded data.
    """
    from foreword.prompt.facts import summary

    found = summary(store.verify(entry))
    return {"name": entry.name, "version": entry.version} | found


def listed(store: "Store", name: str) -> dict[str, Any] | None:
    """Return what a list says of a name's current version: facts, or how it is damaged; None where
    a writer has removed the name meanwhile.
    """
    row: dict[str, Any] = {"name": name}
    try:
        entry = store.resolve(name)
        row["version"] = entry.version
        row |= describe(store, entry)
    except ForewordError as error:
        if not store.has(name):
            return None
        if "version" in row and store.resolve(name) != entry:  # another one is current by now
            return listed(store, name)
        return row | {"damaged": str(error)}
    row.pop("history", None)
    return row


def _alias_line(store: "Store", alias: str, target: str) -> str:
    """Say what an alias stands for: one version, or whichever is current."""
    if "@" in target:
        return f"{alias} -> {one_line(target)}  (stays at this version)"
    version = "none"
    with contextlib.suppress(ForewordError):
        version = store.resolve(target).version
    return f"{alias} -> {one_line(target)}  (whichever version is current: now {version})"


def _line(store: "Store", row: dict[str, Any]) -> str:
    shown = row["name"] + (f"@{row['version']}" if "version" in row else "")
    if "damaged" in row:
        return f"{shown}  damaged: {one_line(row['damaged'])}"
    versions = 0
    with contextlib.suppress(NotFoundError):  # removed meanwhile
        versions = len(store.versions(row["name"]))
    more = f"  ({versions} versions)" if versions > 1 else ""
    tokens = row.get("virtual_tokens", "not recorded")
    return f"{shown}  P={tokens}  base {one_line(row['base'])}{more}"
