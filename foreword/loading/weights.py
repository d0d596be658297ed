"""Weights check: what a checkpoint's files hold, and what a model took of them.

In: a directory before it is loaded, then the model and transformers' own report of the load. Out:
nothing, a warning, or a refusal by name: weights that would be drawn at random, that have no place
in the model, or that are packed numbers which nothing unpacks; files that transformers would pass
over without a word. Knows no tokenizer and no prompt.
"""

import json
import logging
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from torch.nn import ModuleList

from foreword.errors import InputError, UnsupportedError

log = logging.getLogger("foreword")
PLAIN = ("F16", "BF16", "F32", "F64")  # numbers that are their own values, as safetensors says them
ADAPTER = "adapter_config.json"
# Read by transformers, which takes some of them for empty where they are damaged.
SETTINGS = (
    "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "preprocessor_config.json", "processor_config.json", "chat_template.json",
)  # fmt: skip
# In every layer that predicts tokens after the next one, which stands behind the model's last layer
# and has no part in its logits (DeepSeek-V3, arXiv:2412.19437, section 2.2).
DRAFT = "eh_proj"
WHOLE = "take the model's whole, unchanged checkpoint"


def check_files(directory: Path, name: str) -> None:
    """Refuse a directory with an adapter in it, with damaged settings, or with an index of weights
    that leads elsewhere. What is no directory is not looked at.

    Raises:
        InputError: names the file.
    """
    if (directory / ADAPTER).exists():
        raise InputError(
            f"{name}: {ADAPTER} lies beside the model, which transformers would put on it; move "
            "the adapter to a folder of its own, or merge it and save the model"
        )
    for file in SETTINGS:
        path = directory / file
        if path.is_file() and not isinstance(found := _read_json(path, name), dict):
            raise InputError(
                f"{name}: {file} holds {type(found).__name__}, expected a JSON object; {WHOLE}"
            )
    _check_indexes(directory, name)


def _read_json(path: Path, name: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"{name}: {path.name} cannot be read as JSON ({error}); {WHOLE}") from None


def _check_indexes(directory: Path, name: str) -> None:
    """Refuse an index of weights that leads out of its directory, or to what is no file of weights,
    as a device without an end.

    Raises:
        InputError: names the index and where it leads.
    """
    for index in (*directory.glob("*.index.json"), *directory.glob("*.index.*.json")):
        if not index.is_file():
            continue
        described = _read_json(index, name)
        files = described.get("weight_map") if isinstance(described, dict) else None
        is_map = isinstance(files, dict) and all(isinstance(file, str) for file in files.values())
        if not is_map or not files:
            if not index.name.startswith(("model.", "pytorch_model.")):
                continue  # transformers does not read it
            raise InputError(
                f"{name}: {index.name} has no weight_map of weights and their files; {WHOLE}"
            )
        for file in sorted(set(files.values())):
            path = Path(file)
            is_special = (directory / path).exists() and not (directory / path).is_file()
            if path.is_absolute() or ".." in path.parts or is_special:
                raise InputError(
                    f"{name}: {index.name} names {file!r:.80}, which is no file of weights in the "
                    "model's own directory"
                )


def refuse_made_up(found: dict[str, Any], name: str) -> None:
    """Refuse a model with numbers that transformers drew at random, as the files lack them.

    Raises:
        InputError: names the first of them, and how many there are.
    """
    wrong = [f"has no {key}" for key in sorted(found["missing_keys"])]
    wrong += [
        f"has {key} of shape {list(theirs)}, and the configuration says {list(ours)}"
        for key, theirs, ours in sorted(found["mismatched_keys"])
    ]
    if wrong:
        others = f" ({len(wrong)} such weights)" if len(wrong) > 1 else ""
        raise InputError(
            f"{name}: its file of weights {wrong[0]}{others}; transformers would draw such weights "
            "at random: take the model's whole, unchanged checkpoint"
        )


def directory_of(source: str, revision: str | None) -> Path | None:
    """Return where a model's files lie: its directory, or that of a Hub id in the cache."""
    if Path(source).is_dir():
        return Path(source)
    found = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def refuse_other(model: Any, found: dict[str, Any], directory: Path | None, name: str) -> None:
    """Refuse a model that is not the one of its files; warn of weights that have no part in it.

    Args:
        model: loaded.
        found: transformers' report of the load.
        directory: of its files, where it is known.
        name: how the user calls the model.

    Raises:
        InputError: names a weight that the model has no place for.
        UnsupportedError: packed numbers that nothing unpacks; an adapter on the model.
    """
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UnsupportedError(
            f"{name}: it comes with an adapter, which transformers has put on it; merge it with "
            "PEFT, and give the model to Backbone(model, tokenizer)"
        )
    is_packed = getattr(model, "hf_quantizer", None) is not None
    config = getattr(model.config, "quantization_config", None)
    if config is not None and not is_packed:
        method = config.get("quant_method") if isinstance(config, dict) else config.quant_method
        raise UnsupportedError(
            f"{name}: quantized by {method!r:.60}, which transformers does not know, so it would "
            "take packed numbers for weights; use the model's unquantized checkpoint"
        )
    unused = sorted(found["unexpected_keys"])
    drafts = {key.partition(DRAFT)[0] for key in unused if DRAFT in key}
    for key in unused if not is_packed else ():  # quantizers write more than they read
        is_draft = any(key.startswith(layer) for layer in drafts)
        if not is_draft and (reason := _misplaced(model, key)):
            raise InputError(f"{name}: its files hold {key}, and {reason}; {WHOLE}")
    if directory is not None and not is_packed:
        _refuse_packed(model, directory, name)
    if unused:
        log.warning(
            "%s: %s weights of its files are not used, %s for one: %s has no place for them",
            name, f"{len(unused):,}", unused[0], type(model).__name__,
        )  # fmt: skip


def _misplaced(model: Any, key: str) -> str | None:
    """Return why a weight belongs to another model: one of a module that has others, or of a layer
    after the last. None: it belongs to a part that the model does not have.
    """
    parts = key.split(".")
    for count, part in enumerate(parts[:-1]):
        layers = _module(model, ".".join(parts[:count])) if part.isdecimal() else None
        if isinstance(layers, ModuleList) and int(part) >= len(layers):
            return f"the configuration says {len(layers)} layers"
    owner = _module(model, ".".join(parts[:-1]))
    if owner is not None and owner is not model and any(True for _ in owner.parameters(False)):
        return f"{type(owner).__name__} has no {parts[-1]}"
    return None


def _module(model: Any, name: str) -> Any:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _refuse_packed(model: Any, directory: Path, name: str) -> None:
    """Refuse weights that are stored as integers or in 8 bits: their scale lies elsewhere."""
    names = {key for key, _ in model.named_parameters()}
    prefix = model.base_model_prefix
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                kinds = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            continue  # not one of the model's, which were loaded
        for key, kind in kinds.items():
            if kind not in PLAIN and (key in names or f"{prefix}.{key}" in names):
                raise UnsupportedError(
                    f"{name}: {path.name} stores {key} as {kind}, and its configuration names no "
                    "quantization that would unpack it; use the model's unquantized checkpoint"
                )
