"""Prompts as llama.cpp's own sequence states: what a restored state gives, and what is refused."""

import ctypes
import importlib.util
import json
import struct
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gguf_models
import numpy as np
import oracle
import pytest
import tiny_models
import torch
from own_cache import cache as cache
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, SoftPrompt, chat, text_prompt
from foreword.distillation.student import student_encoding
from foreword.errors import (
    DependencyError,
    InputError,
    MismatchError,
    StorageError,
    UnavailableError,
    UnsupportedError,
)
from foreword.export import llama_server, llama_state, state_ids, targets
from foreword.llama_cpp import library, sequence_state
from foreword.llama_cpp.model import ContextOptions, LlamaContext, LlamaModel

xllamacpp = pytest.importorskip("xllamacpp")

TOKENIZER = tiny_tokenizer()
P, NUM_NEW = 5, 8
IDS = [40, 71, 9, 88, 13, 60, 21]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llama")


def tiny(family: str, folder: Path, **changes: Any) -> tuple[Backbone, Path]:
    """Return a tiny model of a family in float32, and its GGUF file."""
    if family == "qwen3":
        changes["head_dim"] = 128  # transformers takes no other from a GGUF file
    model = tiny_models.build(
        family, dtype=torch.float32, vocab_size=len(TOKENIZER), eos_token_id=2, **changes
    )
    path = folder / f"{family}.gguf"
    if not path.exists():
        pre = "qwen2" if family.startswith("qwen") else "gpt-2"  # transformers knows it otherwise
        gguf_models.write(path, model, TOKENIZER, pre=pre)
    return Backbone(model, TOKENIZER, name="tiny"), path


@pytest.fixture(scope="module")
def llama(folder: Path) -> tuple[Backbone, Path]:
    return tiny("llama", folder)


def prompts(backbone: Backbone) -> dict[str, SoftPrompt]:
    """Return an embedding prompt, and a key/value prompt that no tokens make."""
    facts = {"base": backbone.identity()}
    embeddings = tiny_models.embeddings(backbone.model, P)
    prompt = SoftPrompt.from_embeddings(embeddings, facts=facts)
    generator = torch.Generator().manual_seed(3)
    noised = [
        [t + 0.3 * t.std() * torch.randn(t.shape, generator=generator) for t in pair]
        for pair in backbone.compile(prompt).key_values
    ]
    return {
        "embeddings": prompt,
        "key_values": SoftPrompt.from_key_values(noised, facts=facts),
    }


def restored(context: LlamaContext, path: Path) -> list[int]:
    """Restore a file by the library's own function, as llama-server does; return its ids."""
    load = library.load().call.llama_state_seq_load_file
    load.restype = ctypes.c_size_t
    load.argtypes = [
        ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.POINTER(ctypes.c_int32),
        ctypes.c_size_t, ctypes.POINTER(ctypes.c_size_t),
    ]  # fmt: skip
    ids, count = (ctypes.c_int32 * 64)(), ctypes.c_size_t()
    size = load(context.pointer, str(path).encode(), 0, ids, 64, ctypes.byref(count))
    assert size == path.stat().st_size
    return list(ids[: count.value])


def greedy(context: LlamaContext, start: int, ids: list[int], num_new: int = NUM_NEW) -> list[int]:
    """Return the likeliest ids behind a sequence that holds so many tokens."""
    found: list[int] = []
    while len(found) < num_new:
        new = ids if not found else found[-1:]
        length = context.length(0)
        assert length == start + (len(ids) + len(found) - 1 if found else 0)
        wanted = [False] * (len(new) - 1) + [True]
        places = range(length, length + len(new))
        logits = context.run(new, places, [0] * len(new), wanted)
        found.append(int(logits[0].argmax()))
    return found


@pytest.mark.parametrize("form", ["key_values", "embeddings"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_restored_state_answers_as_the_oracle(family: str, form: str, folder: Path) -> None:
    backbone, gguf = tiny(family, folder)
    prompt = prompts(backbone)[form]
    expected = oracle.row_logits(backbone.model, prompt, torch.tensor(IDS)).detach().numpy()
    model = LlamaModel(gguf)
    for cache_type, has_flash, tolerance in (("f32", False, 1e-4), ("f16", True, 0.05)):
        written = llama_state.export(
            prompt,
            gguf,
            folder / f"{family}-{form}-{cache_type}.bin",
            cache_type=cache_type,
            has_flash_attention=has_flash,
        )
        context = LlamaContext(model, ContextOptions(256, 2, cache_type, has_flash))
        assert restored(context, written.path) == written.ids
        found = context.run(IDS, range(P, P + len(IDS)), [0] * len(IDS), [True] * len(IDS))
        assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()
        if cache_type == "f32":
            context.cut(0, P)
            answer = oracle.greedy(backbone.model, prompt, torch.tensor(IDS), NUM_NEW)
            assert greedy(context, P, IDS) == answer
        context.close()
    model.close()


def test_the_file_is_laid_out_as_described(llama: tuple[Backbone, Path], folder: Path) -> None:
    """The layout that docs describe, read by hand: keys after rotation, halves as pairs."""
    backbone, gguf = llama
    prompt = prompts(backbone)["key_values"]
    for cache_type, has_flash, dtype in (("f32", False, "<f4"), ("f16", True, "<f2")):
        written = llama_state.export(
            prompt,
            gguf,
            folder / f"b-{cache_type}.bin",
            cache_type=cache_type,
            has_flash_attention=has_flash,
        )
        data = written.path.read_bytes()
        head = struct.unpack_from(f"<III{P}i", data)
        assert head[:3] == (0x67677371, 4, P) and list(head[3:]) == written.ids
        at = 12 + 4 * P
        assert struct.unpack_from("<II", data, at) == (1, P)
        cells = struct.unpack_from("<" + "iIi" * P, data, at + 8)
        assert cells[::3] == tuple(range(P)) and set(cells[1::3]) == {1}
        at += 8 + 12 * P
        num_layers = len(prompt.key_values)
        assert struct.unpack_from("<IIII", data, at) == (int(not has_flash), num_layers, 0, 0)
        at += 16
        size = np.dtype(dtype).itemsize
        for keys, _ in prompt.key_values:
            heads, _, width = keys.shape
            row = heads * width * size
            assert struct.unpack_from("<IQ", data, at) == (int(cache_type == "f16"), row)
            own = np.frombuffer(data, dtype, P * heads * width, at + 12).reshape(P, heads, width)
            pairs = keys.numpy().swapaxes(0, 1).reshape(P, heads, 2, width // 2).swapaxes(2, 3)
            assert np.array_equal(own, pairs.reshape(own.shape).astype(dtype))
            at += 12 + P * row
        for _, values in prompt.key_values:
            heads, _, width = values.shape
            plain = values.numpy().swapaxes(0, 1).reshape(P, -1).astype(dtype)
            own = np.frombuffer(data, dtype, plain.size, at + 12)
            shape = plain.shape if has_flash else plain.shape[::-1]
            assert np.array_equal(own.reshape(shape), plain if has_flash else plain.T)
            at += 12 + plain.nbytes
        assert at == len(data)


@pytest.fixture(scope="module")
def stock(llama: tuple[Backbone, Path], folder: Path) -> Iterator[tuple[str, Path]]:
    """An unmodified llama-server in this process; its address and its folder of slots."""
    slots = folder / "slots"
    slots.mkdir()
    params = xllamacpp.CommonParams()
    params.model.path = str(llama[1])
    params.n_ctx, params.n_parallel, params.kv_unified, params.port = 512, 2, True, 0
    params.slot_save_path, params.warmup, params.endpoint_props = f"{slots}/", False, True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    yield server.listening_address, slots
    del server


def test_stock_llama_server_restores_it(
    llama: tuple[Backbone, Path], stock: tuple[str, Path]
) -> None:
    (backbone, gguf), (url, slots) = llama, stock
    server = llama_server._Server(url, None)
    asked = {"n_predict": 4, "temperature": 0, "cache_prompt": True, "return_tokens": True}
    for slot, (form, prompt) in enumerate(prompts(backbone).items()):
        written = llama_state.export(prompt, gguf, slots / f"{form}.bin")
        ids = [*written.ids, *IDS]
        bare = server.ask("/completion", asked | {"prompt": ids, "id_slot": slot})
        with pytest.raises(UnavailableError, match="without the prompt; restore the slot"):
            llama_server.check_cached(bare, P, "here")
        assert llama_server.restore(url, written.path, slot=slot) == P
        answer = server.ask("/completion", asked | {"prompt": ids, "id_slot": slot})
        assert llama_server.check_cached(answer, P, "here") >= P
        expected = oracle.greedy(backbone.model, prompt, torch.tensor(IDS), 4)
        assert answer["tokens"] == expected != bare["tokens"]


def test_restoring_on_another_base_is_refused(
    llama: tuple[Backbone, Path], stock: tuple[str, Path], folder: Path
) -> None:
    other = tiny("llama", folder / "slots", seed=5)
    written = llama_state.export(prompts(other[0])["key_values"], other[1], stock[1] / "other.bin")
    with pytest.raises(MismatchError, match=r"serves .*llama.gguf, another file"):
        llama_server.restore(stock[0], written.path)
    (stock[1] / "none.bin.json").write_text("{}")
    with pytest.raises(InputError, match="no sidecar"):
        llama_server.restore(stock[0], stock[1] / "none.bin")


def test_the_template_begins_with_the_ids(llama: tuple[Backbone, Path], folder: Path) -> None:
    backbone, gguf = llama
    written = llama_state.export(prompts(backbone)["embeddings"], gguf, folder / "c.bin")
    assert written.template is not None
    template = written.template.read_text()
    found = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": "a"}], chat_template=template, return_dict=False
    )
    plain = TOKENIZER.apply_chat_template([{"role": "user", "content": "a"}], return_dict=False)
    assert found == [*written.ids, *plain]


@pytest.mark.parametrize(
    ("pre", "adds_start", "has_template"),
    [
        ("gpt-2", None, True),
        ("gpt-2", True, False),
        ("llama-bpe", None, False),  # llama.cpp puts the start token there by itself
        ("llama-bpe", True, False),
        ("llama-bpe", False, True),
    ],
)
def test_no_template_where_llama_cpp_puts_a_token_before_the_ids(
    pre: str, adds_start: bool | None, has_template: bool, tmp_path: Path
) -> None:
    model = tiny_models.build(
        "llama", dtype=torch.float32, vocab_size=len(TOKENIZER), eos_token_id=2
    )
    path = gguf_models.write(
        tmp_path / "base.gguf", model, TOKENIZER, pre=pre, adds_start=adds_start
    )
    prompt = prompts(Backbone(model, TOKENIZER, name="tiny"))["embeddings"]
    written = llama_state.export(prompt, path, tmp_path / "a.bin")
    assert (written.template is not None) == has_template
    assert (tmp_path / "a.bin.jinja").exists() == has_template


def test_the_template_writes_rows_as_they_stand_behind_the_prompt(
    llama: tuple[Backbone, Path], folder: Path
) -> None:
    backbone, gguf = llama
    turns = [{"role": "user", "content": "a"}]
    text = text_prompt(backbone, "Be brief, and say where it is.")
    for number, encoding in enumerate(
        (
            asdict(chat.encoding_of(text)),
            asdict(student_encoding(backbone, text, [turns])),
            {"row_template": "Q: {prompt}\nA:", "is_text": False},
        )
    ):
        plain = prompts(backbone)["embeddings"]
        prompt = plain.replaced(plain.tensors, plain.facts | {"encoding": encoding})
        written = llama_state.export(prompt, gguf, folder / f"rows-{number}.bin")
        assert written.template is not None
        found = TOKENIZER.apply_chat_template(
            turns, chat_template=written.template.read_text(), return_dict=False,
            add_generation_prompt=True,
        )  # fmt: skip
        rows = chat.encode(backbone, turns, chat.encoding_of(prompt))[0]
        assert found == [*written.ids, *rows]


def test_what_does_not_belong_is_refused(
    llama: tuple[Backbone, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, gguf = llama
    prompt = prompts(backbone)["key_values"]
    output = folder / "refused.bin"
    with pytest.raises(UnsupportedError, match="rotates and rounds"):
        llama_state.export(prompt, gguf, output, cache_type="q8_0")
    stranger, _ = tiny("qwen2", folder)
    with pytest.raises(MismatchError, match="they differ in"):
        llama_state.export(prompts(stranger)["key_values"], gguf, output)
    huge = prompt.replaced([tensor * 1e6 for tensor in prompt.tensors])
    with pytest.raises(InputError, match="more than a cache of float16"):
        llama_state.export(huge, gguf, output)
    with pytest.raises(InputError, match="reads a .gguf file"):
        llama_state.export(prompt, folder, output)
    (folder / "a file").write_text("")
    with pytest.raises(StorageError, match="nothing was kept"):
        llama_state.export(prompt, gguf, folder / "a file" / "a.bin")
    assert not list(folder.glob("*refused*"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    library.load.cache_clear()
    with pytest.raises(DependencyError, match=r"pip install 'foreword\[llama\]'"):
        llama_state.export(prompt, gguf, output)
    library.load.cache_clear()


@pytest.mark.parametrize("ending", ["", ".json", ".jinja"])
def test_nothing_that_is_there_is_written_over(
    llama: tuple[Backbone, Path], tmp_path: Path, ending: str
) -> None:
    backbone, gguf = llama
    there = tmp_path / f"there.bin{ending}"
    there.write_text("mine")
    prompt = prompts(backbone)["key_values"]
    for ask in (
        lambda: llama_state.export(prompt, gguf, tmp_path / "there.bin"),
        lambda: targets.check_state(tmp_path / "there.bin"),  # what the command asks first
    ):
        with pytest.raises(InputError, match=f"there.bin{ending} is there already"):
            ask()
    assert there.read_text() == "mine" and list(tmp_path.iterdir()) == [there]
    with pytest.raises(InputError, match=r"llama.gguf is there already"):
        llama_state.export(prompt, gguf, gguf)


def test_a_state_that_is_there_is_restored_only_where_it_would_be_written_again(
    llama: tuple[Backbone, Path], tmp_path: Path
) -> None:
    backbone, gguf = llama
    one, other = prompts(backbone).values()
    output = tmp_path / "new" / "folder" / "there.bin"
    llama_state.export(one, gguf, output)
    llama_state.check_written(one, gguf, output)
    with pytest.raises(InputError, match=r"another state \(they differ in content_hash\)"):
        llama_state.check_written(other, gguf, output)
    with pytest.raises(InputError, match="they differ in cache_type, flash_attention"):
        llama_state.check_written(one, gguf, output, cache_type="f32", has_flash_attention=False)


@pytest.mark.parametrize(
    ("family", "written_as", "reason"),
    [
        ("gemma2", None, "has a sliding window, whose state llama.cpp does not keep whole"),
        ("llama", "internlm2", "caches the keys of the 'internlm2' family .* is not known exactly"),
    ],
)
def test_other_caches_are_refused_by_name(
    family: str, written_as: str | None, reason: str, folder: Path
) -> None:
    model = tiny_models.build(family, dtype=torch.float32, vocab_size=len(TOKENIZER))
    path = gguf_models.write(folder / "odd.gguf", model, TOKENIZER, family=written_as)
    with pytest.raises(UnsupportedError, match=reason):
        LlamaModel(path)


def test_another_layout_is_refused(llama: tuple[Backbone, Path]) -> None:
    model = LlamaModel(llama[1])
    context = LlamaContext(model, ContextOptions(256))
    context.run([1, 1], [0, 1], [0, 0], [False, False])
    state = context.state(0)
    for place in (8, 12, 44):
        changed = bytearray(state)
        changed[place] ^= 2
        with pytest.raises(UnsupportedError, match="lays the state of a sequence out otherwise"):
            sequence_state._fields(changed, 2)
    with pytest.raises(UnsupportedError, match="it ends early"):
        sequence_state._fields(state[:-4], 2)
    context.close()
    model.close()


def test_a_library_of_another_interface_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(library._CONTEXT_DEFAULTS, "n_ctx", 513)
    library.load.cache_clear()
    with pytest.raises(DependencyError, match=r"n_ctx is 512, expected 513\); tested: "):
        library.load()
    library.load.cache_clear()


def test_the_sidecar_names_the_base(llama: tuple[Backbone, Path], folder: Path) -> None:
    backbone, gguf = llama
    written = llama_state.export(prompts(backbone)["embeddings"], gguf, folder / "d.bin")
    facts = json.loads(written.sidecar.read_text())
    assert facts == written.facts == state_ids.read_facts(written.path)
    assert facts["base"]["fingerprint"] == backbone.fingerprint()
    assert facts["virtual_tokens"] == len(facts["ids"]) == P
