"""Checkpoint export: a base with prompts in its vocabulary, in transformers' own files.

In: named embedding prompts and the base's name. Out: a directory that every engine loads that loads
a checkpoint: vLLM, SGLang, TGI, TensorRT-LLM, transformers. The weights are written by transformers
itself, in the base's own precision. Appears whole, or not at all.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig

from foreword.backbone import Backbone
from foreword.errors import UnsupportedError
from foreword.export import chat_templates, rotary_names, vocabulary_rows
from foreword.export.targets import check_new
from foreword.export.vocabulary_rows import Plan
from foreword.loading import checkpoint, hub
from foreword.prompt.narrowing import narrowed
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.storage import storage_errors

SIDECAR = "foreword_export.json"
NEVER = -3e4  # a bias of the head below every logit, also in float16


def export(
    prompts: Mapping[str, SoftPrompt], model: str, output: str | os.PathLike[str]
) -> dict[str, Any]:
    """Write a checkpoint whose vocabulary holds prompts; return what its sidecar says.

    Args:
        prompts: embedding prompts by the name that the chat template takes.
        model: the base.
        output: a directory that is not there yet.

    Raises:
        InputError: something is there, keys and values, or numbers that the base's dtype does not
            hold.
        MismatchError: another base, or behind another chat template.
        UnsupportedError: a base or rows that would not be exact.
        StorageError: no space.
    """
    target = Path(output)
    check_new(target)
    config = checkpoint.load_config(hub.resolve(model), model)
    dtype = getattr(config.get_text_config(decoder=True), "dtype", None) or torch.float32
    backbone = Backbone.load(model, dtype=dtype, device="cpu")
    vocabulary_rows.check(backbone, prompts)
    tokenizer = backbone.tokenizer
    known = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    names = [token if token is not None else "" for token in known]
    plan = vocabulary_rows.plan(names, backbone.capabilities.vocab_size, prompts)
    template = chat_templates.combined(backbone, plan.prompts)
    rows = [vocabulary_rows.table_rows(backbone, one.prompt) for one in plan.prompts]
    facts = facts_of(backbone, plan)
    parent = target.parent
    scratch = parent / f".{target.name}.{os.getpid()}.foreword"
    with storage_errors(target, "nothing was kept"):
        parent.mkdir(parents=True, exist_ok=True)
        try:
            scratch.mkdir()
            _write_tokenizer(tokenizer, plan, template, scratch)
            written = AutoTokenizer.from_pretrained(scratch, trust_remote_code=False)
            chat_templates.check(written, backbone, plan.prompts, {"tokenize": True})
            facts["head"] = _change(backbone.model, plan, torch.cat(rows))
            _save(backbone.model, scratch)
            rotary_names.complete(scratch / "config.json")
            text = json.dumps(facts, indent=1) + "\n"
            (scratch / SIDECAR).write_text(text, encoding="utf-8")
            os.rename(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return facts


def facts_of(backbone: Backbone, plan: Plan) -> dict[str, Any]:
    """Return what an export says of its base and its prompts."""
    return {
        "format": "vocabulary rows",
        "base": {"name": backbone.name, "fingerprint": backbone.fingerprint()},
        "reserved_tokens": plan.is_reserved,
        "prompts": [
            {
                "name": one.name,
                "content_hash": one.prompt.content_hash,
                "ids": list(one.ids),
                "tokens": list(one.tokens),
            }
            for one in plan.prompts
        ],
    }


def _write_tokenizer(tokenizer: Any, plan: Plan, template: str, directory: Path) -> None:
    """Write a tokenizer that knows the tokens; the one given stays as it is."""
    tokenizer.save_pretrained(directory)
    changed = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    if not plan.is_reserved:
        tokens = [
            AddedToken(token, special=True, normalized=False)
            for one in plan.prompts
            for token in one.tokens
        ]
        changed.add_tokens(tokens, special_tokens=True)
    for one in plan.prompts:
        if tuple(changed.convert_tokens_to_ids(list(one.tokens))) != one.ids:
            raise UnsupportedError("the base's tokenizer numbers new tokens in another way")
    changed.chat_template = template
    changed.save_pretrained(directory)


@contextlib.contextmanager
def tokenizer_with(tokenizer: Any, plan: Plan, template: str) -> Iterator[Path]:
    """Write a tokenizer that knows the tokens into a directory that is gone afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        _write_tokenizer(tokenizer, plan, template, Path(scratch))
        yield Path(scratch)


def _change(model: Any, plan: Plan, rows: Tensor) -> str:
    """Write rows into a model's table, keep their tokens from being chosen, and say how."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    num_old = len(table.weight)
    is_tied = head is not None and head.weight.data_ptr() == table.weight.data_ptr()
    with torch.no_grad():
        if is_tied:
            _untie(model)
        if plan.num_tokens > num_old:
            model.resize_token_embeddings(plan.num_tokens, mean_resizing=False)
        table, head = model.get_input_embeddings(), model.get_output_embeddings()
        table.weight[plan.ids] = narrowed(rows, table.weight.dtype, "the checkpoint's table")
        if not plan.is_reserved and head is not None:
            # New tokens take the table's spare rows first, which the base may have trained.
            is_new = torch.zeros(len(head.weight), dtype=torch.bool, device="cpu")
            is_new[[*plan.ids, *range(num_old, len(head.weight))]] = True
            lost = vocabulary_rows.losing_row(head.weight[~is_new]).to(head.weight.dtype)
            head.weight[is_new] = lost
            if head.bias is not None:
                head.weight[is_new], head.bias[is_new] = 0, NEVER
    suppressed = model.generation_config.suppress_tokens or []
    model.generation_config.suppress_tokens = sorted({*suppressed, *plan.ids})
    own = "a head of its own, apart from the table" if is_tied else "the base's head"
    if not plan.is_reserved:
        return f"{own}; rows of new tokens are the mean of all others, never the greedy choice"
    return f"{own}, unchanged: these tokens are as likely as they are in the base"


def _save(model: Any, directory: Path) -> None:
    """Write a model with its generation config as it is: transformers loads, and does not save, one
    that names how to draw without asking to.
    """
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        model.save_pretrained(directory)
    finally:
        model.generation_config = own
    own.to_json_file(directory / "generation_config.json")


def _untie(model: Any) -> None:
    """Give the head a copy of the table."""
    config = model.config.get_text_config(decoder=True)
    model.config.tie_word_embeddings = config.tie_word_embeddings = False
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    model.all_tied_weights_keys = {}
