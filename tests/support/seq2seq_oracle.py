"""The oracle of models with an encoder: the slow, obvious computation of one unpadded row.

The encoder's output is computed plainly, with the prompt's embeddings concatenated before the text;
where the encoder hears, they are concatenated before the decoder's tokens. Keys and values are in a
plain cache. No cache between steps, everything computed again, none of foreword's code.
"""

from typing import Any

import torch
from oracle import given_cache
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from foreword import SoftPrompt


def encoded(model: Any, prompt: SoftPrompt | None, row: Tensor) -> Tensor:
    """Return the encoder's output `[1, S, H]` of ids `[T]` or of features `[mel bins, frames]`."""
    if row.ndim == 2:
        return model.get_encoder()(row[None].to(model.dtype)).last_hidden_state
    if prompt is None or prompt.form == "key_values":
        return model.get_encoder()(input_ids=row[None]).last_hidden_state
    text = model.get_input_embeddings()(row)
    whole = torch.cat([prompt.embeddings.to(text), text])[None]
    return model.get_encoder()(inputs_embeds=whole).last_hidden_state


def decoded(model: Any, prompt: SoftPrompt | None, hidden: Tensor, ids: Tensor) -> Tensor:
    """Return the logits `[T, V]` of decoder ids `[T]` behind an encoder's output `[1, S, H]`."""
    output = BaseModelOutput(last_hidden_state=hidden)
    hears = model.get_encoder().main_input_name != "input_ids"
    if prompt is not None and prompt.form == "key_values":
        cache = DynamicCache()
        for index, (keys, values) in enumerate(prompt.key_values):
            cache.update(keys[None].to(model.dtype), values[None].to(model.dtype), index)
        return model(
            encoder_outputs=output,
            decoder_input_ids=ids[None],
            **given_cache(model, EncoderDecoderCache(cache, DynamicCache())),
        ).logits[0]
    if prompt is None or not hears:
        return model(encoder_outputs=output, decoder_input_ids=ids[None], use_cache=False).logits[0]
    tokens = model.get_input_embeddings()(ids)
    whole = torch.cat([prompt.embeddings.to(tokens), tokens])[None]
    found = model(encoder_outputs=output, decoder_inputs_embeds=whole, use_cache=False).logits
    return found[0, prompt.num_virtual_tokens :]


def row_logits(model: Any, prompt: SoftPrompt | None, row: Tensor, ids: Tensor) -> Tensor:
    """Return the logits `[T, V]` of decoder ids `[T]` of one row."""
    return decoded(model, prompt, encoded(model, prompt, row), ids)


def oracle(model: Any, prompt: SoftPrompt | None) -> Any:
    """Return a model whose every forward pass is `decoded`, row by row."""

    class Oracle(type(model)):  # type: ignore[misc]
        def forward(
            self,
            decoder_input_ids: Tensor,
            encoder_outputs: Any = None,
            decoder_attention_mask: Any = None,
            input_features: Any = None,
            **_: Any,
        ) -> Any:
            if encoder_outputs is None:
                encoder_outputs = model.get_encoder()(input_features)
            rows = []
            for index, ids in enumerate(decoder_input_ids):
                hidden = encoder_outputs[0][index : index + 1]
                padding = 0
                if decoder_attention_mask is not None:
                    padding = int((decoder_attention_mask[index] == 0).sum())
                found = decoded(model, prompt, hidden, ids[padding:])
                rows.append(torch.cat([found.new_zeros(padding, found.shape[1]), found]))
            return Seq2SeqLMOutput(logits=torch.stack(rows))

    result = object.__new__(Oracle)
    result.__dict__.update(model.__dict__)
    return result


def generate(model: Any, prompt: SoftPrompt | None, row: Tensor, **kwargs: Any) -> Any:
    """Generate for one row with any of transformers' strategies, without a cache."""
    if row.ndim == 2:
        given = {"input_features": row[None]}
    else:
        hidden = encoded(model, prompt, row)
        given = {"input_ids": row[None], "encoder_outputs": BaseModelOutput(hidden)}
    return oracle(model, prompt).generate(**given, use_cache=False, **kwargs)


def greedy(
    model: Any, prompt: SoftPrompt | None, row: Tensor, num_new: int, start: tuple[int, ...]
) -> list[int]:
    """Return `num_new` greedy ids after `start`, by arg max of full recomputations."""
    ids, hidden = torch.tensor(start), encoded(model, prompt, row)
    for _ in range(num_new):
        best = decoded(model, prompt, hidden, ids)[-1].argmax()
        ids = torch.cat([ids, best[None]])
    return ids[len(start) :].tolist()
