"""Reference comparison with an encoder: the slow path decodes behind a plain encoder output.

In: a backbone, a prompt. Out: what `Trial` gives, for a row that the encoder takes: ids of text
`[T]`, or, where the encoder takes audio or images, numbers `[S, H]` in place of its output, which
no prompt changes. The slow path is written with transformers alone. Knows no findings.
"""

import math
from typing import Any

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.compat.transformers_api import BaseModelOutput, DynamicCache, EncoderDecoderCache
from foreword.doctor.trial import Distance, Trial
from foreword.model.encoder_capabilities import EncoderCapabilities
from foreword.prompt.soft_prompt import SoftPrompt

NUM_SOUNDS = 16  # positions of an encoder output that stands for a sound


class EncoderTrial(Trial):
    """One prompt on one model with an encoder, and a row whose answer has `num_new` tokens."""

    @property
    def encoder(self) -> EncoderCapabilities:
        """The capabilities of the encoder."""
        assert self.backbone.capabilities.encoder is not None
        return self.backbone.capabilities.encoder

    @property
    def rows(self) -> list[Tensor]:
        """The row and others: shorter ones of text, or other sounds."""
        if self.encoder.reads_text:
            return super().rows
        return [self.row.roll(shift, 0) for shift in range(3)]

    @property
    def can_chunk(self) -> bool:
        """False: a decoder with an encoder starts from one token."""
        return False

    def fast(self, rows: list[Tensor], **options: Any) -> Any:
        """Generate with foreword behind the encoder's rows."""
        if self.encoder.reads_text:
            return super().fast(rows, **options)
        return self.backbone.without_habits().generate(
            self.prompt,
            encoder_outputs=BaseModelOutput(torch.stack(rows)),
            decoder_input_ids=self._start.expand(len(rows), 1),
            **self.options,
            **options,
        )

    def bare_logits(self) -> Tensor:
        """Return the logits `[1, V]` of the answer's first token, of the model alone."""
        return self._bare_steps(self.row, self._start)

    def _bare_steps(self, row: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits `[N, V]` that the model alone chooses tokens `[N]` from."""
        given: dict[str, Any] = {"encoder_outputs": BaseModelOutput(row[None])}
        if self.encoder.reads_text:
            given = {"input_ids": row[None]}
        ids = torch.cat([self._start, tokens[:-1]])
        output = self.backbone.model(**given, decoder_input_ids=ids[None], use_cache=False)
        return output.logits[0]  # type: ignore[no-any-return]

    def prompted_logits(self) -> Tensor:
        """Return the logits `[1, V]` of that token behind the prompt, by the slow computation."""
        return self._slow_logits(self.row, self._start)

    def slow(self) -> Tensor:
        """Generate `[num_new]` ids by full recomputation."""
        ids = self._start
        for _ in range(self.num_new):
            ids = torch.cat([ids, self._slow_logits(self.row, ids)[-1].argmax()[None]])
        return ids[1:]

    def label_loss(self, prompt: SoftPrompt) -> Tensor:
        """Return the mean cross entropy of a few tokens behind a prompt, with gradient."""
        ids = (
            torch.arange(1, 9, device=self.row.device) * 31 % self.backbone.capabilities.vocab_size
        )
        given: dict[str, Any] = {"encoder_outputs": self.row[None]}
        if self.encoder.reads_text:
            given = {"input_ids": self.row[None]}
        logits = self.backbone.logits(prompt, **given, decoder_input_ids=ids[None])[0, :-1]
        return torch.nn.functional.cross_entropy(logits.float(), ids[1:])

    @property
    def _start(self) -> Tensor:
        return torch.tensor([self.encoder.start_id], device=self.row.device)

    def _row_distance(self, row: Tensor, tokens: Tensor, steps: Tensor) -> Distance:
        """Compare tokens `[N]` and the logits `[N, V]` that they were chosen from."""
        given = torch.cat([self._start, tokens[:-1]])
        slow, steps = self._slow_logits(row, given).double(), steps.double()
        error = ((steps - slow).std(-1) / slow.std(-1)).max().item()
        # Whisper suppresses some ids: its tokens need not be the best.
        chosen = steps.gather(1, tokens[:, None])[:, 0]
        is_greedy = not self.encoder.reads_text or bool((chosen == steps.max(-1).values).all())
        num_same = int((tokens == slow.argmax(-1)).sum())
        return Distance(error if is_greedy else math.inf, num_same, len(tokens))

    @torch.no_grad()
    def _slow_logits(self, row: Tensor, ids: Tensor) -> Tensor:
        """Return the logits `[N, V]` of decoded ids `[N]`, all of it computed anew."""
        model, prompt = self.backbone.model, self.prompt
        embeds = self.backbone.embed
        is_encoded = prompt.form == "embeddings" and self.encoder.reads_text
        if not self.encoder.reads_text:
            hidden = row[None]
        elif is_encoded:
            text = embeds(row)
            whole = torch.cat([prompt.embeddings.to(text), text])[None]
            hidden = model.get_encoder()(inputs_embeds=whole).last_hidden_state
        else:
            hidden = model.get_encoder()(input_ids=row[None]).last_hidden_state
        output = BaseModelOutput(last_hidden_state=hidden)
        if prompt.form == "embeddings" and not is_encoded:
            tokens = embeds(ids)
            whole = torch.cat([prompt.embeddings.to(tokens), tokens])[None]
            found = model(encoder_outputs=output, decoder_inputs_embeds=whole, use_cache=False)
            return found.logits[0, prompt.num_virtual_tokens :]  # type: ignore[no-any-return]
        cache = DynamicCache()
        for index, pair in enumerate(prompt.key_values if prompt.form == "key_values" else ()):
            keys, values = (tensor[None].to(ids.device, self.backbone.dtype) for tensor in pair)
            cache.update(keys, values, index)
        argument = self.backbone.capabilities.cache_argument
        found = model(
            encoder_outputs=output,
            decoder_input_ids=ids[None],
            **{argument: EncoderDecoderCache(cache, DynamicCache())},
        )
        return found.logits[0]  # type: ignore[no-any-return]


def make_encoder_trial(
    backbone: Backbone, prompt: SoftPrompt, ids: list[int], num_new: int
) -> EncoderTrial:
    """Return a trial on ids of text, or on numbers that stand for a sound."""
    capabilities = backbone.capabilities
    assert capabilities.encoder is not None
    limit, text_limit = (
        capabilities.context_length or 1 << 30,
        capabilities.encoder.context_length or 1 << 30,
    )
    room = limit - prompt.num_virtual_tokens
    num_new = max(1, min(num_new, room - 2))
    row = torch.tensor(ids[: max(text_limit - prompt.num_virtual_tokens, 1)], device="cpu")
    if not capabilities.encoder.reads_text:
        generator = torch.Generator().manual_seed(0)
        num_places = getattr(backbone.model.config, "max_source_positions", None) or NUM_SOUNDS
        row = torch.randn(
            min(num_places, NUM_SOUNDS),
            capabilities.hidden_size,
            generator=generator,
            device="cpu",
        ).to(backbone.dtype)
    return EncoderTrial(backbone, prompt, row.to(backbone.device), num_new)
