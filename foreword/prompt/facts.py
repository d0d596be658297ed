"""Facts: what a prompt's files say of it, checked and bounded once, for every reader of them.

In: the two files of a prompt, or facts in memory. Out: the configuration, the facts and a summary
for lists, all of it plain data: finite numbers, whole text, bounded depth and size. Reads no
values and imports no torch; PEFT's keys are `peft_format`'s.
"""

import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from foreword.config import EncodingConfig
from foreword.errors import ArtifactError, InputError
from foreword.os_calls import open_itself
from foreword.prompt import history
from foreword.prompt.peft_format import (
    CONFIG_FILE,
    TENSOR_FILE,
    check_config,
    check_shapes,
    form_of,
    tensor_names,
)

FORMAT_VERSION = 1
METADATA_NAME = "foreword"
STATE_FILE = "training_state.safetensors"  # of a run, beside the prompt that it saves
SEEDS = "seeds"  # folder of several seeds of a run, with one for each
MAX_BYTES = 1 << 30  # of one file of a prompt that is kept in a store
MAX_CONFIG_BYTES = 1 << 20
MAX_FACTS_BYTES = 1 << 20  # as JSON
MAX_HEADER_BYTES = 1 << 24  # of the tensor file
MAX_DEPTH = 32
LARGEST_INTEGER = 1 << 64
SHOWN = 200  # characters of a template in a list

# The facts that code relies on, with their types; each may be missing, and others are free.
FACT_TYPES: dict[str, Any] = {
    "base": {"name": str, "revision": str, "fingerprint": dict, "weights": str},
    "tokenizer": dict,
    "encoding": {
        "row_template": str,
        "max_length": int,
        "truncate": bool,
        "chat_template": str,
        "held_text": str,
        "held_tokens": int,
        "held_hash": str,
        "opening": str,
        "start_token": bool,
        "special_tokens": bool,
        "plain": bool,
        "is_text": bool,
        "is_spaced": bool,
        "date": str,
    },
    "training": {"num_rows": int, "objective": str},
    "metrics": {
        "step": int,
        "training_loss": float,
        "validation": {
            "loss": float,
            "exact": float,
            "agreement": float,
            "preferred": float,
            "reward": float,
        },
    },
    "form": str,
    "method": str,
    "created": str,
}
# Those that lists show, where many prompts stand side by side: bytes as JSON.
LISTED_BYTES = {"metrics": 1 << 14, "method": 256, "created": 256, "form": 256}
MAX_NAME_BYTES = 1 << 12  # of the base's name, which may be a path, and of its revision


def wrong_fact(facts: Any) -> str | None:
    """Say what is wrong with facts, as "base.name is int, expected str"; None where all is well."""
    if not isinstance(facts, dict):
        return f"facts are {type(facts).__name__}, expected dict"
    if wrong := _wrong_type(facts, FACT_TYPES):
        return wrong
    if facts.get("history") is not None and (wrong := history.wrong(facts["history"])):
        return wrong
    if wrong := _wrong_encoding(facts.get("encoding") or {}):
        return wrong
    if wrong := wrong_data(facts):
        return f"facts are not plain data ({wrong})"
    base = facts.get("base") or {}
    sizes = [(name, facts.get(name), limit) for name, limit in LISTED_BYTES.items()]
    names = ("name", "revision", "weights")
    sizes += [(f"base.{name}", base.get(name), MAX_NAME_BYTES) for name in names]
    for name, value, limit in sizes:
        if value is not None and len(json.dumps(value)) > limit:
            return f"{name} takes more than {limit:,} bytes"
    return None


def _wrong_encoding(saved: dict[str, Any]) -> str | None:
    try:
        EncodingConfig.saved(saved)
    except InputError as error:
        return f"encoding: {error!s:.200}"
    return None


def wrong_data(value: Any, where: str = "", depth: int = 0) -> str | None:
    """Say what of a value is no plain data that every reader of JSON takes; None where all is."""
    place = where or "the whole"
    if depth > MAX_DEPTH:
        return f"{place[:80]} is nested more than {MAX_DEPTH} deep"
    if isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str):
                return f"{place[:80]} has a key that is {type(key).__name__}, expected str"
            inner = f"{where}.{_shown(key)}" if where else _shown(key)
            wrong = _wrong_text(key, f"the key {inner}") or wrong_data(part, inner, depth + 1)
            if wrong:
                return wrong
        return None
    if isinstance(value, list | tuple):
        for index, part in enumerate(value):
            if wrong := wrong_data(part, f"{where}[{index}]", depth + 1):
                return wrong
        return None
    if isinstance(value, str):
        return _wrong_text(value, place)
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, int):
        is_small = abs(value) <= LARGEST_INTEGER
        return None if is_small else f"{place} is an integer of more than 64 bits"
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{place} is {value}, expected a finite number"
    return f"{place} is {type(value).__name__}, expected a string, a number, a list or a dict"


def _wrong_text(text: str, place: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"{place} holds half a surrogate pair, which is no text"
    return None


def _shown(key: str) -> str:
    return key if key.isidentifier() and key.isascii() and len(key) < 40 else ascii(key)[:40]


def _wrong_type(facts: dict[str, Any], expected: dict[str, Any]) -> str | None:
    for name, kind in expected.items():
        value = facts.get(name)
        group = kind if isinstance(kind, dict) else {}
        needed = dict if group else kind
        if value is None:
            continue
        # A whole number is a number; true is none.
        is_right = isinstance(value, (int, float) if needed is float else needed)
        if not is_right or (isinstance(value, bool) and needed is not bool):
            return f"{name} is {type(value).__name__}, expected {needed.__name__}"
        if group and (wrong := _wrong_type(value, group)):
            return f"{name}.{wrong}"
    return None


# Files ------------------------------------------------------------------------------------------


def check_before_saving(facts: Any, target: Path) -> None:
    """Refuse to save facts that could not be read again.

    Raises:
        InputError: not plain data, or of other types than they are read as.
    """
    if wrong := wrong_fact(facts):
        raise InputError(
            f"{target}: not saved; the prompt's {wrong}; keep strings, finite numbers, lists and "
            "dictionaries with string keys"
        )


def as_json(facts: dict[str, Any], target: Path) -> str:
    """Return facts as they stand in a prompt's file.

    Raises:
        InputError: as `check_before_saving`, or too large.
    """
    check_before_saving(facts, target)
    text = json.dumps(facts, sort_keys=True, allow_nan=False)
    if len(text) > MAX_FACTS_BYTES:
        raise InputError(
            f"{target}: not saved; the prompt's facts take {len(text):,} bytes, expected at most "
            f"{MAX_FACTS_BYTES:,}"
        )
    return text


def parse(text: str, path: Path) -> dict[str, Any]:
    """Return the facts of a file, from what its metadata holds.

    Raises:
        ArtifactError: too large, not JSON, of another format, not plain data, or without the hash
            of the values.
    """
    where = f"the metadata under {METADATA_NAME!r}"
    if len(text) > MAX_FACTS_BYTES:
        raise ArtifactError(f"{path}: {where} is larger than {MAX_FACTS_BYTES:,} bytes")
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise ArtifactError(f"{path}: {where} is not a JSON object")
    version = facts.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: format version {ascii(version):.60}, expected {FORMAT_VERSION}; "
            "read it with the release of foreword that wrote it"
        )
    if wrong := wrong_fact(facts):
        raise ArtifactError(f"{path}: in {where}, {wrong}")
    if not isinstance(facts.get("content_hash"), str):
        raise ArtifactError(
            f"{path}: {where} has no content_hash, expected the SHA-256 of the values, without "
            "which they cannot be verified; the file was changed: restore a copy"
        )
    return facts


def found_in(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """Return the facts of a file, from its metadata; none of a file that foreword did not write.

    Raises:
        ArtifactError: as `parse`, or they stand under another name.
    """
    if (text := metadata.get(METADATA_NAME)) is not None:
        return parse(text, path)
    for name, other in metadata.items():
        if '"content_hash"' in other and '"format_version"' in other:
            raise ArtifactError(
                f"{path}: foreword's facts stand in the metadata under {name!r:.60}, expected "
                f"{METADATA_NAME!r}; the file was changed: restore a copy"
            )
    return {}


def check_form(config: dict[str, Any], facts: dict[str, Any], source: Path) -> None:
    """Refuse facts of another form than the configuration's.

    Raises:
        ArtifactError: says both.
    """
    if facts.get("form") not in (None, form_of(config)):
        raise ArtifactError(
            f"{source}: the form is {ascii(facts['form']):.60} in the metadata, but {CONFIG_FILE} "
            f"says {form_of(config)!r}; the two files are not from one save"
        )


def with_base_of(config: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """Return facts whose base goes by the name and the revision that a configuration says, as its
    user may have edited them since; of a base that has another name, the revision is another, too.
    """
    base = facts.get("base") or {}
    name = config.get("base_model_name_or_path") or base.get("name")
    revision = base.get("revision") if name == base.get("name") else None
    said = {"name": name, "revision": config.get("revision", revision)}
    if all(base.get(key) == value for key, value in said.items()):
        return facts
    return facts | {"base": base | said}


def read_config(source: Path) -> dict[str, Any]:
    """Return the checked configuration of a prompt's directory.

    Raises:
        ArtifactError: missing, too large, not JSON, not plain data, or not a soft prompt's.
    """
    path = source / CONFIG_FILE
    if not os.path.isdir(source):  # False, too, for a path that the system cannot even look up
        raise ArtifactError(f"{source}: no such directory; expected a soft prompt's directory")
    if not path.is_file():
        raise ArtifactError(f"{source}: {without_prompt(source)}")
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ArtifactError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes; no configuration")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not readable as JSON ({error})") from None
    check_whole_config(config, path)
    return config  # type: ignore[no-any-return]


def without_prompt(source: Path) -> str:
    """Say what a directory without a prompt's configuration is."""
    has_run = (source / STATE_FILE).exists() or any(source.glob(f"{SEEDS}/*/{STATE_FILE}"))
    if has_run and not (source / TENSOR_FILE).exists():
        return (
            f"holds a run that has not saved a prompt yet, no {CONFIG_FILE}; go on with it: the "
            "command that began it, with --resume"
        )
    return f"no {CONFIG_FILE}; this directory holds no soft prompt"


def check_whole_config(config: Any, path: Path) -> None:
    """Refuse a configuration that is not plain, bounded data, or not a soft prompt's.

    Raises:
        ArtifactError: says what is wrong.
    """
    if wrong := wrong_data(config):
        raise ArtifactError(f"{path}: not plain data: {wrong}")
    check_config(config, path)
    for name in ("base_model_name_or_path", "revision"):
        if len(config.get(name) or "") > MAX_NAME_BYTES:
            raise ArtifactError(f"{path}: {name} takes more than {MAX_NAME_BYTES:,} bytes")


def summary(directory: Path, where: Path | None = None) -> dict[str, Any]:
    """Return what a prompt's files say of it, for lists; its values are not read.

    Args:
        directory: a prompt's directory.
        where: how errors call it, where that is another name.

    Raises:
        ArtifactError: files that are missing, truncated, hold anything but plain, bounded data, or
            say different things.
    """
    shown = where or directory
    try:
        config = read_config(directory)
        header, num_bytes = _header(directory / TENSOR_FILE)
        names = tensor_names(config, directory)
        if missing := [name for name in names if name not in header]:
            raise ArtifactError(f"{directory / TENSOR_FILE}: no tensor {missing[0]!r}")
        facts = found_in(header.get("__metadata__") or {}, directory / TENSOR_FILE)
        shapes = {name: header[name]["shape"] for name in names}
        num_virtual = check_shapes(config, shapes, directory)
        check_form(config, facts, directory)
    except ArtifactError as error:
        raise ArtifactError(str(error).replace(str(directory), str(shown))) from None
    base = with_base_of(config, facts).get("base") or {}
    known = {
        "base": base.get("name") or "not recorded",
        "form": facts.get("form") or config["peft_type"],
        "virtual_tokens": num_virtual,
        "num_bytes": num_bytes,
        "created": facts.get("created"),
        "asked_as": asked_as(facts),
        "metrics": facts.get("metrics"),
        "history": facts.get("history"),
    }
    return {name: value for name, value in known.items() if value is not None}


def asked_as(facts: Mapping[str, Any]) -> str | None:
    """Return how a question is written before the model reads it, in words; None where a prompt
    does not record how the rows of its training were written.
    """
    saved = facts.get("encoding") or {}
    if (template := saved.get("row_template")) is not None:
        return f"the row template {template[:SHOWN]!r}{' …' * (len(template) > SHOWN)}"
    if "is_text" not in saved:
        return None
    if saved["is_text"] is None:
        return "plain text or a turn, as it is given: rows of both kinds were trained on"
    if saved["is_text"]:
        return "plain text, without a template"
    if saved.get("chat_template") is not None:
        return "one turn of a chat template that the prompt holds"
    if (facts.get("tokenizer") or {}).get("chat_template") is None:
        return "a turn, or a text whose template was filled already, as it is given"
    return "one turn of the chat template"


def is_own(directory: Path) -> bool:
    """Return whether foreword wrote a prompt's files; files that cannot be read are not its own."""
    try:
        header, _ = _header(directory / TENSOR_FILE)
    except ArtifactError:
        return False
    return METADATA_NAME in (header.get("__metadata__") or {})


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file that is as long as it says, and the file's size.

    Raises:
        ArtifactError: missing, not a regular file, truncated, or not a header.
    """
    try:
        with open_regular(path) as file:
            num_bytes = os.fstat(file.fileno()).st_size
            size = int.from_bytes(file.read(8), "little")
            if size > MAX_HEADER_BYTES:
                raise ValueError(f"a header of {size:,} bytes")
            header = json.loads(file.read(size))
        if not all(isinstance(text, str) for text in (header.get("__metadata__") or {}).values()):
            raise ValueError("metadata that is not text")
        parts = [part for name, part in header.items() if name != "__metadata__"]
        shapes = [part["shape"] for part in parts]
        if not all(isinstance(shape, list) for shape in shapes):
            raise ValueError("a shape that is no list")
        if not all(type(size) is int and size >= 0 for shape in shapes for size in shape):
            raise ValueError("a shape that holds what is no size")
        expected = 8 + size + max((part["data_offsets"][1] for part in parts), default=0)
        if expected != num_bytes:
            raise ValueError(f"{num_bytes:,} bytes, expected {ascii(expected):.40}")
    except (InputError, OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: truncated or not a safetensors file ({error})") from None
    except (AttributeError, IndexError, KeyError, TypeError):
        raise ArtifactError(f"{path}: truncated or not a safetensors file (no header)") from None
    return header, num_bytes


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file of bounded size, never through a link.

    Raises:
        InputError: missing, a link, a device, too large.
    """
    try:
        handle = open_itself(path)
    except OSError as error:
        reason = "is a symbolic link" if path.is_symlink() else f"cannot be read ({error.strerror})"
        raise InputError(f"{path} {reason}; expected a soft prompt's own file") from None
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
        os.close(handle)
        raise InputError(f"{path} is not a regular file of at most {MAX_BYTES:,} bytes")
    return os.fdopen(handle, "rb")
