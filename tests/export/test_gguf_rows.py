"""Prompts as rows of a GGUF file's vocabulary: stock llama-server answers as the oracle."""

import json
import urllib.request
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gguf
import gguf_models
import numpy as np
import oracle
import pytest
import tiny_models
import torch
from gguf import GGMLQuantizationType as Kind
from own_cache import cache as cache
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, SoftPrompt
from foreword.chat import encode, encoding_of
from foreword.data.encoding import decode
from foreword.distillation.student import student_encoding
from foreword.errors import InputError, StorageError, UnsupportedError
from foreword.export import gguf_rows
from foreword.named_text import text_prompt

SYSTEM = [{"role": "system", "content": "Be brief."}]
P, NUM_NEW = 5, 8


def base_of(
    folder: Path,
    kind: Kind = Kind.F32,
    pre: str = "gpt-2",
    adds_start: bool | None = False,
    **changes: Any,
) -> tuple[Backbone, Path]:
    """Write a tiny model as GGUF; return it as foreword loads it."""
    tokenizer = tiny_tokenizer()
    model = tiny_models.build(
        "llama", dtype=torch.float32, vocab_size=len(tokenizer), eos_token_id=2, **changes
    )
    path = gguf_models.write(folder / "base.gguf", model, tokenizer, kind, pre, adds_start)
    return Backbone.load(str(path)), path


def prompt_of(backbone: Backbone, seed: int = 1) -> SoftPrompt:
    facts = {"base": {"fingerprint": backbone.fingerprint()}}
    return SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, P, seed), facts=facts)


def taught_by_a_text(backbone: Backbone) -> SoftPrompt:
    """Return a prompt behind which rows stand as behind a text."""
    encoding = student_encoding(backbone, text_prompt(backbone, "The lamp is red."), [])
    assert encoding.held_text is not None
    facts = {"base": {"fingerprint": backbone.fingerprint()}, "encoding": asdict(encoding)}
    return SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, P, 3), facts=facts)


def facts_of(path: Path) -> dict[str, Any]:
    reader = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}


@pytest.mark.parametrize("is_tied", [True, False])
def test_all_else_in_the_file_stays_as_it_is(is_tied: bool, tmp_path: Path) -> None:
    backbone, base = base_of(tmp_path, tie_word_embeddings=is_tied)
    prompts = {"home": prompt_of(backbone), "other": prompt_of(backbone, 2)}
    told = gguf_rows.export(prompts, str(base), tmp_path / "out.gguf")
    before, after = facts_of(base), facts_of(tmp_path / "out.gguf")
    num_old = len(before[gguf_rows.TOKENS])
    assert after[gguf_rows.TOKENS][:num_old] == before[gguf_rows.TOKENS]
    assert after[gguf_rows.TYPES][num_old:] == [gguf_rows.CONTROL] * 2 * P
    assert list(after[gguf_rows.SUPPRESSED]) == list(range(num_old, num_old + 2 * P))
    assert json.loads(after[gguf_rows.OWN]) == told
    changed = {gguf_rows.TOKENS, gguf_rows.TYPES, gguf_rows.SCORES, gguf_rows.TEMPLATE}
    for name, value in before.items():
        if name not in changed and not name.startswith("GGUF.") and "vocab_size" not in name:
            assert after[name] == value or name in gguf_rows.AROUND
    old, new = (
        {one.name: one for one in gguf.GGUFReader(path).tensors}
        for path in (base, tmp_path / "out.gguf")
    )
    assert set(new) == set(old) | {gguf_rows.HEAD}
    for name, tensor in old.items():
        assert np.array_equal(new[name].data[: len(tensor.data)], tensor.data)
    rows = torch.tensor(new[gguf_rows.TABLE].data[num_old : num_old + P])
    assert torch.equal(rows, prompts["home"].embeddings.float())


@pytest.mark.parametrize("adds_start", [True, False, None])
def test_nothing_stands_before_the_prompt_whatever_the_base_says(
    adds_start: bool | None, tmp_path: Path
) -> None:
    backbone, base = base_of(tmp_path, pre="llama-bpe", adds_start=adds_start)
    gguf_rows.export({"home": prompt_of(backbone)}, str(base), tmp_path / "out.gguf")
    after = facts_of(tmp_path / "out.gguf")
    assert [after[name] for name in gguf_rows.AROUND] == [False, False, False]


def test_a_quantized_table_says_what_it_said_and_the_rows_are_not_rounded(tmp_path: Path) -> None:
    backbone, base = base_of(
        tmp_path, Kind.Q8_0, tie_word_embeddings=True, hidden_size=64, intermediate_size=64
    )
    prompt = prompt_of(backbone)
    gguf_rows.export({"home": prompt}, str(base), tmp_path / "out.gguf")
    old, new = (
        {one.name: one for one in gguf.GGUFReader(path).tensors}
        for path in (base, tmp_path / "out.gguf")
    )
    table = new[gguf_rows.TABLE]
    assert table.tensor_type == Kind.F32
    said = gguf.quants.dequantize(old[gguf_rows.TABLE].data, old[gguf_rows.TABLE].tensor_type)
    assert np.array_equal(table.data[: len(said)], said)
    assert torch.equal(torch.tensor(table.data[len(said) :]), prompt.embeddings.float())
    head = new[gguf_rows.HEAD]
    assert head.tensor_type == old[gguf_rows.TABLE].tensor_type
    assert np.array_equal(head.data[: len(said)], old[gguf_rows.TABLE].data)


@pytest.mark.parametrize("alignment", [16, 64, 4096])
def test_tensors_lie_where_the_file_says(alignment: int, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_models.build("llama", dtype=torch.float32, vocab_size=len(tokenizer))
    base = gguf_models.write(tmp_path / "base.gguf", model, tokenizer, alignment=alignment)
    prompt = prompt_of(Backbone.load(str(base)))
    gguf_rows.export({"home": prompt}, str(base), tmp_path / "out.gguf")
    old, new = (gguf.GGUFReader(path) for path in (base, tmp_path / "out.gguf"))
    assert new.alignment == alignment
    found = {one.name: one for one in new.tensors}
    for one in old.tensors:
        assert not found[one.name].data_offset % alignment
        assert np.array_equal(found[one.name].data[: len(one.data)], one.data)


@pytest.mark.parametrize("kind", ["numbers", "tensors", "layout"])
def test_a_file_that_does_not_read_back_is_not_kept(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, base = base_of(tmp_path)
    write = gguf_rows._Copy.write

    def damaged(copy: gguf_rows._Copy) -> None:
        if kind == "layout":  # a file that says something else of its layout than the writer
            copy.writer.add_uint32("general.alignment", 4096)
        write(copy)
        if kind == "numbers":
            data = bytearray(copy.path.read_bytes())
            data[-3] ^= 1
            copy.path.write_bytes(data)
        elif kind == "tensors":
            del copy.tensors["output_norm.weight"]

    monkeypatch.setattr(gguf_rows._Copy, "write", damaged)
    with pytest.raises(StorageError, match=r"read.* back .*nothing was kept"):
        gguf_rows.export({"home": prompt_of(backbone)}, str(base), tmp_path / "out.gguf")
    assert {one.name for one in tmp_path.iterdir()} == {"base.gguf"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, base = base_of(tmp_path)

    def fill(copy: gguf_rows._Copy) -> None:
        with open("/dev/full", "wb") as file:
            copy._data(gguf_rows.TABLE)[0].tofile(file)  # as the gguf package writes

    monkeypatch.setattr(gguf_rows._Copy, "write", fill)
    with pytest.raises(StorageError, match=r"no space left on the device.*nothing was kept"):
        gguf_rows.export({"home": prompt_of(backbone)}, str(base), tmp_path / "out.gguf")
    assert {one.name for one in tmp_path.iterdir()} == {"base.gguf"}


@pytest.mark.parametrize("key", ["general.tags", "tokenizer.ggml.odd"])
def test_an_empty_list_is_left_out_or_refused_by_name(key: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_models.build("llama", dtype=torch.float32, vocab_size=len(tokenizer))
    base = gguf_models.write(tmp_path / "base.gguf", model, tokenizer, empty=key)
    prompts = {"home": prompt_of(Backbone.load(str(base)))}
    if key.startswith("general."):
        gguf_rows.export(prompts, str(base), tmp_path / "out.gguf")
        assert key not in facts_of(tmp_path / "out.gguf")
        return
    with pytest.raises(UnsupportedError, match=f"an empty list {key}"):
        gguf_rows.export(prompts, str(base), tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(("kind", "most"), [(Kind.F16, 65504), (Kind.F32, 3.4e38)])
def test_numbers_that_the_table_does_not_hold_are_refused(
    kind: Kind, most: float, tmp_path: Path
) -> None:
    backbone, base = base_of(tmp_path, kind)
    prompt = prompt_of(backbone)
    prompt.tensors[0] = prompt.tensors[0].double()
    prompt.tensors[0].data[0, 0] = 2 * most
    with pytest.raises(InputError, match="the prompt holds .*, and the file's table is of float"):
        gguf_rows.export({"home": prompt}, str(base), tmp_path / "out.gguf")
    assert {one.name for one in tmp_path.iterdir()} == {"base.gguf"}


def test_a_prompt_that_is_still_learned_is_written(tmp_path: Path) -> None:
    backbone, base = base_of(tmp_path)
    facts = gguf_rows.export({"home": prompt_of(backbone).trainable()}, str(base), tmp_path / "a")
    assert facts["prompts"][0]["name"] == "home"


@pytest.mark.parametrize("kind", ["there", "no gguf", "keys"])
def test_what_cannot_be_exported_is_refused(kind: str, tmp_path: Path) -> None:
    backbone, base = base_of(tmp_path)
    prompt, model, output = prompt_of(backbone), str(base), tmp_path / "out.gguf"
    if kind == "there":
        output.write_text("mine")
    elif kind == "no gguf":
        model = str(tmp_path)
    else:
        prompt = SoftPrompt.from_states(backbone.compile(prompt).cached, facts=prompt.facts)
    with pytest.raises(InputError):
        gguf_rows.export({"home": prompt}, model, output)
    assert {one.name for one in tmp_path.iterdir()} <= {"base.gguf", "out.gguf"}
    assert not output.exists() or output.read_text() == "mine"


def ask(address: str, body: dict[str, Any], path: str = "v1/chat/completions") -> dict[str, Any]:
    sent = urllib.request.Request(
        f"{address}/{path}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(sent, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def served_by(xllamacpp: Any, path: Path) -> Any:
    """Return an unmodified llama-server in this process."""
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(path), 512, 2
    params.use_jinja, params.warmup = True, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(params)


@pytest.mark.parametrize("adds_start", [True, False, None])
def test_stock_llama_server_reads_nothing_before_the_prompt(
    adds_start: bool | None, tmp_path: Path
) -> None:
    xllamacpp = pytest.importorskip("xllamacpp", reason="make test-export has llama.cpp")
    # llama.cpp itself puts a start token before texts of such a tokenizer.
    backbone, base = base_of(tmp_path, pre="llama-bpe", adds_start=adds_start)
    prompt = prompt_of(backbone)
    facts = gguf_rows.export({"home": prompt}, str(base), tmp_path / "out.gguf")
    server = served_by(xllamacpp, tmp_path / "out.gguf")
    turns = [{"role": "user", "content": "say a"}]
    asked = {"messages": turns, "max_tokens": 1}
    text = ask(server.listening_address, asked, "apply-template")["prompt"]
    body = {"content": text, "add_special": True, "parse_special": True}
    found = ask(server.listening_address, body, "tokenize")["tokens"]
    ids = encode(backbone, turns, encoding_of(prompt))[0]
    assert found == [*facts["prompts"][0]["ids"], *ids]
    used = ask(server.listening_address, asked)["usage"]
    assert used["prompt_tokens"] == len(found)


def test_stock_llama_server_answers_a_chat_request_as_the_oracle(tmp_path: Path) -> None:
    xllamacpp = pytest.importorskip("xllamacpp", reason="make test-export has llama.cpp")
    backbone, base = base_of(tmp_path)
    prompts: dict[str, SoftPrompt | None] = {
        "home": prompt_of(backbone), "other": prompt_of(backbone, 2), "base": None,
        "taught": taught_by_a_text(backbone),
    }  # fmt: skip
    named = {name: one for name, one in prompts.items() if one is not None}
    gguf_rows.export(named, str(base), tmp_path / "out.gguf")
    server = served_by(xllamacpp, tmp_path / "out.gguf")
    for text, before in (("say a", []), ("what is longer?", []), ("say b", SYSTEM)):
        turns = [*before, {"role": "user", "content": text}]
        for name, prompt in prompts.items():
            ids = encode(backbone, turns, encoding_of(prompt))[0]
            expected = oracle.greedy(backbone.model, prompt, torch.tensor(ids), NUM_NEW)
            expected = expected[: expected.index(2)] if 2 in expected else expected
            found = ask(
                server.listening_address,
                {
                    "messages": turns,
                    "max_tokens": NUM_NEW,
                    "temperature": 0,
                    "chat_template_kwargs": {"prompt": name},
                },
            )
            assert found["usage"]["prompt_tokens"] == len(ids) + (P if prompt else 0)
            said = found["choices"][0]["message"]["content"]
            # It writes halves of characters in another number of signs.
            assert letters(said) == letters(decode(expected, backbone.tokenizer)) != ""


def letters(text: str) -> str:
    return text.replace("\ufffd", "").strip()
