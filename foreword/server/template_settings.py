"""Template settings: what a request sets of the chat template beside its turns and tools.

In: how rows of a model are encoded, and a reasoning effort. Out: the same with a template that has
the effort set, so that training, which sets none, stays what it was. Knows no request's body.
"""

from dataclasses import replace

from foreword.backbone import Backbone
from foreword.config import EncodingConfig
from foreword.data.template_texts import text_of
from foreword.errors import InputError

EFFORT = "reasoning_effort"


def with_effort(
    backbone: Backbone, config: EncodingConfig, effort: str | None, has_tools: bool
) -> EncodingConfig:
    """Return how rows are encoded with a reasoning effort.

    Args:
        backbone: with the tokenizer.
        config: how rows are encoded without one.
        effort: None leaves it to the template.
        has_tools: whether the template shows tools: some bases have one of their own for them.

    Raises:
        InputError: the template reads no such setting, or rows have none.
    """
    if effort is None:
        return config
    is_plain = config.row_template is not None or bool(config.is_text)
    template = config.chat_template or text_of(backbone.tokenizer, has_tools)
    if is_plain or template is None or EFFORT not in template:
        raise InputError(
            f"{EFFORT}: rows of this model are written without one, as its chat template reads "
            "none; leave it out"
        )
    # The expression keeps a line break at the template's own beginning.
    setting = f'{{% set {EFFORT} = "{effort}" %}}{{{{ "" }}}}'
    return replace(config, chat_template=setting + template)
