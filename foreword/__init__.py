"""Train soft prompts on a frozen language model and generate with any number of them, exactly.

The names below are the public interface. Importing the package imports no torch: each name is
loaded at first use.
"""

from typing import TYPE_CHECKING, Any

from foreword.lazy import lazy_names

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

_MODULES = {
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

_load, __dir__ = lazy_names(__name__, _MODULES)


def __getattr__(name: str) -> Any:
    if _MODULES.get(name) in ("backbone", "training.loop"):
        from foreword.compat import check_transformers

        check_transformers()
    return _load(name)
