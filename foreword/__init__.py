"""Train soft prompts on a frozen language model and generate with any number of them, exactly.

The names below are the public interface. Importing the package imports no torch: each name is
loaded at first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from foreword.compat import check_transformers

__version__ = "0.1.0"

if TYPE_CHECKING:
    from foreword.backbone import Backbone
    from foreword.config import EncodingConfig, TrainConfig
    from foreword.data.encoding import Row
    from foreword.data.examples import Example, read_examples
    from foreword.errors import ForewordError
    from foreword.prompt.prefix import Prefix
    from foreword.prompt.soft_prompt import SoftPrompt
    from foreword.training.loop import TrainEvent, train

_HOMES = {
    "Backbone": "backbone",
    "EncodingConfig": "config",
    "Example": "data.examples",
    "ForewordError": "errors",
    "Prefix": "prompt.prefix",
    "Row": "data.encoding",
    "SoftPrompt": "prompt.soft_prompt",
    "TrainConfig": "config",
    "TrainEvent": "training.loop",
    "read_examples": "data.examples",
    "train": "training.loop",
}
_NEED_TRANSFORMERS = ("backbone", "training.loop")
__all__ = [
    "Backbone",
    "EncodingConfig",
    "Example",
    "ForewordError",
    "Prefix",
    "Row",
    "SoftPrompt",
    "TrainConfig",
    "TrainEvent",
    "read_examples",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'foreword' has no attribute {name!r}")
    if _HOMES[name] in _NEED_TRANSFORMERS:
        check_transformers()
    return getattr(importlib.import_module(f"foreword.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
