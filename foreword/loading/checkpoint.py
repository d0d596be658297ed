"""Checkpoint loading: model, tokenizer and processor, without running the checkpoint's code.

In: a directory or a Hub id. Out: what transformers' own classes load of it. Some checkpoints name a
type of their own for a class that transformers has (Kimi-K2 is DeepseekV3ForCausalLM); these are
loaded as that class. Anything else is refused with what is missing. Knows no prompt.
"""

from typing import Any

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

from foreword.errors import InputError, UnsupportedError
from foreword.loading import processor
from foreword.loading.gguf import first_line


def load(
    source: str, name: str, revision: str | None, tokenizer: Any, options: dict[str, Any]
) -> Any:
    """Load a model, its tokenizer, and its processor where it takes more than text.

    Args:
        source: a directory or a Hub id.
        name: how the user calls it.
        revision: of a Hub id.
        tokenizer: one that is loaded already, or None.
        options: more arguments of `from_pretrained`. A user who trusts a checkpoint's code says so
            here, with `trust_remote_code`.

    Returns:
        (model, tokenizer, processor or None).

    Raises:
        InputError: it cannot be loaded. UnsupportedError: no class for it in transformers.
    """
    is_trusted = {key: options[key] for key in ("trust_remote_code",) if options.get(key)}
    config = options.get("config")
    if config is None and not is_trusted:
        config = load_config(source, name, revision)
    try:
        if config is None:
            config = AutoConfig.from_pretrained(source, revision=revision, **is_trusted)
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, **is_trusted)
        kind = model_class(config)
        options = options | {"config": config}
        model = kind.from_pretrained(source, revision=revision, **options)
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: transformers cannot load it ({first_line(error)})") from error
    if kind not in (AutoModelForMultimodalLM, AutoModelForSpeechSeq2Seq):
        return model, tokenizer, None
    return model, tokenizer, processor.load(source, config, revision)


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


def load_config(source: str, name: str, revision: str | None = None) -> Any:
    """Return a model's configuration, of transformers' own classes.

    Raises:
        InputError: there is none, or it cannot be read.
        UnsupportedError: a class that transformers does not have; says what to do.
    """
    try:
        described, _ = PretrainedConfig.get_config_dict(source, revision=revision)
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: transformers cannot load it ({first_line(error)})") from error
    if described.get("model_type") in CONFIG_MAPPING:
        # Code of its own, if it has any, is not needed: transformers knows the type.
        return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    kind = _known_class(described)
    if kind is None:
        raise UnsupportedError(_missing(described, name))
    own = {key: value for key, value in described.items() if key not in ("auto_map", "model_type")}
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
        "is never run; use a release that has it, or, if you trust that code, load model and "
        "tokenizer yourself and give them to Backbone(model, tokenizer), where the model has to "
        "prove itself"
    )
