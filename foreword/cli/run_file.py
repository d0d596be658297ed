"""Run file: a command's options in a YAML file, read by `--config` and written beside a run.

In: a file with one line for each option, under the name of its flag. Out: the values that the
command line leaves open, as if they had been typed; and such a file of what a run was given.
Options that are typed, and variables of the environment, come before the file's. Knows no option
by name.
"""

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer

from foreword.cli import options
from foreword.config.checks import did_you_mean
from foreword.errors import InputError
from foreword.storage import replacing, storage_errors

NAME = "run.yaml"
MARK = "# foreword "  # at the beginning of such a file
PARAMETER = "run_file"
SECRET = ("api_key", "admin_key")
OF_ONE_CALL = ("resume", "overwrite", PARAMETER)
OF_NO_FILE = (PARAMETER, "help", None)
MAX_BYTES = 1_000_000
OPTION = typer.Option(
    "--config",
    is_eager=True,  # before the options that it answers for
    help="YAML file of this command's options, each by its name; what is typed comes first",
    callback=lambda context, value: _take(context, value),
)

_used: ContextVar[tuple[str, Mapping[str, Any]] | None] = ContextVar("used", default=None)


def with_run_file(name: str, command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the option `--config`, and remember what it is called with."""
    own = list(inspect.signature(command).parameters.values())
    kind: Any = Annotated[str | None, OPTION]
    extra = inspect.Parameter(
        PARAMETER, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind
    )

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        given = {key: value for key, value in values.items() if key != PARAMETER}
        token = _used.set((name, given))
        try:
            command(**given)
        finally:
            _used.reset(token)

    wrapper.__signature__ = inspect.Signature([*own, extra])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {one.name: one.annotation for one in (*own, extra)}
    return wrapper


def write(folder: Path) -> None:
    """Write the options of the command that runs into a folder, as a file that `--config` reads.

    Raises:
        StorageError: it cannot be written.
    """
    import yaml

    if (used := _used.get()) is None:  # called from Python
        return
    command, values = used
    left_out = (*SECRET, *OF_ONE_CALL)
    kept = {
        key.replace("_", "-"): value
        for key, value in values.items()
        if value is not None and value != [] and key not in left_out
    }
    text = f"{MARK}{command} --config {NAME}\n" + yaml.safe_dump(
        kept, sort_keys=False, allow_unicode=True
    )
    with storage_errors(folder / NAME):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / NAME) as temporary:
            Path(temporary).write_text(text, encoding="utf-8")


def is_own(file: Path) -> bool:
    """Return whether a file was written beside a run."""
    try:
        return file.read_bytes().startswith(MARK.encode())
    except OSError:
        return False


def _take(context: typer.Context, value: str | None) -> str | None:
    """Let the file's values stand for options that nobody typed."""
    if value is not None:
        known = _by_name(context.command.params)
        context.default_map = {**(context.default_map or {}), **_read(value, known)}
    return value


def _by_name(parameters: Iterable[Any]) -> dict[str, Any]:
    """Return a command's parameters by all names that a file may call them: those of their flags,
    and their own.
    """
    found: dict[str, Any] = {}
    for one in parameters:
        if one.name not in OF_NO_FILE:
            flags = (*one.opts, *one.secondary_opts)
            names = (flag.removeprefix("--") for flag in flags if flag.startswith("--"))
            found |= dict.fromkeys((one.name, *(name.replace("-", "_") for name in names)), one)
    return found


def _read(path: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a file by the names of parameters.

    Raises:
        InputError: no such file, no YAML, or a name or value that is none of an option.
    """
    import yaml

    options.check_text(path, "--config")
    text = options.file_text(path.removeprefix("@"), "--config")
    if len(text) > MAX_BYTES:
        raise InputError(f"--config: {path} has {len(text)} characters, at most {MAX_BYTES}")
    try:
        found = yaml.load(text, Loader=_loader())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"--config: {path} is no YAML ({said:.200})") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InputError(f"--config: {path} must hold lines of the form NAME: VALUE")
    values = {}
    for key, value in found.items():
        name = str(key).replace("-", "_")
        if name not in known:
            also = did_you_mean(name.replace("_", "-"), (one.replace("_", "-") for one in known))
            raise InputError(f"--config: {path}: this command has no option {key!r:.80}{also}")
        parameter = known[name]
        if parameter.name in values:
            raise InputError(f"--config: {path}: {key} stands there twice")
        found_value = _value(path, str(key), value, parameter)
        if f"--{name.replace('_', '-')}" in parameter.secondary_opts:  # as no-start-token
            found_value = not found_value
        values[parameter.name] = found_value
    return values


def _value(path: str, key: str, value: Any, parameter: Any) -> Any:
    """Return a value as it would be typed, so that it is checked as such."""
    where = f"--config: {path}: {key}"
    if getattr(parameter, "is_flag", False):
        if not isinstance(value, bool):
            raise InputError(f"{where}: expected true or false, got {value!r:.80}")
        return value
    takes_many = parameter.multiple or parameter.nargs != 1
    many = value if isinstance(value, list) else [value]
    if isinstance(value, list) and not takes_many:
        raise InputError(f"{where}: expected one value, got a list of {len(value)}")
    for one in many:
        if not isinstance(one, str):
            raise InputError(
                f"{where}: expected a text or a number, got {one!r:.80}; put a text that YAML "
                "reads otherwise into quotes, and leave out what keeps its default"
            )
    many = [_from_home(one) for one in many]
    return many if takes_many else many[0]


def _from_home(value: str) -> str:
    """Return a value with a ~ at its beginning as the folder that it stands for, as a shell passes
    it on, also behind the @ of a file.
    """
    mark, rest = ("@", value[1:]) if value.startswith("@") else ("", value)
    return mark + os.path.expanduser(rest) if rest.startswith("~") else value


def _loader() -> Any:
    """Return YAML's safe loader, which takes no name twice, and numbers and dates as the texts that
    they are: an option reads them as if they were typed, and a name such as 1.10 stays one.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML without surprises."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names = [self.construct_object(key, deep=True) for key, _ in node.value]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"{twice!r:.80} stands there twice")
            found: dict[Any, Any] = super().construct_mapping(node, deep)
            return found

    for kind in ("timestamp", "int", "float"):
        Loader.add_constructor(
            f"tag:yaml.org,2002:{kind}", lambda loader, node: loader.construct_scalar(node)
        )
    return Loader
