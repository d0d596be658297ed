"""Answer options: what of transformers' `generate` an answer in text leaves open.

In: the options of a call that answers texts. Out: an error in one line for what such a call decides
itself, or could not read. All else is checked where ids are generated.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import GenerationConfig

from foreword.errors import InputError
from foreword.model.argument_types import ids_of

DECIDED = ("attention_mask", "eos_token_id", "input_ids", "inputs", "pad_token_id")
# What says how ids are drawn, and with which values it says nothing.
DRAWN: dict[str, tuple[Any, ...]] = {
    "temperature": (None, 0, 1),
    "top_k": (None, 0, 1),
    "top_p": (None, 1),
    "typical_p": (None, 1),
    "top_h": (None,),
    "min_p": (None, 0),
    "epsilon_cutoff": (None, 0),
    "eta_cutoff": (None, 0),
}
STREAMED = ("stopping_criteria", "streamer")
ONE_ANSWER: dict[str, tuple[Any, ...]] = {
    "num_return_sequences": (None, 1),
    "return_dict_in_generate": (None, False),
}


def check_options(
    options: Mapping[str, Any], known_ends: Sequence[int] = (), *, is_streamed: bool = False
) -> None:
    """Refuse options that a call which answers texts decides itself, or could not read, or that
    would change nothing.

    Args:
        options: of `generate`, `max_new_tokens` among them where it is given.
        known_ends: the model's own end ids, which end an answer whatever a configuration says.
        is_streamed: whether a text is answered piece by piece.

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
    if "eos_token_id" in said and set(ids_of(said["eos_token_id"])) != set(known_ends):
        raise InputError("eos_token_id: answers to texts decide it themselves; leave it out")
    if said.get("max_length") is not None and said.get("max_new_tokens") is None:
        raise InputError("max_length: it would count the text, too; give max_new_tokens")
    drawn = [name for name, neutral in DRAWN.items() if said.get(name) not in neutral]
    if drawn and said.get("do_sample") is None:
        raise InputError(
            f"{', '.join(drawn)}: the likeliest ids are taken, and none is drawn; give "
            "do_sample=True, or leave it out"
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
