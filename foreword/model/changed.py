"""Changed models: what of a model must stay as it was when it was inspected.

In: a model, and what it was. Out: nothing, or a refusal that says what has changed and what to do.
Weights are no part of it: they may change, and what was computed from them is computed again.
"""

from typing import Any

from torch.nn import Module

from foreword.errors import UnsupportedError
from foreword.model.capabilities import Capabilities, window_sizes

TRAINING = (
    "is in training mode, which draws dropout anew in each pass, and in which gradient "
    "checkpointing of transformers drops the prompt: call model.eval(). Gradients reach a prompt "
    "all the same, and `train` has gradient checkpointing of its own"
)
ANEW = "make a new one of the same model, Backbone(model, tokenizer)"


def check_settings(model: Any, capabilities: Capabilities) -> None:
    """Refuse a pass of a model that was switched to another attention, window, vocabulary or mode
    after it was inspected. Looks at no single layer.

    Raises:
        UnsupportedError: says what to do.
    """
    config = model.config.get_text_config(decoder=True)
    now = getattr(config, "own_attention", config._attn_implementation)  # of a view, the model's
    if now != capabilities.attention:
        raise UnsupportedError(
            f"the model's attention is {now!r} now, and was {capabilities.attention!r} when this "
            f"Backbone was made: {ANEW}, or set it back by "
            f"model.set_attn_implementation({capabilities.attention!r})"
        )
    for what, then, found in (
        ("vocabulary", capabilities.vocab_size, config.vocab_size),
        ("window", capabilities.window_sizes, window_sizes(config)),
    ):
        if then != found:
            raise UnsupportedError(
                f"the model's {what} has another size now, {_shown(found)}, than when this "
                f"Backbone was made, {_shown(then)}: {ANEW}"
            )
    if model.training:
        raise UnsupportedError(f"the model {TRAINING}")


def check_unchanged(model: Any, capabilities: Capabilities) -> None:
    """Refuse the same, and a layer that draws dropout or runs under gradient checkpointing.

    Raises:
        UnsupportedError: says what to do.
    """
    check_settings(model, capabilities)
    for part in model.modules():
        if part.training and _is_other_in_training(part):
            raise UnsupportedError(f"a {type(part).__name__} of the model {TRAINING}")


def _is_other_in_training(part: Module) -> bool:
    """Return whether a module does otherwise in training, as its own settings tell."""
    own = vars(part)
    if own.get("gradient_checkpointing"):
        return True
    names = [name for name in own if "drop" in name or "jitter" in name]
    names += ["p"] if "Dropout" in type(part).__name__ else []
    return any(isinstance(own.get(name), int | float) and own[name] > 0 for name in names)


def _shown(value: Any) -> str:
    return str(next(filter(None, value), None) if isinstance(value, tuple) else value)
