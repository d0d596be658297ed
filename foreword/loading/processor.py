"""Processor loading: a checkpoint's processor for messages with images or sounds.

In: a directory or Hub id, and the model's configuration. Out: transformers' own processor, or None
with a warning. Without torchvision, a processor that also takes videos is made without its part for
videos: foreword takes none. Knows no prompt.
"""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from transformers import PROCESSOR_MAPPING, AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.utils import cached_file, is_torchvision_available

from foreword.compat.error_lines import telling_line

VIDEO = "video_processor"
# The files that may name a processor's class, in the order in which transformers looks.
FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
)


def load(source: str, config: Any, revision: str | None, *, is_trusted: bool = False) -> Any:
    """Load the processor; None, with a warning, where there is none that can be loaded.

    `is_trusted`: the checkpoint's own code may run.
    """
    where: dict[str, Any] = {"pretrained_model_name_or_path": source, "revision": revision}
    try:
        kind = _class_of(source, config, revision)
        if is_trusted or kind is None:
            return AutoProcessor.from_pretrained(**where, trust_remote_code=is_trusted)
        if is_torchvision_available() or VIDEO not in kind.get_attributes():
            # Not by AutoProcessor, which drops `trust_remote_code` where no file names the class.
            return kind.from_pretrained(**where, trust_remote_code=is_trusted)
        settings, _ = kind.get_processor_dict(source, revision=revision)
        tokenizer = AutoTokenizer.from_pretrained(**where, trust_remote_code=is_trusted)
        images = AutoImageProcessor.from_pretrained(
            **where, trust_remote_code=is_trusted, backend="pil"
        )
        template = settings.get("chat_template") or getattr(tokenizer, "chat_template", None)
        return without_video(kind, images, tokenizer, template)
    except Exception as error:  # whatever transformers, or a class of its, raises at odd files
        reason = telling_line(error)
        if "trust_remote_code" in str(error):
            reason = "it is code out of the model's directory, which is never run unless you say so"
        warnings.warn(f"{source}: no processor ({reason}); text alone is read", stacklevel=4)
        return None


def _class_of(source: str, config: Any, revision: str | None) -> Any:
    """Return transformers' own class that a checkpoint names, else its type's, else None."""
    for name in _named(source, config, revision):
        kind = getattr(transformers, name, None)
        if isinstance(kind, type) and issubclass(kind, transformers.ProcessorMixin):
            return kind
    return PROCESSOR_MAPPING.get(type(config), None)


def _named(source: str, config: Any, revision: str | None) -> Iterator[str]:
    for file in FILES:
        path = cached_file(
            source, file, revision=revision, _raise_exceptions_for_missing_entries=False
        )
        named = json.loads(Path(path).read_text(encoding="utf-8")) if path else None
        if isinstance(named, dict) and isinstance(named.get("processor_class"), str):
            yield named["processor_class"]
    yield str(getattr(config, "processor_class", None))


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
