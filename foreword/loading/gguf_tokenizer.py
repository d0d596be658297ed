"""GGUF tokenizer: the tokenizer of a GGUF file, built from its own fields.

In: a file's header. Out: a tokenizer that transformers saves and loads like any other, or a refusal
where the file's fields make none. GGUF files name the rule by which text is cut, and do not hold
it; only rules that were compared with the original tokenizer are known. Knows no weights.
"""

import json
import string
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.compat.error_lines import telling_line
from foreword.errors import ForewordError, InputError, UnsupportedError
from foreword.loading.gguf_header import ORIGINAL, Header

_SPECIAL_TOKENS = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
}


def check_tokenizer_known(header: Header) -> None:
    """Refuse a file whose tokenizer is of no known type, or cuts text by no known rule.

    Raises:
        UnsupportedError: names the field.
    """
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


def load_tokenizer(gguf: Path, header: Header) -> Any:
    """Build the tokenizer, as the class that takes tokenizer.json as it stands.

    Raises:
        InputError: fields that do not fit together. UnsupportedError: transformers cannot read
            them, or reads them as another tokenizer.
    """
    from transformers import PreTrainedTokenizerFast

    adds_bos = header.of_tokenizer("add_bos_token")
    _check_fields(header)
    if header.of_tokenizer("model") == "gpt2":
        split = _SPLITS[header.of_tokenizer("pre")]
        with _damaged(header):
            backend = _byte_level(header, split)
        adds_bos = split.adds_bos if adds_bos is None else adds_bos
    else:
        with unsupported_family(header):
            built = PreTrainedTokenizerFast.from_pretrained(
                gguf.parent, gguf_file=gguf.name, trust_remote_code=False
            )
        backend = _without_invented_tokens(built.backend_tokenizer, header)
        adds_bos = built.add_bos_token
        _refuse_other_start(backend, header)
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


def _check_fields(header: Header) -> None:
    """Refuse special tokens that are none of the file's, and a chat template that is no text.

    Raises:
        InputError: names the field.
    """
    num_tokens, template = len(header.of_tokenizer("tokens")), "tokenizer.chat_template"
    for name in (*_SPECIAL_TOKENS.values(), "eot"):
        id = header.of_tokenizer(f"{name}_token_id")
        if id is not None and not (isinstance(id, int) and 0 <= id < num_tokens):
            raise InputError(
                f"{header.path}: tokenizer.ggml.{name}_token_id is {id!r:.40}, expected one of its "
                f"{num_tokens} tokens; download it again, or convert it anew"
            )
    if not isinstance(header.fields.get(template), str | None):
        raise InputError(
            f"{header.path}: {template} is {header.fields[template]!r:.40}, expected a text; "
            "download it again, or convert it anew"
        )


def _without_invented_tokens(backend: Any, header: Header) -> Any:
    """Drop the tokens that transformers adds by default: they have no row in the embedding."""
    from tokenizers import Tokenizer

    state = json.loads(backend.to_str())
    num_tokens = len(header.of_tokenizer("tokens"))
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < num_tokens]
    return Tokenizer.from_str(json.dumps(state))


def _refuse_other_start(backend: Any, header: Header) -> None:
    """Refuse a tokenizer that puts a space before a text, or none, against what the file says.

    Raises:
        UnsupportedError: says both.
    """
    told = header.of_tokenizer("add_space_prefix")
    if told is None:
        return
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    probe = next(letter for letter in (*string.ascii_letters, "\u00e4") if letter not in added)
    found = backend.encode(probe, add_special_tokens=False).tokens[0].startswith("\u2581")
    if found != bool(told):
        raise UnsupportedError(
            f"{header.path}: tokenizer.ggml.add_space_prefix is {told}, and transformers makes "
            f"{found} of it when it reads a GGUF file; {ORIGINAL}"
        )


@contextmanager
def _damaged(header: Header) -> Iterator[None]:
    """Raise what the tokenizers library says about fields that do not fit, in one line."""
    try:
        yield
    except Exception as error:  # the library's own class is Exception itself
        raise InputError(
            f"{header.path}: the fields of its tokenizer do not fit together "
            f"({telling_line(error)}); download it again, or convert it anew"
        ) from error


@contextmanager
def unsupported_family(header: Header) -> Iterator[None]:
    """Raise what transformers says about a family that it cannot load, in one line.

    Raises:
        UnsupportedError: with what transformers said.
    """
    try:
        yield
    except ForewordError:
        raise
    except Exception as error:  # whatever transformers, or a class of its, raises at odd files
        raise UnsupportedError(
            f"transformers cannot load {header.path}, a GGUF file of the {header.family!r} family "
            f"({telling_line(error)}); {ORIGINAL}"
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


def _byte_level(header: Header, split: _Split) -> Any:
    """Build a byte-level BPE tokenizer with exactly the tokens of the file."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    tokens, kinds = header.of_tokenizer("tokens"), header.of_tokenizer("token_type")
    merges = [tuple(merge.split(" ")) for merge in header.of_tokenizer("merges")]
    vocab = {token: id for id, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        raise ValueError(f"{len(tokens) - len(vocab)} of its tokens stand there twice")
    if len(kinds) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens and {len(kinds)} kinds of them")
    backend = Tokenizer(models.BPE(vocab, merges, ignore_merges=split.ignore_merges))
    backend.pre_tokenizer = split.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    if split.is_nfc:
        backend.normalizer = normalizers.NFC()
    for token, kind in zip(tokens, kinds, strict=True):
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
