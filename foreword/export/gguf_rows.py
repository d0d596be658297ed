"""GGUF export: a base's GGUF file with prompts in its vocabulary.

In: named embedding prompts and the base's .gguf file. Out: another one that llama.cpp, Ollama and
LM Studio load: the same tensors and facts, more tokens, a chat template that begins with them. No
weight is rounded again. Appears whole, or not at all.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer

from foreword.backbone import Backbone
from foreword.errors import StorageError, UnsupportedError
from foreword.export import chat_templates, llama_texts, vocabulary_rows
from foreword.export.checkpoint import facts_of, tokenizer_with
from foreword.export.targets import check_new
from foreword.export.vocabulary_rows import Plan
from foreword.loading import hub
from foreword.prompt.narrowing import narrowed
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.storage import replacing, storage_errors

CONTROL = 3  # llama.cpp's type of a token that no text spells
TABLE, HEAD = "token_embd.weight", "output.weight"
TOKENS, TYPES, SCORES = (f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "scores"))
TEMPLATE = "tokenizer.chat_template"
ALIGNMENT = "general.alignment"  # of tensors; the writer has to be told
# What llama.cpp puts around every text. A file that does not say it leaves it to llama.cpp, which
# goes by the kind of tokenizer.
AROUND = tuple(f"tokenizer.ggml.add_{name}_token" for name in ("bos", "eos", "sep"))
SUPPRESSED = "tokenizer.ggml.suppress_tokens"
OF_TEXTS = {llama_texts.NAME, llama_texts.KIND}
NOT_KEPT = "nothing was kept; export it to another disk, or convert the base again"
OWN = "foreword.prompts"  # what the sidecar of a checkpoint says, as JSON


def export(
    prompts: Mapping[str, SoftPrompt], model: str, output: str | os.PathLike[str]
) -> dict[str, Any]:
    """Write a GGUF file whose vocabulary holds prompts; return what it says of them.

    Args:
        prompts: embedding prompts by the name that the chat template takes.
        model: the base's .gguf file.
        output: a file that is not there yet.

    Raises:
        InputError: no GGUF file, something is there, keys and values, or numbers that the table's
            type does not hold.
        MismatchError: another base, or behind another chat template.
        UnsupportedError: a base or rows that would not be exact.
        StorageError: no space, or a file that does not read back as it was written.
    """
    import gguf

    source, target = Path(model).expanduser(), Path(output)
    hub.check_gguf(source)
    check_new(target)
    backbone = Backbone.load(model, device="cpu")
    vocabulary_rows.check(backbone, prompts)
    reader = gguf.GGUFReader(source)
    names = [str(name) for name in reader.fields[TOKENS].contents()]
    plan = vocabulary_rows.plan(names, len(names), prompts)
    template = chat_templates.combined(backbone, plan.prompts)
    with tokenizer_with(backbone.tokenizer, plan, template) as directory:
        written = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        chat_templates.check(written, backbone, plan.prompts, {"tokenize": True})
        fields = {name: reader.fields[name].contents() for name in OF_TEXTS & set(reader.fields)}
        spaces = llama_texts.fields_for(fields, backbone, written, plan.prompts[0].tokens[0])
    rows = torch.cat([vocabulary_rows.table_rows(backbone, one.prompt) for one in plan.prompts])
    facts = facts_of(backbone, plan)
    with storage_errors(target, "nothing was kept"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as scratch:
            writer = _Copy(gguf, reader, scratch)
            writer.change(plan, {TEMPLATE: template, **spaces}, rows, facts)
            writer.write()
            writer.check_written()
    return facts


class _Copy:
    """One GGUF file on its way to another.

    Args:
        gguf: the package.
        reader: of the old file.
        path: of the new one.
    """

    def __init__(self, gguf: Any, reader: Any, path: Path) -> None:
        self.gguf, self.reader, self.path = gguf, reader, path
        arch = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
        self.writer = gguf.GGUFWriter(path, arch, endianess=reader.endianess)
        if ALIGNMENT in reader.fields:
            self.writer.add_custom_alignment(int(reader.fields[ALIGNMENT].contents()))
        self.tensors = {one.name: one for one in reader.tensors}
        if TABLE not in self.tensors:
            raise UnsupportedError(f"the GGUF file has no {TABLE}: no table to write rows into")
        self.changed: dict[str, tuple[np.ndarray, Any]] = {}

    def change(
        self, plan: Plan, texts: Mapping[str, Any], rows: Tensor, facts: Mapping[str, Any]
    ) -> None:
        """Copy all facts but those that the tokens change, and lay out the changed tensors."""
        changes: dict[str, Any] = {**texts, OWN: json.dumps(facts)}
        # The start stands in the template, behind the prompt's tokens.
        changes |= dict.fromkeys(AROUND, False)
        for key, added in ((TOKENS, None), (TYPES, CONTROL), (SCORES, 0.0)):
            if key not in self.reader.fields:
                continue
            values = list(self.reader.fields[key].contents())
            for one in plan.prompts:
                for id, token in zip(one.ids, one.tokens, strict=True):
                    new = token if added is None else added
                    if id < len(values):
                        values[id] = new
                    else:
                        values.append(new)
            changes[key] = values
        old = self.reader.fields.get(SUPPRESSED)
        known = {int(id) for id in old.contents()} if old is not None else set()
        self._copy_facts(changes, sorted(known | set(plan.ids)), plan)
        self._change_table(plan, rows)
        self._change_head(plan)

    def _copy_facts(self, changes: Mapping[str, Any], suppressed: list[int], plan: Plan) -> None:
        kinds = self.gguf.GGUFValueType
        for field in self.reader.fields.values():
            name = field.name
            if name.startswith("GGUF.") or name == self.gguf.Keys.General.ARCHITECTURE:
                continue
            if name in (SUPPRESSED, OWN, ALIGNMENT):
                continue
            is_list = field.types[0] == kinds.ARRAY
            if is_list and len(field.types) == 1:  # empty, which the package does not write
                _check_dispensable(name)
                continue
            value = changes.get(name, field.contents())
            if name.endswith(".vocab_size"):
                value = plan.num_tokens
            self.writer.add_key_value(
                name, value, field.types[0], field.types[-1] if is_list else None
            )
        for name in (TEMPLATE, OWN):
            if name not in self.reader.fields or name == OWN:
                self.writer.add_string(name, changes[name])
        for name in (*AROUND, llama_texts.SPACE):
            if name in changes and name not in self.reader.fields:
                self.writer.add_bool(name, changes[name])
        self.writer.add_key_value(SUPPRESSED, suppressed, kinds.ARRAY, kinds.INT32)

    def _change_table(self, plan: Plan, rows: Tensor) -> None:
        """Lay out the table with the prompts' rows; one that is quantized becomes float32, which
        says of all other tokens exactly what it said before.
        """
        table = self.tensors[TABLE]
        kinds = self.gguf.GGMLQuantizationType
        kind = table.tensor_type
        if kind not in (kinds.F32, kinds.F16, kinds.BF16):
            kind = kinds.F32
        whole = self.gguf.quants.dequantize(table.data, table.tensor_type).astype(np.float32)
        size = plan.num_tokens
        made = np.zeros((size, whole.shape[-1]), np.float32)
        made[: len(whole)] = whole
        dtype = {kinds.F16: torch.float16, kinds.BF16: torch.bfloat16}.get(kind, torch.float32)
        narrowed(rows, dtype, "the file's table")
        made[plan.ids] = rows.float().numpy()
        self.changed[TABLE] = (self.gguf.quants.quantize(made, kind), kind)

    def _change_head(self, plan: Plan) -> None:
        """Lay out a head with rows that lose: those of the base for tokens that it has, else their
        mean, or zeros where rows are quantized.
        """
        head = self.tensors.get(HEAD, self.tensors[TABLE])
        num_new = plan.num_tokens - len(head.data)
        kinds = self.gguf.GGMLQuantizationType
        data = head.data
        if num_new:
            added = np.zeros((num_new, *data.shape[1:]), data.dtype)
            if head.tensor_type in (kinds.F32, kinds.F16, kinds.BF16):
                plain = self.gguf.quants.dequantize(data, head.tensor_type)
                mean = plain.astype(np.float64).mean(0).astype(np.float32)
                added[:] = self.gguf.quants.quantize(mean[None], head.tensor_type)
            data = np.concatenate([data, added])
        self.changed[HEAD] = (data, head.tensor_type)

    @property
    def names(self) -> list[str]:
        """Tensors of the new file."""
        return [*self.tensors, *(name for name in self.changed if name not in self.tensors)]

    def write(self) -> None:
        """Write everything."""
        for name in self.names:
            data, kind = self._data(name)
            self.writer.add_tensor_info(name, data.shape, data.dtype, data.nbytes, kind)
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_ti_data_to_file()
        for name in self.names:
            self.writer.write_tensor_data(self._data(name)[0])
        self.writer.close()

    def check_written(self) -> None:
        """Read the file again: every tensor has to be what was to be written.

        Raises:
            StorageError: names the first that is not.
        """
        try:
            reader = self.gguf.GGUFReader(self.path)
        except (ValueError, LookupError) as error:
            raise StorageError(f"the file does not read back ({error}); {NOT_KEPT}") from None
        found = {one.name: one for one in reader.tensors}
        if list(found) != self.names:
            raise StorageError(f"the file reads back with other tensors; {NOT_KEPT}")
        for name, tensor in found.items():
            data, kind = self._data(name)
            if (
                tensor.tensor_type != kind
                or tensor.data.shape != data.shape
                or tensor.data_offset % reader.alignment
                or not np.array_equal(_bytes_of(tensor.data), _bytes_of(data))
            ):
                raise StorageError(f"{name} does not read back as it was written; {NOT_KEPT}")

    def _data(self, name: str) -> tuple[np.ndarray, Any]:
        if name in self.changed:
            return self.changed[name]
        tensor = self.tensors[name]
        return tensor.data, tensor.tensor_type


def _bytes_of(data: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(data).reshape(-1).view(np.uint8)


def _check_dispensable(name: str) -> None:
    """Refuse to leave out a fact that says more than who made the file.

    Raises:
        UnsupportedError: names it.
    """
    if not name.startswith("general."):
        raise UnsupportedError(
            f"the GGUF file has an empty list {name}, which cannot be copied: convert the base "
            "again"
        )
