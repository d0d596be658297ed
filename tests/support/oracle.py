"""The oracle: the slow, obvious computation that every fast path must equal.

One unpadded row at a time; the prompt's embeddings concatenated before the row's, or its keys and
values in a plain cache; explicit positions `0..P+T-1`; no cache between steps, everything computed
again. It uses transformers' own masks and none of foreword's code. As a model it has transformers'
`generate`, so that one oracle serves all strategies.
"""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from foreword import SoftPrompt


def row_logits(model: Any, prompt: SoftPrompt | None, ids: Tensor) -> Tensor:
    """Return the logits `[T, V]` of one unpadded row of ids `[T]` behind a prompt."""
    if prompt is None:
        return model(input_ids=ids[None], use_cache=False).logits[0]
    num_virtual, length = prompt.num_virtual_tokens, ids.shape[0]
    positions = torch.arange(num_virtual + length)[None]
    if prompt.form == "embeddings":
        text = model.get_input_embeddings()(ids)
        if model.config.model_type == "falcon_h1":
            text = text * model.config.embedding_multiplier  # which it leaves to embeddings given
        whole = torch.cat([prompt.embeddings.to(text), text])[None]
        extra = {}
        if getattr(model.config, "hidden_size_per_layer_input", None):
            # Virtual tokens have no id of their own: they take that of padding, as images do.
            padding = torch.full((num_virtual,), model.config.pad_token_id)
            every_id = torch.cat([padding, ids])[None]
            looked_up = model.model.embed_tokens_per_layer(every_id)
            shape = (*every_id.shape, model.config.num_hidden_layers, -1)
            extra["per_layer_inputs"] = looked_up.reshape(shape)
        output = model(inputs_embeds=whole, position_ids=positions, use_cache=False, **extra)
        return output.logits[0, num_virtual:]
    if prompt.states.is_recurrent:
        return _behind_states(model, prompt, ids)
    cache = DynamicCache()
    for index, (keys, values) in enumerate(prompt.key_values):
        cache.update(keys[None].to(model.dtype), values[None].to(model.dtype), index)
    output = model(
        input_ids=ids[None],
        position_ids=positions[:, num_virtual:],
        attention_mask=torch.ones(1, num_virtual + length, dtype=torch.long),
        **given_cache(model, cache),
    )
    return output.logits[0]


def given_cache(model: Any, cache: Any) -> dict[str, Any]:
    """Return a cache by the name that this release's forward pass takes it by."""
    names = inspect.signature(type(model).forward).parameters
    found = [name for name in ("cache", "past_key_values", "cache_params") if name in names]
    return {found[0]: cache}


def _behind_states(model: Any, prompt: SoftPrompt, ids: Tensor) -> Tensor:
    """Return the logits `[T, V]` of a row behind recurrent states in transformers' own cache."""
    cache = DynamicCache(config=model.config)
    for index, layer in enumerate(prompt.states):
        tensors = [tensor[None] for tensor in layer]
        if tensors[0].ndim == 4:
            cache.update(tensors.pop(0), tensors.pop(0), index)
        if tensors:
            window = tensors.pop(0)
            cache.update_conv_state(window, index, conv_kernel_size=window.shape[-1])
        if tensors:
            cache.update_recurrent_state(tensors.pop(0), index)
    if model.config.model_type == "mamba2":
        return model(input_ids=ids[None], **given_cache(model, cache)).logits[0]
    num_virtual = prompt.num_virtual_tokens
    positions = torch.arange(num_virtual, num_virtual + len(ids))[None]
    return model(input_ids=ids[None], position_ids=positions, **given_cache(model, cache)).logits[0]


def oracle(model: Any, prompt: SoftPrompt | None) -> Any:
    """Return a model whose every forward pass is `row_logits`, row by row."""

    class Oracle(type(model)):  # type: ignore[misc]
        def forward(self, input_ids: Tensor, attention_mask: Any = None, **_: Any) -> Any:
            assert attention_mask is None or bool((attention_mask == 1).all()), "rows are unpadded"
            rows = [row_logits(model, prompt, row) for row in input_ids]
            return CausalLMOutputWithPast(logits=torch.stack(rows))

    result = object.__new__(Oracle)
    result.__dict__.update(model.__dict__)
    return result


def generate(model: Any, prompt: SoftPrompt | None, ids: Tensor, **kwargs: Any) -> Any:
    """Generate from one row of ids `[T]` with any of transformers' strategies."""
    return oracle(model, prompt).generate(input_ids=ids[None], use_cache=False, **kwargs)


def greedy(model: Any, prompt: SoftPrompt | None, ids: Tensor, num_new: int) -> list[int]:
    """Return `num_new` greedy ids, by arg max of full recomputations."""
    row = ids
    for _ in range(num_new):
        best = row_logits(model, prompt, row)[-1].float().argmax()
        row = torch.cat([row, best[None]])
    return row[len(ids) :].tolist()
