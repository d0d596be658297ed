"""Texts of exports as llama.cpp reads them: its own tokenizer beside foreword's ids."""

from pathlib import Path
from typing import Any

import gguf
import gguf_models
import pytest
import tiny_models
import torch
from own_cache import cache as cache
from sentence_pieces import SentencePieces, template
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, SoftPrompt, chat
from foreword.errors import UnsupportedError
from foreword.export import chat_templates, gguf_rows, llama_state

P = 3
BARE = "{% for m in messages %}{{ m['content'] }}[/INST]{% endfor %}"


def base_of(folder: Path, pieces: Any, adds_start: bool | None = None) -> tuple[Backbone, Path]:
    """Write a tiny model as GGUF; return it as foreword loads it."""
    tokens = pieces.tokens if isinstance(pieces, SentencePieces) else pieces
    model = tiny_models.build(
        "llama", dtype=torch.float32, vocab_size=len(tokens), eos_token_id=2, intermediate_size=64
    )
    path = gguf_models.write(folder / "base.gguf", model, pieces, adds_start=adds_start)
    return Backbone.load(str(path)), path


def prompt_of(backbone: Backbone, chat_template: str | None = None) -> SoftPrompt:
    facts: dict[str, Any] = {"base": {"fingerprint": backbone.fingerprint()}}
    if chat_template is not None:
        facts["encoding"] = {"chat_template": chat_template}
    return SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, P), facts=facts)


def texts(backbone: Backbone, written: str, **kwargs: Any) -> list[tuple[Any, str]]:
    """Return conversations, and what a template writes of them."""
    return [
        (turns, backbone.tokenizer.apply_chat_template(
            list(turns), chat_template=written, tokenize=False, add_generation_prompt=True, **kwargs
        ))
        for turns in chat_templates.CONVERSATIONS
    ]  # fmt: skip


def llama_cpp(path: Path) -> Any:
    pytest.importorskip("xllamacpp", reason="make test-export has llama.cpp")
    from foreword.llama_cpp.model import LlamaModel

    return LlamaModel(path)


@pytest.mark.parametrize("space", ["", " "])
@pytest.mark.parametrize("told", [None, True])
def test_llama_cpp_reads_an_exported_file_as_foreword_reads_rows(
    told: bool | None, space: str, tmp_path: Path
) -> None:
    backbone, base = base_of(tmp_path, SentencePieces(template(space), told))
    prompt, out = prompt_of(backbone), tmp_path / "out.gguf"
    [facts] = gguf_rows.export({"home": prompt}, str(base), out)["prompts"]
    fields = gguf.GGUFReader(out).fields
    assert fields["tokenizer.ggml.add_space_prefix"].contents() is False
    written = fields["tokenizer.chat_template"].contents()
    model = llama_cpp(out)
    for turns, text in texts(backbone, written):
        ids = chat.encode(backbone, list(turns), chat.encoding_of(prompt))[0]
        assert model.tokenize(text) == [*facts["ids"], *ids]
    for turns, text in texts(backbone, written, prompt="base"):
        assert model.tokenize(text) == chat.encode(backbone, list(turns), chat.encoding_of(None))[0]
    model.close()


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        (SentencePieces(BARE), "begins with text, before which SentencePiece puts a space"),
        (SentencePieces(template(" "), name="My Phi-3 mini"), "drops white space behind special"),
    ],
)
def test_texts_that_llama_cpp_would_read_otherwise_are_refused(
    pieces: SentencePieces, reason: str, tmp_path: Path
) -> None:
    backbone, base = base_of(tmp_path, pieces)
    prompt = prompt_of(backbone, template(" "))
    with pytest.raises(UnsupportedError, match=reason):
        gguf_rows.export({"home": prompt}, str(base), tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_a_template_that_takes_none_of_the_conversations_is_refused(tmp_path: Path) -> None:
    wants = "{{ raise_exception('no') if messages[0]['content'] != 'x' }}{{ bos_token }}"
    backbone, base = base_of(tmp_path, SentencePieces(wants))
    with pytest.raises(UnsupportedError, match="takes none of the conversations"):
        gguf_rows.export({"home": prompt_of(backbone)}, str(base), tmp_path / "out.gguf")


@pytest.mark.parametrize("kind", ["pieces", "bytes", "phi-3"])
def test_a_state_has_a_template_only_where_llama_cpp_reads_it_so(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="make test-export has llama.cpp")
    name = "phi3 of mine" if kind == "phi-3" else None
    pieces = SentencePieces(template(" "), name=name)
    backbone, base = base_of(
        tmp_path, tiny_tokenizer() if kind == "bytes" else pieces, adds_start=False
    )
    written = llama_state.export(prompt_of(backbone), base, tmp_path / "a.bin")
    assert (written.template is not None) == (kind == "bytes")
    if kind != "bytes":
        assert "llama.cpp reads other tokens" in written.without_template
        assert not (tmp_path / "a.bin.jinja").exists()
        return
    assert written.template is not None and not written.without_template
    model = llama_cpp(base)
    prompt = prompt_of(backbone)
    for turns, text in texts(backbone, written.template.read_text(encoding="utf-8")):
        ids = chat.encode(backbone, list(turns), chat.encoding_of(prompt))[0]
        assert model.tokenize(text) == [*written.ids, *ids]
    model.close()
