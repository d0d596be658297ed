"""llama.cpp state: a prompt as the state of a sequence, which stock `llama-server` restores.

In: a prompt and the GGUF file that it was trained on. Out: a slot file of `llama-server`, a chat
template that asks for it, and a sidecar that says what both belong to. The P tokens of the state
stand under ids that are made from the prompt's own hash: no text spells them, another prompt has
others, and so a server that says that it has them cached has this prompt's state. Knows no HTTP.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword import chat
from foreword.backbone import Backbone
from foreword.errors import InputError, UnsupportedError
from foreword.export import chat_templates
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
        InputError: no GGUF file, or something is there.
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
    ids = list(placeholder_ids(backbone.tokenizer, prompt.content_hash, num_virtual))
    of_base: dict[str, Any] = {
        "gguf": Path(gguf).name,
        "sha256": base.sha256_of(gguf, progress),
        "fingerprint": backbone.fingerprint(),
    }
    facts = {
        "format": "llama.cpp sequence state",
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
    written = read_facts(output)
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


def placeholder_ids(tokenizer: Any, content_hash: str, num_virtual: int) -> Iterator[int]:
    """Yield the ids under which a prompt's P tokens stand: control tokens, which no text spells, in
    an order that its hash chooses.

    Raises:
        InputError: the tokenizer has fewer than two control tokens.
    """
    control = sorted(id for id, token in tokenizer.added_tokens_decoder.items() if token.special)
    if len(control) < 2:
        raise InputError("the base's tokenizer has fewer than two control tokens to write under")
    for place in range(num_virtual):
        digest = hashlib.sha256(f"{content_hash} {place}".encode()).digest()
        yield control[int.from_bytes(digest[:8], "big") % len(control)]


def read_facts(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what the sidecar of a slot file says.

    Raises:
        InputError: there is none, or it does not say it.
    """
    sidecar = Path(f"{os.fspath(path)}.json")
    try:
        facts = json.loads(sidecar.read_text(encoding="utf-8"))
        ids, sha256 = facts["ids"], facts["base"]["sha256"]
        is_right = bool(ids) and all(type(one) is int for one in ids) and isinstance(sha256, str)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{sidecar}: no sidecar of a state that can be read ({error})") from None
    if not is_right:
        raise InputError(f"{sidecar}: its ids are no ids; export the prompt again")
    return dict(facts)


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
