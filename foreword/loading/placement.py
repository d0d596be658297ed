"""Placement: where a model goes and in which numbers, checked before any of it is read.

In: a dtype, a device, and arguments of `from_pretrained`. Out: a device that is there, and the
arguments. Knows no model.
"""

from collections.abc import Mapping
from typing import Any

import torch

from foreword.compat.error_lines import telling_line
from foreword.errors import InputError, UnsupportedError

NOWHERE = frozenset({"disk", "meta"})
WHOLE = "exact passes need all of it in memory; take a smaller model, or more devices"


def device_of(device: Any) -> torch.device:
    """Return the device of a name; "auto" is the accelerator where there is one.

    Raises:
        InputError: it is none, or none of this machine. UnsupportedError: it holds no numbers.
    """
    if isinstance(device, str) and device == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        found = torch.device(device)
        if found.type != "meta":
            torch.empty(1, device=found)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError) as error:
        raise InputError(
            f"device: expected 'auto', 'cpu' or an accelerator of this machine, got {device!r} "
            f"({telling_line(error)})"
        ) from error
    if found.type == "meta":
        raise UnsupportedError(f"device='meta': a model there has no numbers; {WHOLE}")
    return found


def options_of(
    dtype: Any, device: Any, given: Mapping[str, Any]
) -> tuple[torch.device | None, dict[str, Any]]:
    """Return where a model goes once it is loaded, None where `from_pretrained` places it, and the
    arguments of that.

    Raises:
        InputError: no such device, one thing said twice, or a GGUF file that is not the model.
        UnsupportedError: layers in no memory.
    """
    options = dict(given)
    if "gguf_file" in options:
        raise InputError("gguf_file: give the path of the .gguf file as the model")
    if (older := options.pop("torch_dtype", None)) is not None:
        if dtype != "auto":
            raise InputError(f"dtype={dtype} and torch_dtype={older} are two names of one thing")
        dtype = older
    place = device_of(device)
    if (mapped := options.get("device_map")) is not None:
        if device != "auto":
            raise InputError(f"device={device} and device_map both say where it goes; give one")
        _refuse_nowhere(mapped.values() if isinstance(mapped, Mapping) else [mapped])
    if dtype == "auto" and place.type == "cpu":
        dtype = torch.float32
    return (None if mapped is not None else place), {"dtype": dtype, **options}


def check_placed(model: Any, name: str) -> None:
    """Refuse a model of which some layers are in no memory.

    Raises:
        UnsupportedError: names the first of its parameters that is not.
    """
    found = next((key for key, one in model.named_parameters() if one.is_meta), None)
    if found is not None:
        raise UnsupportedError(f"{name}: device_map leaves {found} on no device; {WHOLE}")


def _refuse_nowhere(places: Any) -> None:
    for place in places:
        if str(place) in NOWHERE:
            raise UnsupportedError(f"device_map: layers on {str(place)!r}; {WHOLE}")
