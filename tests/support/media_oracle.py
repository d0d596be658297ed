"""The oracle for rows with media: slow, obvious, and none of foreword's code in it.

One unpadded row at a time and no cache between steps. The model reads `P` ids of plain text and the
row, merges features its own way and computes positions its own way; a hook puts the prompt in place
of the embeddings of those ids. A key/value prompt stands in a plain cache before the row.
"""

from typing import Any

import torch
from oracle import given_cache
from tiny_media import MediaRow
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from foreword import SoftPrompt

DUMMY = 5  # an id of plain text


def _placeholders(model: Any) -> list[int]:
    names = ("image_token_id", "audio_token_id")
    return [getattr(model.config, name) for name in names if hasattr(model.config, name)]


def _types(model: Any, ids: Tensor, num_media: int) -> dict[str, Tensor]:
    """Return the token types that a processor would; generated tokens are text."""
    types = (ids == getattr(model.config, "image_token_id", -1)).long()
    types[0, num_media:] = 0
    if model.config.model_type == "gemma3":
        return {"token_type_ids": types}
    return {"mm_token_type_ids": types} if hasattr(model.model, "get_rope_index") else {}


def row_logits(model: Any, prompt: SoftPrompt | None, row: MediaRow, ids: Tensor) -> Tensor:
    """Return the logits `[T, V]` of ids `[T]` that begin with a row's, behind a prompt."""
    num_virtual = prompt.num_virtual_tokens if prompt else 0
    whole = torch.cat([torch.full((num_virtual,), DUMMY), ids])[None]
    types = _types(model, whole, num_virtual + len(row.ids))
    positions = torch.arange(whole.shape[1])[None]
    if "mm_token_type_ids" in types:
        model.model.rope_deltas = None
        grids = row.media.get("image_grid_thw")
        positions, _ = model.model.get_rope_index(whole, image_grid_thw=grids, **types)
    if prompt is not None and prompt.form == "key_values":
        return _behind_states(model, prompt, row, whole, types, positions)

    def put_prompt(module: Any, inputs: Any, output: Tensor) -> Tensor:
        return torch.cat([prompt.embeddings.to(output)[None], output[:, num_virtual:]], dim=1)

    embedding = model.get_input_embeddings()
    handle = embedding.register_forward_hook(put_prompt) if prompt else None
    mask = {} if model.config.model_type != "qwen2_audio" else {"attention_mask": None}
    try:
        output = model(
            input_ids=whole,
            position_ids=positions,
            use_cache=False,
            **types,
            **row.media,
            **mask,
        )
    finally:
        if handle:
            handle.remove()
    return output.logits[0, num_virtual:]


def _behind_states(
    model: Any,
    prompt: SoftPrompt,
    row: MediaRow,
    whole: Tensor,
    types: dict[str, Tensor],
    positions: Tensor,
) -> Tensor:
    cache = DynamicCache()
    for index, (keys, values) in enumerate(prompt.key_values):
        cache.update(keys[None].to(model.dtype), values[None].to(model.dtype), index)
    num_virtual = prompt.num_virtual_tokens
    if "mm_token_type_ids" in types:
        types = {"mm_token_type_ids": types["mm_token_type_ids"][:, num_virtual:]}
    output = model(
        input_ids=whole[:, num_virtual:],
        position_ids=positions[..., num_virtual:],
        attention_mask=torch.ones_like(whole),
        **given_cache(model, cache),
        **types,
        **row.media,
    )
    return output.logits[0]


def oracle(model: Any, prompt: SoftPrompt | None, row: MediaRow) -> Any:
    """Return a model whose every forward pass is `row_logits`."""

    class Oracle(type(model)):  # type: ignore[misc]
        def forward(self, input_ids: Tensor, attention_mask: Any = None, **_: Any) -> Any:
            rows = [row_logits(model, prompt, row, ids) for ids in input_ids]
            return CausalLMOutputWithPast(logits=torch.stack(rows))

        def _prepare_position_ids_for_generation(self, *_: Any) -> None:
            return None

    result = object.__new__(Oracle)
    result.__dict__.update(model.__dict__)
    return result


def generate(model: Any, prompt: SoftPrompt | None, row: MediaRow, **kwargs: Any) -> Any:
    """Generate from one row with any of transformers' strategies."""
    ids = row.ids[None]
    return oracle(model, prompt, row).generate(input_ids=ids, use_cache=False, **kwargs)


def greedy(model: Any, prompt: SoftPrompt | None, row: MediaRow, num_new: int) -> list[int]:
    """Return `num_new` greedy ids, by arg max of full recomputations."""
    ids = row.ids
    for _ in range(num_new):
        best = row_logits(model, prompt, row, ids)[-1].float().argmax()
        assert int(best) not in _placeholders(model), "the oracle cannot read it as text"
        ids = torch.cat([ids, best[None]])
    return ids[len(row.ids) :].tolist()
