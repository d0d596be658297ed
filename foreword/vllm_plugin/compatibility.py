"""Compatibility checks: what vLLM cannot serve exactly is refused by name.

In: an engine's setup at the start, or a request's body. Out: nothing, the forms that can be served,
or an error that says what to leave out. Knows the names of vLLM's options and fields, and imports
none of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foreword.config import Form
from foreword.errors import InputError, UnsupportedError

# Families whose both forms are compared with the oracle through vLLM, in tests/on_vllm.
SHOWN = (
    "llama", "qwen2", "qwen3", "mistral", "phi3", "granite", "mixtral", "qwen3_moe",
)  # fmt: skip
ROTATIONS = ("default", "llama3")  # none that changes with a text's length
EXACT_CACHES = ("auto",)  # as the model computes


@dataclass(frozen=True)
class EngineSetup:
    """What decides whether an engine can serve prompts, read off its configuration.

    Attributes:
        model_type: transformers' name of the family.
        takes_embeddings: `--enable-prompt-embeds`.
        connector: of `--kv-transfer-config`; None where there is none.
        recomputes: whether keys that could not be loaded would be computed from placeholders.
        cache_dtype: `--kv-cache-dtype`.
        is_latent: the cache holds latents of keys (MLA).
        is_hybrid: layers differ in what they keep, or attend to a window only.
        rotation: how positions are rotated, as `rope_type` says it.
        reads_media: the model reads images or sounds too.
        speculates: speculative decoding.
        num_context_ranks: ranks over which one sequence's tokens are divided.
    """

    model_type: str
    takes_embeddings: bool = False
    connector: str | None = None
    recomputes: bool = False
    cache_dtype: str = "auto"
    is_latent: bool = False
    is_hybrid: bool = False
    rotation: str = "default"
    reads_media: bool = False
    speculates: bool = False
    num_context_ranks: int = 1


def check_engine(setup: EngineSetup) -> None:
    """Refuse an engine that could not serve any prompt exactly.

    Raises:
        UnsupportedError: names the part of it.
    """
    if setup.is_latent:
        raise UnsupportedError(f"{setup.model_type} caches latents of keys (MLA): {_NOT_SHOWN}")
    if setup.is_hybrid:
        raise UnsupportedError(
            f"{setup.model_type} has layers with a window or a recurrent state: {_NOT_SHOWN}"
        )
    if setup.rotation not in ROTATIONS:
        raise UnsupportedError(f"{setup.model_type} with {setup.rotation} rotation: {_NOT_SHOWN}")
    if setup.reads_media:
        raise UnsupportedError(f"{setup.model_type} beside images or sounds: {_NOT_SHOWN}")
    if setup.model_type not in SHOWN:
        raise UnsupportedError(f"{setup.model_type} is not one of {', '.join(SHOWN)}: {_NOT_SHOWN}")
    if setup.speculates:
        raise UnsupportedError(
            "speculative decoding: a draft model does not see the virtual tokens; leave out "
            "--speculative-config"
        )


_NOT_SHOWN = (
    "not shown to be exact through vLLM yet; serve it with foreword's own engine: foreword serve"
)


def forms_of(setup: EngineSetup, connector: str) -> dict[Form, str | None]:
    """Return why each form of prompts is refused; None where it is served."""
    missing = "the engine was started without"
    order = f'{missing} --kv-transfer-config \'{{"kv_connector": "{connector}", "kv_role": ...}}\''
    reasons: dict[Form, str | None] = {
        "embeddings": None if setup.takes_embeddings else f"{missing} --enable-prompt-embeds",
        "key_values": order if setup.connector != connector else None,
    }
    if setup.connector == connector:
        reasons["key_values"] = _key_values_refusal(setup)
    return reasons


def check_connector(setup: EngineSetup) -> None:
    """Refuse an engine whose KV cache cannot take a prompt's keys unchanged.

    Raises:
        UnsupportedError: names the part of it.
    """
    check_engine(setup)
    if reason := _key_values_refusal(setup):
        raise UnsupportedError(f"key/value prompts: {reason}")


def _key_values_refusal(setup: EngineSetup) -> str | None:
    if setup.recomputes:
        return "keys that cannot be loaded would be computed from placeholders: leave out " + (
            '"kv_load_failure_policy": "recompute"'
        )
    if setup.cache_dtype not in EXACT_CACHES:
        return f"a cache of {setup.cache_dtype} rounds keys: leave out --kv-cache-dtype"
    if setup.num_context_ranks > 1:
        return "context parallelism divides a sequence: leave it out"
    return None


# Requests ---------------------------------------------------------------------------------------

# Fields that would see, score, cut or re-order virtual tokens, or bring other inputs along, and the
# values at which they do not.
_HARMLESS_VALUES: Mapping[str, tuple[Any, ...]] = {
    "echo": (None, False),
    "prompt_logprobs": (None,),
    "use_beam_search": (None, False),
    "truncate_prompt_tokens": (None,),
    "kv_transfer_params": (None, {}),
    "ec_transfer_params": (None, {}),
    "routed_experts_prompt_start": (None, 0),
    "mm_processor_kwargs": (None, {}),
    "media_io_kwargs": (None, {}),
    # Rows are encoded as the prompt's training encoded them.
    "chat_template": (None,),
    "chat_template_kwargs": (None, {}),
    "documents": (None, []),
    "continue_final_message": (None, False),
    "return_prompt_text": (None, False),
    "reasoning_effort": (None,),
    "suffix": (None,),
    "prompt_embeds": (None,),
}
_CHAT = {"add_generation_prompt": (None, True), "add_special_tokens": (None, False)}
_COMPLETION = {"add_special_tokens": (None, True)}


def check_request(body: Any, name: str, *, is_chat: bool) -> None:
    """Refuse a request that vLLM would not answer exactly.

    Raises:
        UnsupportedError: names the field.
    """
    allowed = {**_HARMLESS_VALUES, **(_CHAT if is_chat else _COMPLETION)}
    for field, values in allowed.items():
        if getattr(body, field, None) not in values:
            raise UnsupportedError(
                f"{field} does not work with a soft prompt on vLLM ({name!r} is one); leave it out"
            )


def check_room(num_virtual: int, num_ids: int, num_new: int | None, limit: int) -> None:
    """Refuse a request whose virtual, real and new tokens do not fit together.

    Raises:
        InputError: says all numbers.
    """
    new = 1 if num_new is None else num_new
    if num_virtual + num_ids + new > limit:
        raise InputError(
            f"{num_virtual} virtual tokens, {num_ids} of the request and {new} new ones are more "
            f"than the {limit} that this server takes"
        )


def check_ids(ids: list[int], vocab_size: int) -> None:
    """Refuse an empty row, and ids outside the vocabulary.

    Raises:
        InputError: names the id.
    """
    if not ids:
        raise InputError("the prompt has no tokens; give at least one")
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            raise InputError(f"token id {token_id} is not one of the model's {vocab_size}")
