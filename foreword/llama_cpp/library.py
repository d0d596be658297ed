"""C declarations of llama.cpp: the functions and parameters that foreword calls, checked at load.

In: the shared library in the `xllamacpp` wheel. Out: a `ctypes` handle with typed functions, or one
line that says why not. The library has no version of its interface: its own default parameters are
compared with what their declarations here make of them, field by field, before anything is called.
"""

import ctypes
import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foreword.errors import DependencyError

PACKAGE = "xllamacpp"
TESTED = "2026.10.11549"
MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ, which the library does not export
F32, F16 = 0, 1  # ggml types
NO_FLASH, FLASH = 0, 1
ROPE_NORM, ROPE_NEOX = 0, 2

_LogFunction = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class ModelParams(ctypes.Structure):
    """`llama_model_params`."""

    _fields_ = (
        ("devices", ctypes.c_void_p),
        ("tensor_buft_overrides", ctypes.c_void_p),
        ("n_gpu_layers", ctypes.c_int32),
        ("split_mode", ctypes.c_int32),
        ("load_mode", ctypes.c_int32),
        ("lazy_mode", ctypes.c_int32),
        ("main_gpu", ctypes.c_int32),
        ("tensor_split", ctypes.c_void_p),
        ("progress_callback", ctypes.c_void_p),
        ("progress_callback_user_data", ctypes.c_void_p),
        ("kv_overrides", ctypes.c_void_p),
        ("vocab_only", ctypes.c_bool),
        ("check_tensors", ctypes.c_bool),
        ("use_extra_bufts", ctypes.c_bool),
        ("no_host", ctypes.c_bool),
        ("no_alloc", ctypes.c_bool),
        ("load_mtp", ctypes.c_bool),
    )


class ContextParams(ctypes.Structure):
    """`llama_context_params`."""

    _fields_ = (
        ("n_ctx", ctypes.c_uint32),
        ("n_batch", ctypes.c_uint32),
        ("n_ubatch", ctypes.c_uint32),
        ("n_seq_max", ctypes.c_uint32),
        ("n_rs_seq", ctypes.c_uint32),
        ("n_outputs_max", ctypes.c_uint32),
        ("n_outputs_max_per_seq", ctypes.c_uint32),
        ("n_threads", ctypes.c_int32),
        ("n_threads_batch", ctypes.c_int32),
        ("ctx_type", ctypes.c_int32),
        ("rope_scaling_type", ctypes.c_int32),
        ("pooling_type", ctypes.c_int32),
        ("attention_type", ctypes.c_int32),
        ("flash_attn_type", ctypes.c_int32),
        ("rope_freq_base", ctypes.c_float),
        ("rope_freq_scale", ctypes.c_float),
        ("yarn_ext_factor", ctypes.c_float),
        ("yarn_attn_factor", ctypes.c_float),
        ("yarn_beta_fast", ctypes.c_float),
        ("yarn_beta_slow", ctypes.c_float),
        ("yarn_orig_ctx", ctypes.c_uint32),
        ("defrag_thold", ctypes.c_float),
        ("cb_eval", ctypes.c_void_p),
        ("cb_eval_user_data", ctypes.c_void_p),
        ("type_k", ctypes.c_int32),
        ("type_v", ctypes.c_int32),
        ("moe_cache_size", ctypes.c_size_t),
        ("abort_callback", ctypes.c_void_p),
        ("abort_callback_data", ctypes.c_void_p),
        ("embeddings", ctypes.c_bool),
        ("offload_kqv", ctypes.c_bool),
        ("no_perf", ctypes.c_bool),
        ("op_offload", ctypes.c_bool),
        ("swa_full", ctypes.c_bool),
        ("kv_unified", ctypes.c_bool),
        ("samplers", ctypes.c_void_p),
        ("n_samplers", ctypes.c_size_t),
        ("ctx_other", ctypes.c_void_p),
    )


class BatchStruct(ctypes.Structure):
    """`llama_batch`."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


_P, _I, _SIZE, _TEXT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_size_t, ctypes.c_char_p
_B = ctypes.c_bool
_DECLARED: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (_LogFunction, _P)),
    "llama_model_default_params": (ModelParams, ()),
    "llama_context_default_params": (ContextParams, ()),
    "llama_model_load_from_file": (_P, (_TEXT, ModelParams)),
    "llama_model_free": (None, (_P,)),
    "llama_model_get_vocab": (_P, (_P,)),
    "llama_model_rope_type": (_I, (_P,)),
    "llama_model_n_embd": (_I, (_P,)),
    "llama_model_n_layer": (_I, (_P,)),
    "llama_model_n_ctx_train": (_I, (_P,)),
    "llama_model_n_params": (ctypes.c_uint64, (_P,)),
    "llama_model_size": (ctypes.c_uint64, (_P,)),
    "llama_model_n_swa": (_I, (_P,)),
    "llama_model_is_recurrent": (ctypes.c_bool, (_P,)),
    "llama_model_is_hybrid": (ctypes.c_bool, (_P,)),
    "llama_model_has_encoder": (ctypes.c_bool, (_P,)),
    "llama_model_meta_val_str": (_I, (_P, _TEXT, _TEXT, _SIZE)),
    "llama_vocab_n_tokens": (_I, (_P,)),
    "llama_tokenize": (_I, (_P, _TEXT, _I, ctypes.POINTER(_I), _I, _B, _B)),
    "llama_vocab_get_add_bos": (_B, (_P,)),
    "llama_vocab_get_add_eos": (_B, (_P,)),
    "llama_vocab_get_add_sep": (_B, (_P,)),
    "llama_init_from_model": (_P, (_P, ContextParams)),
    "llama_free": (None, (_P,)),
    "llama_n_ctx": (ctypes.c_uint32, (_P,)),
    "llama_get_memory": (_P, (_P,)),
    "llama_memory_clear": (None, (_P, ctypes.c_bool)),
    "llama_memory_seq_rm": (ctypes.c_bool, (_P, _I, _I, _I)),
    "llama_memory_seq_cp": (None, (_P, _I, _I, _I, _I)),
    "llama_memory_seq_pos_max": (_I, (_P, _I)),
    "llama_decode": (_I, (_P, BatchStruct)),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), (_P, _I)),
    "llama_state_seq_get_size": (_SIZE, (_P, _I)),
    "llama_state_seq_get_data": (_SIZE, (_P, _P, _SIZE, _I)),
    "llama_state_seq_set_data": (_SIZE, (_P, _P, _SIZE, _I)),
    "llama_state_seq_save_file": (_SIZE, (_P, _TEXT, _I, ctypes.POINTER(_I), _SIZE)),
}

# What the defaults are, as far as they tell one field from the next.
_MODEL_DEFAULTS = {
    "devices": None, "tensor_buft_overrides": None, "n_gpu_layers": -1, "split_mode": 1,
    "main_gpu": 0, "tensor_split": None, "progress_callback": None, "kv_overrides": None,
    "vocab_only": False, "check_tensors": False, "use_extra_bufts": True, "no_host": False,
    "no_alloc": False,
}  # fmt: skip
_CONTEXT_DEFAULTS = {
    "n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_rs_seq": 0,
    "n_outputs_max": 0, "n_outputs_max_per_seq": 1, "ctx_type": 0, "rope_scaling_type": -1,
    "pooling_type": -1, "attention_type": -1, "flash_attn_type": -1, "rope_freq_base": 0.0,
    "rope_freq_scale": 0.0, "yarn_ext_factor": -1.0, "yarn_attn_factor": -1.0,
    "yarn_beta_fast": -1.0, "yarn_beta_slow": -1.0, "yarn_orig_ctx": 0, "defrag_thold": -1.0,
    "cb_eval": None, "cb_eval_user_data": None, "type_k": F16, "type_v": F16, "moe_cache_size": 0,
    "abort_callback": None, "abort_callback_data": None, "embeddings": False, "offload_kqv": True,
    "no_perf": True, "op_offload": True, "swa_full": True, "kv_unified": False, "samplers": None,
    "n_samplers": 0, "ctx_other": None,
}  # fmt: skip


class Library:
    """The loaded library: `call.llama_decode(...)` and the like; its own words are kept.

    Attributes:
        call: the handle, whose functions have their types.
    """

    def __init__(self, path: Path) -> None:
        self.call: Any = ctypes.CDLL(str(path))
        for name, (result, arguments) in _DECLARED.items():
            try:
                function = getattr(self.call, name)
            except AttributeError:
                raise _other_interface(f"it has no {name}") from None
            function.restype, function.argtypes = result, arguments
        self._check("llama_model_default_params", _MODEL_DEFAULTS)
        self._check("llama_context_default_params", _CONTEXT_DEFAULTS)
        self._said: list[str] = []
        self._log: Callable[..., None] = _LogFunction(self._hear)  # kept: the library calls it
        self.call.llama_log_set(self._log, None)
        self.call.llama_backend_init()

    def _check(self, function: str, expected: dict[str, Any]) -> None:
        found = getattr(self.call, function)()
        for name, value in expected.items():
            if (own := getattr(found, name)) != value:
                raise _other_interface(f"{function}().{name} is {own}, expected {value}")

    def _hear(self, level: int, text: bytes, _: object) -> None:
        if level == 4:  # GGML_LOG_LEVEL_ERROR
            self._said = [*self._said[-7:], text.decode(errors="replace").strip()]

    def take_errors(self) -> str:
        """Return what the library has said of errors since the last call, in one line."""
        said, self._said = self._said, []
        return " ".join(" ".join(said).split())[:500] or "it says no reason"


@functools.cache
def load() -> Library:
    """Return the library of the wheel.

    Raises:
        DependencyError: there is none, or its interface is another.
    """
    spec = importlib.util.find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    found = [path for place in places for path in Path(place).glob(f"{PACKAGE}*.so")]
    if not found:
        raise DependencyError(
            f"llama.cpp needs the {PACKAGE} wheel; install it: pip install 'foreword[llama]'"
        )
    try:
        return Library(found[0])
    except OSError as error:
        raise DependencyError(f"{found[0]} cannot be loaded ({error})") from error


def release() -> str:
    """Return the release of the wheel."""
    return importlib.metadata.version(PACKAGE)


def _other_interface(reason: str) -> DependencyError:
    return DependencyError(
        f"the {PACKAGE} wheel's llama.cpp has another interface ({reason}); tested: {TESTED}"
    )
