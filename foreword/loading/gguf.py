"""GGUF conversion: a GGUF file as a float32 checkpoint with the model's own tokenizer.

In: a file. Out: a directory that transformers loads like any other, or a refusal where the result
would not be the same model: an unknown pre-tokenizer, rotary scaling that transformers drops,
missing weights. Knows no model names and no cache folder.
"""

import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.errors import DependencyError, InputError, UnsupportedError

ORIGINAL = "use the model's original checkpoint instead (a Hub id or a directory)"
ProgressCallback = Callable[[str], None]


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


def convert(gguf_path: Path, scratch: Path, progress: ProgressCallback | None) -> Path:
    """Convert a GGUF file into a new directory under `scratch`, and return it."""
    tell(progress, f"converting {gguf_path.name} to a float32 checkpoint")
    # transformers also reads what lies beside a GGUF file, so it gets a folder of its own
    alone = scratch / "alone" / gguf_path.name
    alone.parent.mkdir()
    _copy(gguf_path, alone)
    header = _read_header(alone, gguf_path)
    _refuse_inexact(header)
    import transformers  # noqa: F401  # here, as its log handler keeps the stderr that it finds

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


def reader_class() -> Any:
    """Return the class of the gguf package that reads a file."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise DependencyError("a GGUF file needs the gguf package: pip install gguf") from None
    return GGUFReader


def stamp_of(path: Path) -> list[int]:
    """Return numbers that change with every write to a file; the change time cannot be set back."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _copy(path: Path, target: Path) -> None:
    """Copy a GGUF file, which is read by mapping it: one that shrinks then ends the process."""
    try:
        stamp = stamp_of(path)
        shutil.copyfile(path, target)
        is_same = stamp_of(path) == stamp
    except FileNotFoundError:
        raise InputError(f"model file {path} does not exist") from None
    except (IsADirectoryError, PermissionError, shutil.SpecialFileError) as error:
        raise InputError(f"{path} is not a GGUF file that can be read ({error})") from error
    if not is_same:
        raise InputError(f"model file {path} changed while it was converted; try again")


def _read_header(alone: Path, path: Path) -> _Header:
    """Read the header of a file's copy, and check that it is as long as the header says."""
    reader_type = reader_class()
    try:
        reader = reader_type(alone)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (OSError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise InputError(
            f"{path} is not a whole GGUF file ({first_line(error)}); download it again"
        ) from error
    return _Header(path, fields, frozenset(tensor.name for tensor in reader.tensors))


def _refuse_inexact(header: _Header) -> None:
    """Refuse the files that transformers would load as a model with other outputs."""
    kind, pre = header.of_tokenizer("model"), header.of_tokenizer("pre")
    needed = {"gpt2": ["tokens", "token_type", "merges"], "llama": ["tokens"], "gemma4": ["tokens"]}
    if kind not in needed or not all(header.of_tokenizer(key) for key in needed[kind]):
        raise UnsupportedError(
            f"{header.path} has no tokenizer of a known type (tokenizer.ggml.model is {kind!r}, "
            f"expected {', '.join(needed)} with its tokens); {ORIGINAL}"
        )
    if kind == "gpt2" and pre not in _SPLITS:
        raise UnsupportedError(
            f"{header.path} splits text by the rule {pre!r} (tokenizer.ggml.pre), which is not "
            f"known exactly; known: {', '.join(_SPLITS)}; {ORIGINAL}"
        )
    scaling = header.of_family("rope.scaling.type") not in (None, "none")
    if scaling or any(name.startswith("rope_") for name in header.tensor_names):
        raise UnsupportedError(
            f"{header.path} scales its rotary positions, which transformers drops when it reads "
            f"a GGUF file; {ORIGINAL}"
        )


def _load_model(gguf: Path, header: _Header) -> Any:
    """Load the weights, dense in float32, as a model that can be saved."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    with _unsupported_family(header):
        model, loading = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
        )
    if missing := sorted(loading["missing_keys"]):
        raise UnsupportedError(
            f"{header.path} leaves {len(missing)} weights of its {header.family!r} model unset, "
            f"{missing[0]} for one; {ORIGINAL}"
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
            built = PreTrainedTokenizerFast.from_pretrained(
                gguf.parent, gguf_file=gguf.name, trust_remote_code=False
            )
        backend = _without_invented_tokens(built.backend_tokenizer, header)
        adds_bos = built.add_bos_token
    ids = {name: header.of_tokenizer(f"{key}_token_id") for name, key in _SPECIAL_TOKENS.items()}
    settings = {name: backend.id_to_token(id) for name, id in ids.items() if id is not None}
    settings["chat_template"] = header.fields.get("tokenizer.chat_template")
    settings["model_max_length"] = header.of_family("context_length")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        add_bos_token=adds_bos,
        add_eos_token=bool(header.of_tokenizer("add_eos_token")),
        clean_up_tokenization_spaces=False,
        **{name: value for name, value in settings.items() if value is not None},
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
    again = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    if again(probe)["input_ids"] != tokenizer(probe)["input_ids"]:
        raise UnsupportedError(
            f"{header.path}: transformers loads the tokenizer of this {header.family!r} model "
            f"differently from how it was saved; {ORIGINAL}"
        )


@contextmanager
def _unsupported_family(header: _Header) -> Iterator[None]:
    """Raise what transformers says about a family that it cannot load, in one line."""
    try:
        yield
    except Exception as error:  # whatever transformers, or a class of its, raises at odd files
        raise UnsupportedError(
            f"transformers cannot load {header.path}, a GGUF file of the {header.family!r} family "
            f"({first_line(error)}); {ORIGINAL}"
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

# Only what was compared with the original tokenizer. "default" is missing: a converter writes it
# where it does not recognise the tokenizer.
_SPLITS = {
    "gpt-2": _Split(),
    "smollm": _Split(is_digits_apart=True),
    "llama-bpe": _Split(_LLAMA3, ignore_merges=True, adds_bos=True),
    "qwen2": _Split(_LLAMA3.replace("{1,3}", ""), is_nfc=True),
}


def first_line(error: Exception) -> str:
    """Return what an error says in one line; of a heading, the line below it, too."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])


def tell(progress: ProgressCallback | None, line: str) -> None:
    if progress is not None:
        progress(line)
