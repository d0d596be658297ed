"""Quantized bases: what a quantized model needs before a prompt can be trained on it.

In: a frozen transformers model. Out: the same model with the same values, through which a gradient
passes, and its size before and after. Knows the marks that quantization libraries leave on modules,
but imports none of them: a model that carries a mark brings its library. Knows no prompt.
"""

import logging
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

log = logging.getLogger("foreword")


@dataclass(frozen=True)
class Quantization:
    """How a base's weights are stored.

    Attributes:
        method: transformers' name of it, as "compressed-tensors".
        num_bytes_loaded: size of weights and buffers as they were loaded.
        num_bytes: their size in use; larger where the base unpacks itself.
        num_straight: modules whose rounding of activations lets the gradient pass.
    """

    method: str
    num_bytes_loaded: int
    num_bytes: int
    num_straight: int


def prepare(model: Any) -> Quantization | None:
    """Unpack a base that unpacks itself on first use, and keep its gradient alive; None for a base
    that is not quantized.
    """
    config = getattr(model.config, "quantization_config", None)
    if config is None:
        return None
    loaded = num_bytes(model)
    _unpack(model)
    method = config.get("quant_method") if isinstance(config, dict) else config.quant_method
    used = num_bytes(model)
    if used > loaded:
        log.warning(
            "the base unpacks its weights on first use: %s bytes loaded, %s in use",
            f"{loaded:,}",
            f"{used:,}",
        )
    straight = sum(_round_straight_through(module) for module in model.modules())
    for module in model.modules():
        _keep_unpacked(module)
    return Quantization(str(getattr(method, "value", method)), loaded, used, straight)


def num_bytes(model: Module) -> int:
    """Return the size of all parameters and buffers in bytes."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())


def _unpack(model: Any) -> None:
    """Run the model once where its library unpacks the weights in a hook of the first run."""
    if hasattr(model, "ct_decompress_hook"):
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device))


def _round_straight_through(module: Any) -> bool:
    """Round a module's input as compressed-tensors does, with the gradient of the identity.

    Its own rounding stops the gradient. The straight-through estimator: Bengio et al. 2013,
    arXiv:1308.3432, section 4.
    """
    arguments = getattr(getattr(module, "quantization_scheme", None), "input_activations", None)
    if arguments is None or not getattr(module, "quantization_enabled", True):
        return False
    library = sys.modules["compressed_tensors.quantization.lifecycle.forward"]

    def round_input(module: Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rounded = library.forward_quantize(module, args[0].detach(), "input", arguments)
        return (args[0] + (rounded - args[0]).detach(), *args[1:])

    module.quantization_enabled = False  # the weights are unpacked and on their grid already
    module.register_forward_pre_hook(round_input)
    return True


def _keep_unpacked(module: Any) -> None:
    """Keep bitsandbytes from packing 4-bit weights for a kernel that has no gradient."""
    if getattr(module, "support_avx512bf16_for_cpu", False):
        module.support_avx512bf16_for_cpu = False
