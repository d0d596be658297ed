"""Checkpoint loading: model, tokenizer and processor, by transformers' own classes.

In: a directory or a Hub id. Out: what transformers' own classes load of it. The checkpoint's own
code runs only where the caller gives `trust_remote_code=True`; nobody is asked. Some checkpoints
name a type of their own for a class that transformers has (Kimi-K2 is DeepseekV3ForCausalLM); these
are loaded as that class. Anything else is refused with what is missing. Knows no prompt.
"""

import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
    PretrainedConfig,
)

from foreword.compat.error_lines import telling_line
from foreword.compat.transformers_api import code_refused
from foreword.errors import ForewordError, InputError, UnsupportedError
from foreword.loading import hub, processor, weights

OWN_CODE = (
    "code out of the model's directory, which is never run unless you say so; if you trust that "
    "code, give trust_remote_code=True to Backbone.load, or load model and tokenizer yourself and "
    "give them to Backbone(model, tokenizer)"
)


def load(
    source: str, name: str, revision: str | None, tokenizer: Any, options: dict[str, Any]
) -> Any:
    """Load a model, its tokenizer, and its processor where it takes more than text.

    Args:
        source: a directory or a Hub id.
        name: how the user calls it.
        revision: of a Hub id.
        tokenizer: one that is loaded already, or None.
        options: more arguments of `from_pretrained`. Who trusts a checkpoint's code says so here,
            with `trust_remote_code=True`; without it none of that code runs.

    Returns:
        (model, tokenizer, processor or None).

    Raises:
        InputError: it cannot be loaded. UnsupportedError: no class for it in transformers, or a
            part of it is code of its own.
    """
    own = dict(options)
    is_trusted, config = bool(own.pop("trust_remote_code", None)), own.pop("config", None)
    weights.check_files(Path(source), name)
    with contextlib.nullcontext() if is_trusted else code_refused():
        if config is None:
            config = load_config(source, name, revision, is_trusted=is_trusted)
        if tokenizer is None:
            with load_errors(name, "tokenizer"):
                tokenizer = AutoTokenizer.from_pretrained(
                    source, revision=revision, trust_remote_code=is_trusted
                )
        kind = model_class(config)
        with load_errors(name, "model"):
            model, found = kind.from_pretrained(
                source,
                revision=revision,
                config=config,
                trust_remote_code=is_trusted,
                **own | {"output_loading_info": True, "ignore_mismatched_sizes": True},
            )
        weights.refuse_made_up(found, name)
        weights.refuse_other(model, found, weights.directory_of(source, revision), name)
        if kind not in (AutoModelForMultimodalLM, AutoModelForSpeechSeq2Seq):
            return model, tokenizer, None
        return model, tokenizer, processor.load(source, config, revision, is_trusted=is_trusted)


@contextlib.contextmanager
def load_errors(name: str, part: str) -> Iterator[None]:
    """Raise what goes wrong while a part of a checkpoint is loaded, in one line.

    Raises:
        InputError: it cannot be loaded. UnsupportedError: it is code of the checkpoint's own.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{name}: its weights are a pickle that is damaged or holds more than tensors, and no "
            "code out of a pickle is run; save the model again as safetensors"
        ) from error
    except ForewordError:
        raise
    except Exception as error:  # whatever transformers, or a class of its, raises at odd files
        if "trust_remote_code" in str(error):
            raise UnsupportedError(f"{name}: its {part} is {OWN_CODE}") from error
        raise InputError(
            f"{name}: transformers cannot load its {part} ({telling_line(error)})"
        ) from error


def model_class(config: Any) -> Any:
    """Return the auto class of a model, with its encoder, images and sounds if it has any."""
    if config.is_encoder_decoder:
        hears = type(config) in AutoModelForSpeechSeq2Seq._model_mapping
        return AutoModelForSpeechSeq2Seq if hears else AutoModelForSeq2SeqLM
    text, whole = AutoModelForCausalLM._model_mapping, AutoModelForMultimodalLM._model_mapping
    kind = type(config)
    # Some families name the same class twice, and others a class that takes text alone.
    is_text = kind not in whole or (kind in text and text[kind] is not whole[kind])
    return AutoModelForCausalLM if is_text else AutoModelForMultimodalLM


def load_config(
    source: str, name: str, revision: str | None = None, *, is_trusted: bool = False
) -> Any:
    """Return a model's configuration, of transformers' own classes unless its code is trusted.

    Raises:
        InputError: there is none, or it cannot be read.
        UnsupportedError: a class that transformers does not have; says what to do.
    """
    with load_errors(name, "configuration"):
        described, _ = PretrainedConfig.get_config_dict(source, revision=revision)
        if not described:
            raise InputError(f"{name}: {hub.NO_CONFIG}")
        if is_trusted or described.get("model_type") in CONFIG_MAPPING:
            # Code of its own, if it has any, is not needed where transformers knows the type.
            return AutoConfig.from_pretrained(
                source, revision=revision, trust_remote_code=is_trusted
            )
        kind = _known_class(described)
        if kind is None:
            raise UnsupportedError(_missing(described, name))
        own = {k: v for k, v in described.items() if k not in ("auto_map", "model_type")}
        return kind.config_class.from_dict(own)


def _known_class(described: dict[str, Any]) -> Any:
    """Return transformers' own class of a checkpoint's architecture, if it has one."""
    for architecture in described.get("architectures") or []:
        kind = getattr(transformers, str(architecture), None)
        if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
            return kind
    return None


def _missing(described: dict[str, Any], name: str) -> str:
    classes = ", ".join(map(str, described.get("architectures") or [])) or "no class that it names"
    return (
        f"{name}: transformers {transformers.__version__} has no model of type "
        f"{described.get('model_type')!r} ({classes}), and code out of a model's directory "
        "is never run unless you say so; use a release that has it, or, if you trust that code, "
        "load model and tokenizer yourself and give them to Backbone(model, tokenizer), where the "
        "model has to prove itself"
    )
