"""llama.cpp state: a prompt as the state of a sequence, which stock `llama-server` restores.

In: a prompt and the GGUF file that it was trained on. Out: a slot file of `llama-server`, a chat
template that asks for it, and a sidecar that says what both belong to. Knows no HTTP.
"""

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword import chat
from foreword.backbone import Backbone
from foreword.errors import InputError, UnsupportedError
from foreword.export import chat_templates, state_ids
from foreword.export.targets import check_state, state_files
from foreword.llama_cpp import base, library, sequence_state
from foreword.llama_cpp.model import ContextOptions, LlamaContext, LlamaModel
from foreword.loading.gguf import ProgressCallback
from foreword.prompt.prefix import Prefix
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.storage import replacing, storage_errors

NOTHING_KEPT = "nothing was kept"


@dataclass(frozen=True)
class StateFile:
    """What was written.

    Attributes:
        path: the slot file.
        sidecar: what it belongs to, as JSON.
        template: the chat template that begins with the prompt's ids; None where the base has no
            template, or llama.cpp would read it otherwise than training did.
        facts: what the sidecar says.
        without_template: why there is no chat template; empty where there is one.
    """

    path: Path
    sidecar: Path
    template: Path | None
    facts: dict[str, Any]
    without_template: str = ""

    @property
    def ids(self) -> list[int]:
        """Ids of the P tokens."""
        return list(self.facts["ids"])


def export(
    prompt: SoftPrompt | Prefix,
    gguf: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    cache_type: str = "f16",
    has_flash_attention: bool = True,
    progress: ProgressCallback | None = None,
) -> StateFile:
    """Write a prompt's state for one base and one kind of cache.

    Keys and values are written as they are; embeddings are read by llama.cpp itself, once.

    Args:
        prompt: the prompt.
        gguf: the base's file.
        output: the slot file; beside it appear `.json` and `.jinja`; none of them is there yet.
        cache_type: "f16" or "f32", as the server's `--cache-type-k` and `--cache-type-v`.
        has_flash_attention: as the server's `--flash-attn`.
        progress: is told in a line of text about each step that takes seconds.

    Raises:
        MismatchError: a prompt of another base, or behind another chat template.
        UnsupportedError: a kind of cache or model whose state is not exact.
        DependencyError: no llama.cpp, or another one.
        InputError: no GGUF file, something is there, or too few control tokens.
        StorageError: no space or no permission; nothing is kept.
    """
    check_state(output)
    options = ContextOptions(
        max(256, prompt.num_virtual_tokens), 1, cache_type, has_flash_attention
    )
    library.load()
    path, sidecar, template_path = state_files(output)
    backbone = base.unloaded(gguf, progress)
    if isinstance(prompt, Prefix):
        prompt = SoftPrompt.from_states(prompt.cached, facts=prompt.facts)
    backbone.check(prompt)
    chat.check_template(backbone, prompt)
    num_virtual = prompt.num_virtual_tokens
    ids = state_ids.choose(backbone, prompt.content_hash, num_virtual, path)
    of_base: dict[str, Any] = {
        "gguf": Path(gguf).name,
        "sha256": base.sha256_of(gguf, progress),
        "fingerprint": backbone.fingerprint(),
    }
    facts = {
        "format": state_ids.FORMAT,
        "virtual_tokens": num_virtual,
        "ids": ids,
        "cache_type": cache_type,
        "flash_attention": has_flash_attention,
        "content_hash": prompt.content_hash,
        "base": of_base,
        "written_with": f"{library.PACKAGE} {library.release()}",
    }
    model = LlamaModel(Path(gguf).expanduser())
    try:
        of_base["meta"] = model.described  # what llama-server says of its model
        text, reason = "", ""
        try:
            text = _template(backbone, prompt, ids, model)
        except UnsupportedError as error:
            reason = str(error)
        template = None if reason else template_path
        context = LlamaContext(model, options)
        try:
            sequence_state.fill(context, 0, prompt)
            with contextlib.ExitStack() as files:  # all are whole before one of them appears
                files.enter_context(storage_errors(path, NOTHING_KEPT))
                path.parent.mkdir(parents=True, exist_ok=True)
                described = json.dumps(facts, indent=1) + "\n"
                files.enter_context(replacing(sidecar)).write_text(described, encoding="utf-8")
                if template is not None:
                    files.enter_context(replacing(template)).write_text(text, encoding="utf-8")
                context.save_file(files.enter_context(replacing(path)), 0, ids)
        finally:
            context.close()
    finally:
        model.close()
    return StateFile(path, sidecar, template, facts, reason)


def check_written(
    prompt: SoftPrompt,
    gguf: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    cache_type: str = "f16",
    has_flash_attention: bool = True,
) -> None:
    """Refuse a state that is there unless `export` would write it again.

    Raises:
        InputError: names what differs.
    """
    written = state_ids.read_facts(output)
    expected = {
        "content_hash": (prompt.content_hash, written.get("content_hash")),
        "base": (base.sha256_of(gguf), written["base"]["sha256"]),
        "cache_type": (cache_type, written.get("cache_type")),
        "flash_attention": (has_flash_attention, written.get("flash_attention")),
    }
    if found := [name for name, (one, other) in expected.items() if one != other]:
        raise InputError(
            f"{Path(output)} is there already, and is another state (they differ in "
            f"{', '.join(found)}): choose another --output"
        )


def _template(backbone: Backbone, prompt: SoftPrompt, ids: Sequence[int], model: LlamaModel) -> str:
    """Return a chat template that writes rows as the prompt's training did, behind the spelled ids.

    Raises:
        UnsupportedError: there is none, or llama.cpp would read other ids.
    """
    tokenizer, config = backbone.tokenizer, chat.encoding_of(prompt)
    if not tokenizer.chat_template:
        raise UnsupportedError("the base has none")
    if model.adds_tokens:
        raise UnsupportedError("llama.cpp puts a token before or behind every text of the base")
    written = chat_templates.body(backbone, config, "the prompt")
    spelled = "".join(tokenizer.convert_ids_to_tokens(list(ids)))
    escaped = spelled.replace("\\", "\\\\").replace("'", "\\'")
    template = f"{{{{- '{escaped}' }}}}{written}"
    rows = list(chat_templates.rows(backbone, config))
    for turns, expected in rows:
        text: Any = tokenizer.apply_chat_template(
            turns, chat_template=template, tokenize=False, add_generation_prompt=True
        )
        if model.tokenize(text) != [*ids, *expected]:
            raise UnsupportedError(
                "llama.cpp reads other tokens in its text than the prompt's training wrote, as "
                "where it puts a space behind special tokens (tokenizer.ggml.add_space_prefix)"
            )
    if not rows:
        raise UnsupportedError("it takes none of the conversations by which exports are compared")
    return template
