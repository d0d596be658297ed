"""llama.cpp model and context: weights from a GGUF file, and a unified KV cache of sequences.

In: a file; tokens or embeddings with their positions and sequences. Out: logits, and the states of
sequences as bytes. Sequences share cells of the cache: a copy of one is a mark on its cells, not a
copy of numbers. Models whose cache is more than keys and values of every token are refused by name.
"""

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foreword.errors import InputError, ModelError, StorageError, UnsupportedError
from foreword.llama_cpp import library
from foreword.os_calls import num_processors

# Families whose cached keys the tests compare with transformers' own, and whether each head's
# halves lie as neighbouring pairs there: so does `llama_model_rope_type` tell it.
FAMILIES = {
    "llama": library.ROPE_NORM,
    "qwen2": library.ROPE_NEOX,
    "qwen3": library.ROPE_NEOX,
}

_TYPES = {"f32": library.F32, "f16": library.F16}
_PASS_TOKENS = 128  # computed at once: attention's own memory grows with them


@dataclass(frozen=True)
class ContextOptions:
    """How a context computes and caches.

    Attributes:
        num_cells: tokens of all sequences together that the cache holds.
        num_sequences: sequences at once.
        cache_type: "f32" or "f16".
        has_flash_attention: whether attention is llama.cpp's fused kernel; without it, the values
            lie transposed in the cache, and the results are closer to transformers'.
        num_threads: of the processor.
        batch_tokens: of one pass, at most.

    Raises:
        UnsupportedError: a quantized cache.
    """

    num_cells: int = 4096
    num_sequences: int = 1
    cache_type: str = "f32"
    has_flash_attention: bool = False
    num_threads: int = field(default_factory=num_processors)
    batch_tokens: int = 512

    def __post_init__(self) -> None:
        if self.cache_type not in _TYPES:
            raise UnsupportedError(
                f"a cache of type {self.cache_type!r:.80} is not known to be exact: llama.cpp "
                "rotates and rounds the keys and values of quantized caches; take f16 or f32"
            )


class LlamaModel:
    """A GGUF file's weights.

    Args:
        path: the file.

    Raises:
        DependencyError: the library is missing, or another one. InputError: no model that it loads.
        UnsupportedError: a family, or a kind of cache, that is not known to be exact.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.library = library.load()
        self._call = self.library.call
        if not os.path.isfile(path):
            raise InputError(f"model file {self.path} does not exist; expected a .gguf file")
        params = self._call.llama_model_default_params()
        params.n_gpu_layers = 0
        self.pointer = self._call.llama_model_load_from_file(os.fsencode(path), params)
        if not self.pointer:
            said = self.library.take_errors()
            raise InputError(f"llama.cpp cannot load {self.path} ({said})")
        try:
            self._check()
        except UnsupportedError:
            self.close()
            raise

    def close(self) -> None:
        """Free the weights; contexts of them must be closed before."""
        if self.pointer:
            self._call.llama_model_free(self.pointer)
            self.pointer = None

    @property
    def family(self) -> str:
        """llama.cpp's name of the architecture."""
        return self.fact("general.architecture")

    @property
    def num_layers(self) -> int:
        """L."""
        return int(self._call.llama_model_n_layer(self.pointer))

    @property
    def hidden_size(self) -> int:
        """H."""
        return int(self._call.llama_model_n_embd(self.pointer))

    @property
    def vocab_size(self) -> int:
        """V."""
        vocabulary = self._call.llama_model_get_vocab(self.pointer)
        return int(self._call.llama_vocab_n_tokens(vocabulary))

    @property
    def adds_tokens(self) -> bool:
        """Whether llama.cpp puts a token before or behind every text by itself, as the file says
        or, where it says nothing, as llama.cpp does with a tokenizer of its kind.
        """
        call = self._call
        vocabulary = call.llama_model_get_vocab(self.pointer)
        asked = (
            call.llama_vocab_get_add_bos,
            call.llama_vocab_get_add_eos,
            call.llama_vocab_get_add_sep,
        )
        return any(one(vocabulary) for one in asked)

    @property
    def described(self) -> dict[str, int]:
        """Sizes by the names that llama-server gives them at `/v1/models`."""
        return {
            "n_vocab": self.vocab_size,
            "n_embd": self.hidden_size,
            "n_ctx_train": self.context_length,
            "n_params": int(self._call.llama_model_n_params(self.pointer)),
            "size": int(self._call.llama_model_size(self.pointer)),
        }

    @property
    def context_length(self) -> int:
        """Positions that the model was made for."""
        return int(self._call.llama_model_n_ctx_train(self.pointer))

    @property
    def has_paired_keys(self) -> bool:
        """Whether a key's halves lie as neighbouring pairs, each head's apart."""
        return FAMILIES[self.family] == library.ROPE_NORM

    def fact(self, key: str) -> str:
        """Return what the file says under a key, as text; empty where it says nothing."""
        buffer = ctypes.create_string_buffer(256)
        size = self._call.llama_model_meta_val_str(self.pointer, key.encode(), buffer, 256)
        return buffer.value.decode(errors="replace") if size >= 0 else ""

    def tokenize(self, text: str) -> list[int]:
        """Return the ids that llama-server reads a text as which its chat template wrote."""
        vocabulary = self._call.llama_model_get_vocab(self.pointer)
        data = text.encode()
        size = 2 * len(data) + 8  # a byte becomes a token or two at most
        ids = (ctypes.c_int32 * size)()
        found = self._call.llama_tokenize(vocabulary, data, len(data), ids, size, True, True)
        if found < 0:
            raise ModelError(f"{self.path}: llama.cpp makes no tokens of a text ({found})")
        return list(ids[:found])

    def _check(self) -> None:
        family, call = self.family, self._call
        for kind, is_so in (
            ("recurrent layers", call.llama_model_is_recurrent(self.pointer)),
            ("recurrent layers beside attention", call.llama_model_is_hybrid(self.pointer)),
            ("an encoder", call.llama_model_has_encoder(self.pointer)),
            ("a sliding window", call.llama_model_n_swa(self.pointer) > 0),
        ):
            if is_so:
                raise UnsupportedError(
                    f"{self.path}: the {family!r} model has {kind}, whose state llama.cpp does not "
                    "keep whole; use foreword's own engine with the model's checkpoint"
                )
        rope = call.llama_model_rope_type(self.pointer)
        if FAMILIES.get(family) != rope:
            known = ", ".join(FAMILIES)
            raise UnsupportedError(
                f"{self.path}: how llama.cpp caches the keys of the {family!r} family (rotation "
                f"{rope}) is not known exactly; known: {known}; use foreword's own engine"
            )


class LlamaContext:
    """A unified KV cache over a model, and passes through it. One thread at a time.

    Raises:
        ModelError: there is no memory for it.
    """

    def __init__(self, model: LlamaModel, options: ContextOptions) -> None:
        self.model, self.options = model, options
        self._call = model.library.call
        params = self._call.llama_context_default_params()
        params.n_ctx = options.num_cells
        # The library ends the process where a pass is smaller than the number of sequences.
        params.n_batch = max(options.batch_tokens, options.num_sequences)
        params.n_ubatch = max(min(options.batch_tokens, _PASS_TOKENS), options.num_sequences)
        params.n_seq_max = options.num_sequences
        params.n_outputs_max_per_seq = 0
        params.n_threads = params.n_threads_batch = options.num_threads
        params.type_k = params.type_v = _TYPES[options.cache_type]
        params.flash_attn_type = library.FLASH if options.has_flash_attention else library.NO_FLASH
        params.kv_unified = True
        self.pointer = self._call.llama_init_from_model(model.pointer, params)
        if not self.pointer:
            said = model.library.take_errors()
            raise ModelError(f"llama.cpp makes no context for {model.path} ({said})")
        self._memory = self._call.llama_get_memory(self.pointer)
        self._vocab_size = model.vocab_size

    def close(self) -> None:
        """Free the cache."""
        if self.pointer:
            self._call.llama_free(self.pointer)
            self.pointer = None

    @property
    def num_cells(self) -> int:
        """Tokens of all sequences together that the cache holds."""
        return int(self._call.llama_n_ctx(self.pointer))

    # Passes --------------------------------------------------------------------------------------

    def run(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        sequences: Sequence[int],
        wants_logits: Sequence[bool],
    ) -> np.ndarray:
        """Run tokens, each at its place of its sequence; return the logits `[N, V]` of those that
        want them, in order, as a copy.

        Raises:
            ModelError: the library fails, or the cache is full; nothing of the pass is kept.
        """
        ids = np.asarray(tokens, dtype=np.int32)
        batch = PassBatch(positions, sequences, wants_logits)
        batch.c.token = batch.pointer_to(ids, ctypes.c_int32)
        self._decode(batch)
        found = [index for index, is_wanted in enumerate(wants_logits) if is_wanted]
        logits = np.empty((len(found), self._vocab_size), dtype=np.float32)
        for row, index in enumerate(found):
            pointer = self._call.llama_get_logits_ith(self.pointer, index)
            if not pointer:
                raise ModelError("llama.cpp gives no logits")
            logits[row] = np.ctypeslib.as_array(pointer, (self._vocab_size,))
        return logits

    def run_embeddings(self, embeddings: np.ndarray, sequence: int) -> None:
        """Fill an empty sequence with embeddings `[P, H]`, at positions from 0.

        Raises:
            ModelError: as `run`.
        """
        for start in range(0, len(embeddings), self.options.batch_tokens):
            part = np.ascontiguousarray(
                embeddings[start : start + self.options.batch_tokens], dtype=np.float32
            )
            num = len(part)
            batch = PassBatch(range(start, start + num), [sequence] * num, [False] * num)
            batch.c.embd = batch.pointer_to(part, ctypes.c_float)
            self._decode(batch)

    def _decode(self, batch: "PassBatch") -> None:
        status = self._call.llama_decode(self.pointer, batch.c)
        if status:
            reason = "its cache is full" if status == 1 else self.model.library.take_errors()
            raise ModelError(f"llama.cpp failed at a pass ({status}: {reason})")

    # Sequences -----------------------------------------------------------------------------------

    def copy(self, source: int, target: int, length: int) -> None:
        """Let a sequence begin as another one's first tokens, whose cells both share then."""
        self._call.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def cut(self, sequence: int, length: int = 0) -> None:
        """Keep a sequence's first tokens only."""
        self._call.llama_memory_seq_rm(self._memory, sequence, length, -1)

    def length(self, sequence: int) -> int:
        """Return how many tokens a sequence holds."""
        return int(self._call.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def state(self, sequence: int) -> bytearray:
        """Return a sequence's state as the library writes it."""
        size = self._call.llama_state_seq_get_size(self.pointer, sequence)
        state = bytearray(size)
        found = self._call.llama_state_seq_get_data(self.pointer, _start(state), size, sequence)
        if not found or found != size:
            raise ModelError(f"llama.cpp gives no state ({self.model.library.take_errors()})")
        return state

    def restore(self, sequence: int, state: bytearray, num_tokens: int) -> None:
        """Fill an empty sequence with a state.

        Raises:
            ModelError: it is not taken, or not as so many tokens.
        """
        size = len(state)
        found = self._call.llama_state_seq_set_data(self.pointer, _start(state), size, sequence)
        if found != size or self.length(sequence) != num_tokens:
            self.cut(sequence)
            said = self.model.library.take_errors()
            raise ModelError(f"llama.cpp does not take the state of {num_tokens} tokens ({said})")

    def save_file(self, path: str | os.PathLike[str], sequence: int, ids: Sequence[int]) -> None:
        """Write a sequence's state and its ids to a file, as llama-server's slots are saved.

        Raises:
            StorageError: the library cannot write it.
        """
        array = (ctypes.c_int32 * len(ids))(*ids)
        written = self._call.llama_state_seq_save_file(
            self.pointer, os.fsencode(path), sequence, array, len(ids)
        )
        if not written or written != os.path.getsize(path):
            raise StorageError(f"{path}: llama.cpp cannot write it whole; is the disk full?")


class PassBatch:
    """A `llama_batch` and the memory that it points to."""

    def __init__(
        self, positions: Sequence[int], sequences: Sequence[int], wants_logits: Sequence[bool]
    ) -> None:
        num = len(positions)
        self._kept: list[Any] = []
        own = np.asarray(sequences, dtype=np.int32)
        first = self._address(own)
        pointers = (ctypes.POINTER(ctypes.c_int32) * num)(
            *(
                ctypes.cast(first + 4 * index, ctypes.POINTER(ctypes.c_int32))
                for index in range(num)
            )
        )
        self._kept.append(pointers)
        self.c = library.BatchStruct(
            n_tokens=num,
            pos=self.pointer_to(np.asarray(positions, dtype=np.int32), ctypes.c_int32),
            n_seq_id=self.pointer_to(np.ones(num, dtype=np.int32), ctypes.c_int32),
            seq_id=ctypes.cast(pointers, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            logits=self.pointer_to(np.asarray(wants_logits, dtype=np.int8), ctypes.c_int8),
        )

    def pointer_to(self, array: np.ndarray, kind: Any) -> Any:
        """Return a pointer to an array, which is kept."""
        self._kept.append(array)
        return array.ctypes.data_as(ctypes.POINTER(kind))

    def _address(self, array: np.ndarray) -> int:
        self._kept.append(array)
        return int(array.ctypes.data)


def _start(state: bytearray) -> Any:
    return (ctypes.c_uint8 * len(state)).from_buffer(state)
