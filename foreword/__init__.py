"""Train soft prompts on a frozen language model and generate with any number of them, exactly.

The names below are the public interface. Importing the package imports no torch: each name is
loaded at first use.
"""

from typing import TYPE_CHECKING, Any

from foreword.lazy import lazy_names

__version__ = "0.1.0"

if TYPE_CHECKING:
    from foreword.answering import answer, stream
    from foreword.backbone import Backbone
    from foreword.config import DistillConfig, EncodingConfig, TrainConfig
    from foreword.data.encoding import Row
    from foreword.data.examples import Example, read_examples
    from foreword.distillation.composition import compose
    from foreword.distillation.run import distill
    from foreword.errors import ForewordError
    from foreword.named_text import text_prompt
    from foreword.prompt.prefix import Prefix
    from foreword.prompt.soft_prompt import SoftPrompt
    from foreword.training.loop import TrainEvent, train

__all__ = [
    "Backbone",
    "DistillConfig",
    "EncodingConfig",
    "Example",
    "ForewordError",
    "Prefix",
    "Row",
    "SoftPrompt",
    "TrainConfig",
    "TrainEvent",
    "answer",
    "compose",
    "distill",
    "read_examples",
    "stream",
    "text_prompt",
    "train",
]

ON_TRANSFORMERS = (
    "Backbone", "TrainEvent", "answer", "compose", "distill", "stream", "text_prompt", "train"
)  # fmt: skip

_load, __dir__ = lazy_names(
    __name__,
    answering="answer stream",
    backbone="Backbone",
    config="DistillConfig EncodingConfig TrainConfig",
    errors="ForewordError",
    **{
        "data.encoding": "Row",
        "data.examples": "Example read_examples",
        "distillation.composition": "compose",
        "distillation.run": "distill",
        "named_text": "text_prompt",
        "prompt.prefix": "Prefix",
        "prompt.soft_prompt": "SoftPrompt",
        "training.loop": "TrainEvent train",
    },
)


def __getattr__(name: str) -> Any:
    if name in ON_TRANSFORMERS:
        from foreword.compat.releases import check_transformers

        check_transformers()
    return _load(name)
