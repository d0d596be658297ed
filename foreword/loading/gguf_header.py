"""GGUF header: what a GGUF file says of itself, and what transformers would lose of it.

In: a file, and the model that transformers makes of it. Out: nothing, or a refusal that names the
field or tensor which transformers does not take as the file means it: the model would be another
one. Knows no cache folder and reads no text.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.compat.error_lines import telling_line
from foreword.errors import DependencyError, InputError, UnsupportedError

ORIGINAL = "use the model's original checkpoint instead (a Hub id or a directory)"

# Fields of a family that llama.cpp computes with and transformers does not read, and the values at
# which they change nothing. None: the field is not there.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "rope.scaling.type": (None, "none"),
    "rope.scaling.factor": (None, 0, 1),
    "rope.scaling.attn_factor": (None, 0, 1),
    "rope.scale_linear": (None, 0, 1),
    "attention.scale": (None, 0),
    "attention.clamp_kqv": (None, 0),
    "attention.causal": (None, True),
    "attention.temperature_scale": (None, 0),
    "embedding_scale": (None, 0, 1),
    "residual_scale": (None, 0, 1),
    "logit_scale": (None, 0, 1),
    "router_logit_softcapping": (None, 0),
    "expert_weights_scale": (None, 0, 1),
}
# Fields that have to be what the configuration says in the end.
_CONFIGURED: Mapping[str, tuple[str, ...]] = {
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "layer_norm_epsilon", "norm_eps"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
}


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself.

    Attributes:
        path: as the user names it.
        fields: all of them.
        num_values: how many numbers each tensor has, by its name.
    """

    path: Path
    fields: Mapping[str, Any]
    num_values: Mapping[str, int]

    @property
    def family(self) -> str:
        """llama.cpp's name of the architecture."""
        return str(self.fields.get("general.architecture"))

    def of_family(self, key: str) -> Any:
        """Return a field of the architecture; None where it is not there."""
        return self.fields.get(f"{self.family}.{key}")

    def of_tokenizer(self, key: str) -> Any:
        """Return a field of the tokenizer; None where it is not there."""
        return self.fields.get(f"tokenizer.ggml.{key}")


def reader_class() -> Any:
    """Return the class of the gguf package that reads a file."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise DependencyError("a GGUF file needs the gguf package: pip install gguf") from None
    return GGUFReader


def read_header(alone: Path, path: Path) -> Header:
    """Read the header of a file's copy, and check that the copy is as long as the header says.

    Raises:
        InputError: it is no whole GGUF file.
    """
    reader_type = reader_class()
    try:
        reader = reader_type(alone)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (OSError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise InputError(
            f"{path} is not a whole GGUF file ({telling_line(error)}); download it again"
        ) from error
    sizes = {tensor.name: int(tensor.n_elements) for tensor in reader.tensors}
    return Header(path, fields, sizes)


def refuse_inexact(header: Header) -> None:
    """Refuse the files whose weights transformers would load as a model with other outputs.

    Raises:
        UnsupportedError: names what it would lose.
    """
    for name, neutral in _NEUTRAL.items():
        value = header.of_family(name)
        if value not in neutral:
            what = "scales its rotary positions" if name.startswith("rope.") else "is another model"
            raise UnsupportedError(
                f"{header.path} {what} ({header.family}.{name} is {value!r:.60}), which "
                f"transformers drops when it reads a GGUF file; {ORIGINAL}"
            )
    if any(name.startswith("rope_") for name in header.num_values):
        raise UnsupportedError(
            f"{header.path} scales its rotary positions, which transformers drops when it reads "
            f"a GGUF file; {ORIGINAL}"
        )


def refuse_other_model(header: Header, model: Any) -> None:
    """Refuse a model that is not the one of the file: tensors that transformers dropped, or a
    configuration with other values than the file's.

    Raises:
        UnsupportedError: names the tensor or the field.
    """
    _refuse_dropped(header, model)
    config = model.config
    told = {
        **{name: (header.of_family(name), _first(config, to)) for name, to in _CONFIGURED.items()},
        "rope.freq_base": (header.of_family("rope.freq_base"), _theta(config)),
        "rope.dimension_count": (header.of_family("rope.dimension_count"), _num_rotated(config)),
        "attention.sliding_window": (_window(header), getattr(config, "sliding_window", None)),
        # llama.cpp divides by the root of a head's size where no field says more.
        "attention.key_length": (
            header.of_family("attention.key_length"),
            getattr(config, "query_pre_attn_scalar", None),
        ),
    }
    for name, (theirs, ours) in told.items():
        is_missing = theirs is None or (ours is None and name != "attention.sliding_window")
        if not is_missing and not (ours is not None and _is_close(theirs, ours)):
            raise UnsupportedError(
                f"{header.path}: {header.family}.{name} is {theirs!r:.60}, and transformers makes "
                f"{ours!r:.60} of it when it reads a GGUF file; {ORIGINAL}"
            )


def _refuse_dropped(header: Header, model: Any) -> None:
    """Refuse a model with fewer numbers than the file: transformers skips tensors without a word
    that its class of the family does not have.
    """
    used = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}
    num_used, num_told = sum(used.values()), sum(header.num_values.values())
    if num_used == num_told:
        return
    known = _names_of(header, model)
    dropped = sorted(name for name in header.num_values if name not in known)
    one = f" (without {dropped[0]}, for one)" if dropped else ""
    raise UnsupportedError(
        f"{header.path} has {num_told:,} weights, and transformers makes a {header.family!r} model "
        f"with {num_used:,} of it{one}; {ORIGINAL}"
    )


def _names_of(header: Header, model: Any) -> set[str]:
    """Return the names that the gguf package gives a model's tensors."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    kinds = [kind for kind, name in MODEL_ARCH_NAMES.items() if name == header.family]
    if not kinds:
        return set()
    names = get_tensor_name_map(kinds[0], model.config.num_hidden_layers)
    endings = (".weight", ".bias")
    found = {names.get_name(name, try_suffixes=endings) for name in model.state_dict()}
    return {name for name in found if name is not None}


def _first(config: Any, names: tuple[str, ...]) -> Any:
    found = (getattr(config, name, None) for name in names)
    return next((value for value in found if value is not None), None)


def _theta(config: Any) -> Any:
    found = getattr(config, "rope_parameters", None) or {}
    return (found.get("full_attention") or found).get("rope_theta")


def _num_rotated(config: Any) -> Any:
    """Return how many numbers of a head are rotated; None where layers differ in it."""
    found = getattr(config, "rope_parameters", None)
    if not found or "rope_theta" not in found:
        return None
    own = getattr(config, "head_dim", None)
    size = own or config.hidden_size // config.num_attention_heads
    return int(size * (found.get("partial_rotary_factor") or 1))


def _window(header: Header) -> Any:
    """Return a file's window, where texts can be longer than it."""
    window, length = (
        header.of_family("attention.sliding_window"),
        header.of_family("context_length"),
    )
    is_one = isinstance(window, int) and isinstance(length, int) and 0 < window < length
    return window if is_one else None


def _is_close(one: Any, other: Any) -> bool:
    """Return whether two numbers are one, as far as 32 bits hold them."""
    try:
        return math.isclose(one, other, rel_tol=1e-6)
    except TypeError:
        return False
