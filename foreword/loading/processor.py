"""Processor loading: a checkpoint's processor for messages with images or sounds.

In: a directory or Hub id, and the model's configuration. Out: transformers' own processor, or None
with a warning. Without torchvision, a processor that also takes videos is made without its part for
videos: foreword takes none. Knows no prompt.
"""

import warnings
from typing import Any

from transformers import PROCESSOR_MAPPING, AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.utils import is_torchvision_available

VIDEO = "video_processor"


def load(source: str, config: Any, revision: str | None) -> Any:
    """Load the processor; None, with a warning, where there is none that can be loaded."""
    kind = PROCESSOR_MAPPING.get(type(config), None)
    try:
        if kind is None or is_torchvision_available() or VIDEO not in kind.get_attributes():
            return AutoProcessor.from_pretrained(source, revision=revision)
        settings, _ = kind.get_processor_dict(source, revision=revision)
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        images = AutoImageProcessor.from_pretrained(source, revision=revision, backend="pil")
        template = settings.get("chat_template") or getattr(tokenizer, "chat_template", None)
        return without_video(kind, images, tokenizer, template)
    except (OSError, ValueError, ImportError, AttributeError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(f"{source}: no processor ({reason}); text alone is read", stacklevel=4)
        return None


def without_video(kind: Any, images: Any, tokenizer: Any, chat_template: Any) -> Any:
    """Make a processor of a class that takes a part for videos, without that part."""

    def check(self: Any, name: str, part: Any) -> Any:
        return None if name == VIDEO else kind.check_argument_for_proper_class(self, name, part)

    made = type(kind.__name__, (kind,), {"check_argument_for_proper_class": check})
    return made(
        image_processor=images,
        tokenizer=tokenizer,
        video_processor=None,
        chat_template=chat_template,
    )
