"""Template settings: what a request sets of the chat template beside its turns and tools.

In: how rows of a model are encoded, and a reasoning effort. Out: the same with a template that has
the effort set, so that training, which sets none, stays what it was. Knows no request's body.
"""

from dataclasses import replace

from foreword.backbone import Backbone
from foreword.config import EncodingConfig
from foreword.data.chat_template import ChatTemplate
from foreword.errors import InputError

EFFORT = "reasoning_effort"


def with_effort(backbone: Backbone, config: EncodingConfig, effort: str | None) -> EncodingConfig:
    """Return how rows are encoded with a reasoning effort; None leaves it to the template.

    Raises:
        InputError: the template reads no such setting, or there is none.
    """
    if effort is None:
        return config
    template = ChatTemplate(backbone.tokenizer, given=config.chat_template)
    if config.row_template is not None or not template.is_there or EFFORT not in template.text:
        raise InputError(
            f"{EFFORT}: rows of this model are written without one, as its chat template reads "
            "none; leave it out"
        )
    # The expression keeps a line break at the template's own beginning.
    setting = f'{{% set {EFFORT} = "{effort}" %}}{{{{ "" }}}}'
    return replace(config, chat_template=setting + template.text)
