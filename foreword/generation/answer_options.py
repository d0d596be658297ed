"""Answer options: what of transformers' `generate` an answer in text leaves open.

In: the options of a call that answers texts. Out: an error in one line for what such a call decides
itself, or could not read. All else is checked where ids are generated.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import GenerationConfig

from foreword.errors import InputError

DECIDED = ("attention_mask", "eos_token_id", "input_ids", "inputs", "pad_token_id")
STREAMED = ("stopping_criteria", "streamer")
ONE_ANSWER: dict[str, tuple[Any, ...]] = {
    "num_return_sequences": (None, 1),
    "return_dict_in_generate": (None, False),
}


def check_options(options: Mapping[str, Any], *, is_streamed: bool = False) -> None:
    """Refuse options that a call which answers texts decides itself, or could not read.

    Raises:
        InputError: names the option.
    """
    for name in (*DECIDED, *(STREAMED if is_streamed else ())):
        if name in options:
            raise InputError(f"{name}: answers to texts decide it themselves; leave it out")
    said = settings(options)
    for name, known in ONE_ANSWER.items():
        if (value := said.get(name)) not in known:
            raise InputError(
                f"{name}: expected one answer to each text, got {value!r}; leave it out, or call "
                "backbone.generate with ids"
            )


def settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a call, beneath them what a generation configuration among them says.

    Raises:
        InputError: it is no configuration.
    """
    config = options.get("generation_config")
    if config is not None and not isinstance(config, GenerationConfig):
        raise InputError(
            f"generation_config: expected a GenerationConfig, got {type(config).__name__}"
        )
    own = vars(config) if config is not None else {}
    return {name: value for name, value in own.items() if value is not None} | dict(options)


def check_texts(texts: Any, tools: Sequence[Any], batch_size: Any) -> None:
    """Refuse texts that are no list of them, tools that are not those of each, and no batches.

    Raises:
        InputError: says what was expected.
    """
    is_list = isinstance(texts, Sequence) and not isinstance(texts, str)
    if not is_list or any(isinstance(one, Mapping) for one in texts[:1]):
        what = "one text" if isinstance(texts, str) else "one conversation"
        found = what if isinstance(texts, str) or is_list else type(texts).__name__
        raise InputError(f"expected a list of texts and conversations, got {found}")
    if tools and len(tools) != len(texts):
        raise InputError(
            f"tools: expected some for each of {len(texts)} texts, or none at all, got "
            f"{len(tools)}: give () to texts without any"
        )
    check_batch_size(batch_size)


def check_batch_size(batch_size: Any) -> None:
    """Refuse what is no number of texts.

    Raises:
        InputError: says what was expected.
    """
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise InputError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
