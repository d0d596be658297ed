"""GGUF files of transformers models in memory, written tensor by tensor, to run by llama.cpp.

Names are the gguf package's own; queries and keys of the llama family are permuted, as every
converter does, since llama.cpp rotates neighbouring pairs there.
"""

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFValueType as ValueType
from sentence_pieces import SentencePieces

FAMILIES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
}
PERMUTED = ("llama", "mistral")


class _Writer(gguf.GGUFWriter):
    """Writes empty lists too, as other converters do."""

    def _pack_val(self, val: Any, vtype: Any, *args: Any, **kwargs: Any) -> bytes:
        if vtype == ValueType.ARRAY and not val:
            return struct.pack("<IIQ", ValueType.ARRAY, ValueType.STRING, 0)
        return bytes(super()._pack_val(val, vtype, *args, **kwargs))


def write(
    path: Path,
    model: Any,
    tokenizer: Any,
    kind: Kind = Kind.F32,
    pre: str = "gpt-2",
    adds_start: bool | None = False,
    empty: str | None = None,
    family: str | None = None,
    alignment: int | None = None,
) -> Path:
    """Write a model and its tokenizer, byte-level or `SentencePieces`; matrices in `kind`, all else
    in float32.

    `adds_start`: what the file says of a start token before every text; None: nothing. `empty`: a
    key of an empty list.
    """
    config = model.config
    family = family or FAMILIES[config.model_type]
    writer = _Writer(path, family)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if getattr(config, "sliding_window", None) and family != "llama":
        writer.add_sliding_window(config.sliding_window)
    writer.add_vocab_size(config.vocab_size)
    if isinstance(tokenizer, SentencePieces):
        tokenizer.add_to(writer)
    else:
        _add_tokenizer(writer, tokenizer, pre)
    if adds_start is not None:
        writer.add_add_bos_token(adds_start)
    if empty is not None:
        writer.add_key_value(empty, [], ValueType.ARRAY, ValueType.STRING)
    architecture = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and (config.tie_word_embeddings or family == "gemma2"):
            continue
        values = tensor.detach().float().numpy()
        if config.model_type in PERMUTED and ".q_proj." in name:
            values = permuted(values, heads)
        if config.model_type in PERMUTED and ".k_proj." in name:
            values = permuted(values, config.num_key_value_heads)
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert known is not None, name
        if values.ndim < 2 or kind == Kind.F32:
            writer.add_tensor(known, np.ascontiguousarray(values))
        else:
            writer.add_tensor(known, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def permuted(values: np.ndarray, num_heads: int) -> np.ndarray:
    """Return rows of heads whose halves become neighbouring pairs."""
    halves = values.reshape(num_heads, 2, -1, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, pre: str) -> None:
    backend = tokenizer.backend_tokenizer
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    merges = json.loads(backend.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
