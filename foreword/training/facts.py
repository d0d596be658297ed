"""Facts: what a trained prompt says of itself, and what a run that resumes must share with it.

In: a backbone, the options, the rows. Out: plain data. Takes no step and writes no file.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch
import transformers

from foreword.backbone import Backbone
from foreword.config import EncodingConfig, TrainConfig
from foreword.data import encoding
from foreword.data.encoding import Row
from foreword.data.tokenizer_facts import NAMES
from foreword.prompt import artifact
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.training.checkpoint import BASE, ENVIRONMENT

KIND = ("is_text", "is_spaced")
"""What only rows and their answers tell of how they are encoded."""


def describe(
    backbone: Backbone,
    config: TrainConfig,
    encoding_config: EncodingConfig,
    rows: Sequence[Row],
    *,
    has_answers: bool = True,
) -> dict[str, Any]:
    """Return what a trained prompt says of itself: base, tokenizer, how rows are encoded, how it
    was trained.

    Args:
        backbone: that it was trained on.
        config: the options of the run.
        encoding_config: how its rows were encoded.
        rows: that were trained on.
        has_answers: whether the labels of rows are their answers.
    """
    return {
        "base": backbone.identity(),
        "tokenizer": backbone.tokenizer_facts(),
        "method": config.resolved().method,
        "embedding_scale": "as the model's embedding module returns them",
        "encoding": asdict(encoding_config) | _kind(backbone, rows, has_answers),
        "training": asdict(config) | {"num_rows": len(rows)},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def told_by(prompt: SoftPrompt) -> dict[str, bool | None]:
    """Return what a prompt records of the rows of its training and their answers, if it does."""
    known = prompt.facts.get("encoding") or {}
    return {name: known[name] for name in KIND if name in known}


def _kind(backbone: Backbone, rows: Sequence[Row], has_answers: bool) -> dict[str, bool | None]:
    """Return whether rows are plain text, None where only some are, and whether their answers begin
    with a space: those of the plain ones, where only some are; None where there are none.
    """
    plain = [row for row in rows if row.is_text]
    is_text = len(plain) == len(rows) if plain else False
    return {
        "is_text": is_text or (None if plain else False),
        "is_spaced": _are_spaced(backbone.tokenizer, plain or rows) if has_answers else None,
    }


def _are_spaced(tokenizer: Any, rows: Sequence[Row]) -> bool | None:
    """Return whether every answer begins with a space; None without a tokenizer."""
    if tokenizer is None:
        return None
    borders = {row.input_ids[-row.num_labels - 1 :][:2] for row in rows}  # few differ
    texts = ([encoding.decode(ids, tokenizer) for ids in (ids[:1], ids)] for ids in borders)
    return all(both[len(before) :].startswith(" ") for before, both in texts)


def run_identity(
    backbone: Backbone,
    rows: Sequence[Row],
    held_out: Sequence[Row],
    config: TrainConfig,
    encoding_config: EncodingConfig,
    initial: SoftPrompt | None,
    num_processes: int,
) -> dict[str, Any]:
    """Return what two runs must have in common for one to go on where the other stopped, and the
    environment, which may change the last bits of what it comes to.
    """
    options = asdict(config) | asdict(encoding_config)
    del options["save_every"]  # changes nothing but how much is lost
    in_memory = ("micro_batch_size", "gradient_checkpointing", "compile_layers")
    environment = {f"--{name.replace('_', '-')}": options.pop(name) for name in in_memory}
    environment |= {
        "the number of processes": num_processes,
        "the number of threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "the device": backbone.device.type,
        "the attention": getattr(backbone.model.config, "_attn_implementation", None),
    }
    known = backbone.tokenizer_facts() or {}
    return {
        ENVIRONMENT: environment,
        BASE: json.dumps(backbone.fingerprint(), sort_keys=True),
        "the base's dtype": str(backbone.dtype).removeprefix("torch."),
        **{name: known.get(key) for key, name in NAMES.items()},
        "the training rows": hash_rows(rows),
        "the validation rows": hash_rows(held_out),
        "the prompt to start from": initial.content_hash if initial else None,
        "options": options,
    }


def hash_rows(rows: Sequence[Row]) -> str:
    """Return a hash of what is learned from rows: their ids, labels, weights and targets."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.num_labels} {row.input_ids}{row.task}\n".encode())
        if row.rejected is not None:
            digest.update(f"before {row.rejected.num_labels} {row.rejected.input_ids}\n".encode())
        if row.weight != 1:
            digest.update(f"weight {row.weight}\n".encode())
        if row.target is not None:
            both = [row.target.ids, row.target.log_probabilities]
            digest.update(artifact.content_hash(both).encode())
        if row.media is not None:
            digest.update(artifact.content_hash(list(row.media.tensors.values())).encode())
    return digest.hexdigest()
