"""The backbone: one frozen model that embeds, compiles prompts, generates and scores.

In: a transformers model. Out: prefixes, logits, hidden states, generations. The model is frozen,
never patched, and stays usable on its own. What depends on a family or on a release of transformers
is behind this class, in the rooms `model` and `generation`. It knows ids, not text.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from foreword.data import tokenizer_facts
from foreword.data.batches import Batch
from foreword.data.encoding import Row
from foreword.data.tokenizing import check_processor, check_tokenizer
from foreword.errors import InputError, MismatchError, UnsupportedError
from foreword.generation import encoder_decoder, generate, habits, model_view
from foreword.loading import checkpoint, hub, placement, quantized
from foreword.model import autocast, checks
from foreword.model.capabilities import Capabilities, inspect_model
from foreword.model.changed import check_settings, check_unchanged
from foreword.model.decoder import Decoder
from foreword.model.encoder_decoder import EncoderDecoder
from foreword.model.fingerprint import (
    check_fingerprint,
    check_shapes,
    compute_fingerprint,
    samples_of,
    shapes_of,
)
from foreword.model.head import logits
from foreword.model.media import split_media
from foreword.model.passes import ForwardPasses, LabelStates
from foreword.model.weights_version import WeightsVersion
from foreword.prompt.base_facts import check_width
from foreword.prompt.narrowing import narrowed
from foreword.prompt.prefix import CompiledPrefixes, Prefix, PrefixBatch, no_prefixes
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.prompt.states import DeferredPrompt, PrefixStates, States, row_major
from foreword.verification.media import prove as prove_media
from foreword.verification.proof import prove

Prompt = SoftPrompt | Prefix | None
NUM_COMPILED = 8  # prompts whose prefix is remembered by content


class Backbone:
    """A frozen language model that takes prefixes: a decoder, alone or with an encoder.

    Args:
        hf_model: a transformers language model in memory; its parameters stop taking gradients.
        tokenizer: its tokenizer, where text is to be read; ids in and ids out need none.
        processor: its processor, where messages with images or sounds are to be read.
        name: how the model is called in a saved prompt; default: what the model calls itself.

    Raises:
        InputError: a tokenizer or processor that is none of transformers.
        UnsupportedError: a part of the model cannot be made exact; the message names it.
    """

    def __init__(
        self,
        hf_model: Any,
        tokenizer: Any = None,
        *,
        processor: Any = None,
        name: str | None = None,
    ):
        check_tokenizer(tokenizer)
        check_processor(processor)
        capabilities = inspect_model(hf_model)
        hf_model.eval().requires_grad_(False)
        self.quantization = quantized.prepare(hf_model)
        if not capabilities.is_tested:
            capabilities = prove(hf_model, capabilities, Backbone.unproved)
        self._begin(hf_model, capabilities, tokenizer, processor, name)

    @classmethod
    def unproved(cls, hf_model: Any, capabilities: Capabilities) -> "Backbone":
        """Return a backbone with given capabilities, for a proof of them."""
        made = cls.__new__(cls)
        made.quantization = None
        made._begin(hf_model, capabilities, None, None, None)
        return made

    def _begin(
        self, hf_model: Any, capabilities: Capabilities, tokenizer: Any, processor: Any, name: Any
    ) -> None:
        has_encoder = capabilities.encoder is not None
        kind = EncoderDecoder if has_encoder else Decoder
        self.passes: ForwardPasses = kind(hf_model, capabilities)
        self._generate: Callable[..., Any] = (encoder_decoder if has_encoder else generate).generate
        self.processor = processor
        self.tokenizer = tokenizer if tokenizer is not None else _tokenizer_of(processor)
        self.name = name or getattr(hf_model, "name_or_path", "") or hf_model.config.model_type
        self.weights: str | None = None  # what they are, where no checkpoint's own
        self.revision: str | None = getattr(hf_model.config, "_commit_hash", None)
        self._weights_version = WeightsVersion(hf_model)
        self._noticed = self._weights_version.now()
        self._compiled = CompiledPrefixes(NUM_COMPILED)
        self._fingerprint: dict[str, Any] | None = None
        self._tokenizer_facts: tuple[Any, dict[str, Any] | None] = (None, None)
        self._one_token: tuple[torch.dtype | None, States] | None = None
        self._plain: Backbone | None = None  # the view without habits
        self._embedding_scale = self.passes.embedding_scale
        self._is_media_proved = capabilities.is_tested

    @classmethod
    def load(
        cls,
        model: str,
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        revision: str | None = None,
        tokenizer: Any = None,
        **kwargs: Any,
    ) -> "Backbone":
        """Load a model by name, directory or GGUF file.

        Args:
            model: "smollm2-135m", a Hub id, a local directory, or a .gguf file.
            dtype: "auto" is float32 on a CPU and the checkpoint's own on an accelerator.
            device: "auto" is the accelerator where there is one.
            revision: of a Hub id.
            tokenizer: where the checkpoint's own needs code of its own, which is not run.
            **kwargs: more arguments of transformers' `from_pretrained`. Code out of a checkpoint
                runs only with `trust_remote_code=True` among them; nobody is asked.

        Raises:
            InputError: no such model, no such device, or a tokenizer that is none.
            UnsupportedError: a model that cannot be made exact, or that needs code of its own, or
                layers of which are in no memory.
        """
        check_tokenizer(tokenizer)
        place, options = placement.options_of(dtype, device, kwargs)
        source = hub.resolve(model)
        loaded, known, processor = checkpoint.load(source, model, revision, tokenizer, options)
        placement.check_placed(loaded, model)
        if place is not None:
            loaded = loaded.to(place)
        made = cls(loaded, known, processor=processor, name=model)
        made.weights = hub.weights_of(model)
        return made

    def with_passes(self, passes: ForwardPasses) -> "Backbone":
        """Return a view of this backbone whose passes are others, over the same weights."""
        view = copy.copy(self)
        view.passes, view._plain = passes, None
        return view

    def without_habits(self) -> "Backbone":
        """Return a view of this backbone that generates the likeliest ids unless a call says
        otherwise, whatever the model's own generation configuration says.
        """
        if self._plain is None:
            self._plain = self.with_passes(self.passes.over(habits.without_habits(self.model)))
        # Anew each time: the user may have set another start.
        self._plain.model.generation_config = habits.neutral(self.model.generation_config)
        return self._plain

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self.passes.model

    @property
    def capabilities(self) -> Capabilities:
        """What the model is."""
        return self.passes.capabilities

    @property
    def reads_apart(self) -> bool:
        """Whether an encoder reads the text before an answer, and a decoder says the answer."""
        encoder = self.capabilities.encoder
        return encoder is not None and encoder.reads_text

    @property
    def decoder(self) -> Any:
        """The model without its head."""
        return getattr(self.model, self.capabilities.decoder)

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return torch.device(self.model.device)

    @property
    def dtype(self) -> torch.dtype:
        """Of the model's activations."""
        return self.model.dtype  # type: ignore[no-any-return]

    @property
    def padding_id(self) -> int:
        """An id to pad with; masks decide, so any valid id serves: 0 where the tokenizer's own was
        added to it, and the model has no embedding for it.
        """
        found = getattr(self.tokenizer, "pad_token_id", None)
        if isinstance(found, int) and 0 <= found < self.capabilities.vocab_size:
            return found
        return 0

    def embed(self, input_ids: Tensor) -> Tensor:
        """Return the embeddings that the model computes for ids: `[..., T]` to `[..., T, H]`.

        They are what its `inputs_embeds` would have to be, after any scale that it applies to ids
        alone.

        Raises:
            InputError: ids for which the model has no embedding.
        """
        check_settings(self.model, self.capabilities)
        checks.check_ids(input_ids, self.capabilities.vocab_size)
        embedded: Tensor = self.model.get_input_embeddings()(input_ids.to(self.device))
        return embedded * self._embedding_scale if self._embedding_scale != 1 else embedded

    def check_row(self, row: Row) -> None:
        """Refuse a row with a token for which the model has no embedding.

        Raises:
            DataError: names the row and the token.
        """
        checks.check_row(row.input_ids, row.source, self.capabilities.vocab_size, self.tokenizer)

    def check(self, prompt: SoftPrompt) -> None:
        """Refuse a prompt that was made for another base model, without any arithmetic.

        Raises:
            MismatchError: names both models, or what differs of the tokenizers.
        """
        self._notice()
        self._check(prompt)

    def _check(self, prompt: SoftPrompt) -> None:
        _check_kind(prompt)
        self._check_base(prompt)
        tokenizer_facts.check_vocabulary(prompt.facts, self.tokenizer_facts(), self.name)

    def compile(self, prompt: SoftPrompt | Prefix) -> Prefix:
        """Compute a prompt's prefix: what the model's cache holds after its virtual tokens.

        With an encoder, embeddings stay unread: every row reads them with what is its own.
        The result does not change when the prompt is trained further. A prompt with the same values
        is not computed again, while the model's weights stay as they are.

        Raises:
            MismatchError: the prompt was made for another base model.
            InputError: numbers that the model's dtype does not hold.
        """
        self._notice()
        return self._compile(prompt)

    def _compile(self, prompt: SoftPrompt | Prefix) -> Prefix:
        if isinstance(prompt, Prefix):
            self._check_prefix(prompt)
            return self._in_own_dtype(prompt)
        self._check(prompt)
        state = self._noticed, self._cast
        key = prompt.content_hash
        # A prefix is a state of this very model, whatever its prompt's file says.
        facts = dict(prompt.facts) | {"base": self._identity()}

        def compute() -> Prefix:
            with torch.no_grad():
                return Prefix(self.prefill(prompt).map(row_major), key, facts)

        found = self._compiled.get((key, state), compute)
        # Prompts of the same values may say different things of themselves.
        return found if found.facts == facts else replace(found, facts=facts)

    def _in_own_dtype(self, prefix: Prefix) -> Prefix:
        """Return a prefix in the dtypes that the model keeps its states in."""
        own = [self.dtype]
        if not isinstance(prefix.states, DeferredPrompt):
            own = [tensor.dtype for tensor in self._probe().tensors]
        if own == [tensor.dtype for tensor in prefix.states.tensors]:
            return prefix
        dtypes = iter(own)
        return replace(
            prefix,
            states=prefix.states.map(lambda one: narrowed(one, next(dtypes), "the model's cache")),
        )

    def prefill(self, prompt: SoftPrompt) -> PrefixStates:
        """Return what rows start from behind a prompt, with gradient to it.

        Raises:
            InputError: numbers that the model's dtype does not hold.
        """
        check_unchanged(self.model, self.capabilities)
        if prompt.form == "key_values":
            own = iter(self._probe().tensors)  # of the dtypes that the model keeps them in
            return prompt.states.map(
                lambda tensor: narrowed(tensor, next(own).dtype, "the model's cache").to(
                    self.device
                )
            )
        return self.passes.start(self.placed(prompt))

    def placed(self, prompt: SoftPrompt) -> Tensor:
        """Return a prompt's embeddings `[P, H]` where and as the model takes them.

        Raises:
            InputError: numbers that the model's dtype does not hold.
        """
        return narrowed(prompt.embeddings, self.dtype, "the model").to(self.device)

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt] = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate as transformers' `generate` does, as if the virtual tokens did not exist.

        Args:
            prompt: a soft prompt, a prefix, None for the bare model, or a sequence with one of
                these for each row.
            input_ids: `[B, T]`, padded on either side; the encoder's where one reads text.
            attention_mask: `[B, T]`; with `past_key_values`, one column for every token so far.
            **kwargs: what `generate` takes; the features of an encoder that hears.

        The model's own generation configuration counts as in transformers, beneath the call's.

        Returns:
            What `generate` returns: sequences begin with `input_ids`, or as a decoder with an
            encoder begins them; scores are of real tokens.
            `attentions`, where asked for, keep the columns of the virtual tokens, first.

        Raises:
            MismatchError: a prompt of another base, or a cache started from other prompts.
            UnsupportedError: a strategy or cache that would not be exact.
        """
        check_unchanged(self.model, self.capabilities)
        if input_ids is None and isinstance(kwargs.get("inputs"), Tensor):
            input_ids = kwargs.pop("inputs")
        if kwargs.get("assistant_model") is not None:
            kwargs["assistant_model"] = _assistant(kwargs["assistant_model"])
        batch = self.batch_of(prompt, self.passes.num_rows(input_ids, kwargs))
        self._prove_media(input_ids, attention_mask, kwargs)
        return self._generate(self.passes, batch, input_ids, attention_mask, kwargs)

    def logits(
        self,
        prompt: Prompt | Sequence[Prompt],
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **media: Any,
    ) -> Tensor:
        """Return the logits `[B, T, V]` of every real token; those of padding mean nothing.

        With gradients enabled, they reach a prompt whose tensors require one. With an encoder they
        are of the decoder's tokens: `decoder_input_ids`, or `input_ids` where it does not read
        text.

        Args:
            prompt: as in `generate`.
            input_ids: `[B, T]`, padded on either side.
            attention_mask: `[B, T]`; default: no padding.
            **media: what the processor returns beside ids and mask.

        Raises:
            MismatchError: a prompt of another base.
            UnsupportedError: media that the model does not read.
            InputError: ids that the model does not have, or a mask of another shape.
        """
        check_unchanged(self.model, self.capabilities)
        num_rows = self.passes.num_rows(input_ids, media)
        if attention_mask is not None and input_ids is not None:
            checks.check_mask(attention_mask, *input_ids.shape)
            attention_mask = attention_mask.long()  # tokens are counted by it
        batch = self.batch_of(prompt, num_rows, needs_grad=torch.is_grad_enabled())
        return self.head(self.hidden(batch, input_ids, attention_mask, media))

    def hidden(
        self,
        batch: PrefixBatch,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        media: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the last hidden states `[B, T, H]` of real tokens, each row behind its prefix.

        `media` is what a processor returns beside ids and mask, the rows' one after another.

        Raises:
            UnsupportedError: media that the model does not read, or not behind a prefix.
            InputError: media that does not fit the placeholders, or ids that the model does not
                have.
        """
        check_unchanged(self.model, self.capabilities)
        if input_ids is not None:
            checks.check_ids(input_ids, self.capabilities.vocab_size)
        self._prove_media(input_ids, attention_mask, media or {})
        return self.passes.hidden(batch, input_ids, attention_mask, media or {})

    def label_states(self, prefixes: PrefixBatch, batch: Batch) -> LabelStates:
        """Return the hidden states before labels `[N, H]`, the labels `[N]` and rows `[N]`.

        Raises:
            InputError: ids that the model does not have.
        """
        check_unchanged(self.model, self.capabilities)
        checks.check_ids(batch.input_ids, self.capabilities.vocab_size)
        self._prove_media(batch.input_ids, batch.attention_mask, batch.media)
        return self.passes.label_states(prefixes, batch)

    def head(self, hidden: Tensor) -> Tensor:
        """Turn hidden states `[..., H]` into logits `[..., V]` with the model's own head, scale and
        soft cap.
        """
        return logits(self.model, self.capabilities, hidden)

    def batch_of(
        self, prompt: Prompt | Sequence[Prompt], num_rows: int, *, needs_grad: bool = False
    ) -> PrefixBatch:
        """Return the prefixes of a batch's rows; equal prompts share one."""
        prompts = list(prompt) if isinstance(prompt, list | tuple) else [prompt] * num_rows
        if len(prompts) != num_rows:
            raise InputError(
                f"{len(prompts)} prompts for {num_rows} rows; give one for all or one per row"
            )
        known: dict[int, Prefix | None] = {}
        if any(one is not None for one in prompts):
            self._notice()
        for one in prompts:
            if id(one) not in known:
                known[id(one)] = self._prefix(one, needs_grad)  # type: ignore[arg-type]
        return PrefixBatch(tuple(known[id(one)] for one in prompts))

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells this base from another: proportions and hashes of its numbers."""
        self._notice()
        return self._known_fingerprint()

    def _known_fingerprint(self) -> dict[str, Any]:
        if self._fingerprint is None:
            is_quantized = bool(getattr(self.model, "is_quantized", False))
            whole = self.model if self.capabilities.encoder else self.decoder
            samples = None if is_quantized else samples_of(self.model)
            self._fingerprint = compute_fingerprint(whole, self.embed, self.capabilities, samples)
        return self._fingerprint

    def identity(self) -> dict[str, Any]:
        """Return what tells it from another base, as a prompt records it."""
        self._notice()
        return self._identity()

    def _identity(self) -> dict[str, Any]:
        fingerprint = self._known_fingerprint()
        found = {"name": self.name, "revision": self.revision, "fingerprint": fingerprint}
        return found | ({"weights": self.weights} if self.weights else {})

    def tokenizer_facts(self) -> dict[str, Any] | None:
        """Return what tells its tokenizer from another, as a prompt records it."""
        tokenizer, known = self._tokenizer_facts
        if tokenizer is not self.tokenizer or known is None:
            known = tokenizer_facts.tokenizer_facts(self.tokenizer)
            self._tokenizer_facts = (self.tokenizer, known)
        if known is None:
            return None
        return known | {"chat_template": tokenizer_facts.template_hash(self.tokenizer)}

    def _prefix(self, prompt: Prompt, needs_grad: bool) -> Prefix | None:
        if prompt is None:
            return None
        if isinstance(prompt, Prefix):
            return self._compile(prompt)
        _check_kind(prompt)
        if needs_grad and any(tensor.requires_grad for tensor in prompt.tensors):
            self._check_base(prompt)
            return Prefix(self.prefill(prompt), "trained", prompt.facts)
        return self._compile(prompt)

    def _check_prefix(self, prefix: Prefix) -> None:
        """Refuse a prefix that was compiled for another base."""
        if not isinstance(prefix.states, DeferredPrompt):
            self._check_shapes(prefix.states)
        elif self.capabilities.encoder is not None:
            self._check_width(prefix.states.embeddings, prefix.facts)
        else:
            raise MismatchError(
                f"the prefix was compiled for a model with an encoder, and {self.name} has "
                "none: compile the prompt on this model"
            )
        self._check_fingerprint(prefix.facts)

    def _check_base(self, prompt: SoftPrompt) -> None:
        """Refuse a prompt of another base by name, before any arithmetic."""
        if prompt.form == "embeddings":
            self._check_width(prompt.embeddings, prompt.facts)
        else:
            self._check_shapes(prompt.states)
        self._check_fingerprint(prompt.facts)

    def _check_width(self, embeddings: Tensor, facts: Mapping[str, Any]) -> None:
        size = self.capabilities.hidden_size
        check_width(embeddings.shape[1], size, self.name, facts)

    def _check_fingerprint(self, facts: Mapping[str, Any]) -> None:
        if (facts.get("base") or {}).get("fingerprint") is not None:
            check_fingerprint(facts, self._known_fingerprint(), self.name)

    def _check_shapes(self, states: States) -> None:
        own = shapes_of(self._probe())
        check_shapes(shapes_of(states), own, self.name)

    def _probe(self) -> States:
        """Find what each layer keeps by letting the model read one token."""
        cast = self._cast
        if self._one_token is None or self._one_token[0] != cast:
            with torch.no_grad():
                token = self.embed(torch.zeros(1, dtype=torch.long, device="cpu"))
                self._one_token = cast, self.passes.prefill(token)
        return self._one_token[1]

    @property
    def _cast(self) -> torch.dtype | None:
        """The precision that an autocast around the call asks for."""
        return autocast.precision(self.device.type)

    def pin_weights(self) -> None:
        """Take the weights for unchanged from now on: their tensors are only spread."""
        self.fingerprint()  # of whole weights: it is remembered
        self._weights_version.pin()

    def _notice(self) -> None:
        """Forget what was computed of weights that have changed."""
        now = self._weights_version.now()
        if now != self._noticed:
            self._fingerprint, self._one_token = None, None
            self._noticed = now  # last: until then other threads forget, too

    def _prove_media(
        self, input_ids: Tensor | None, mask: Tensor | None, given: Mapping[str, Any]
    ) -> None:
        """Let an untested family prove itself on the first media that it is given."""
        if self._is_media_proved or input_ids is None:
            return
        media, _ = split_media(self.capabilities, given)
        if media.keys() - {self.capabilities.types}:
            prove_media(self, input_ids, mask, media)
            self._is_media_proved = True

    def can_generate(self) -> bool:
        """Refuse a pipeline of transformers, which asks a model this before anything else.

        Raises:
            UnsupportedError: says what to call.
        """
        raise UnsupportedError(
            "a pipeline of transformers knows no soft prompt, nor how rows of its training were "
            "written: call foreword.answer(backbone, prompt, texts), or give the pipeline "
            "backbone.model for the bare model"
        )

    def __repr__(self) -> str:
        return f"Backbone({self.name}, {self.capabilities.model_type}, {self.dtype}, {self.device})"


def _assistant(assistant: Any) -> Any:
    """Return a view of an assistant, whose sliding layers can then take candidates back."""
    if isinstance(assistant, Backbone):
        model, capabilities = assistant.model, assistant.capabilities
    else:
        model = assistant
        try:
            capabilities = inspect_model(model)
            if not capabilities.is_tested:
                capabilities = prove(model, capabilities, Backbone.unproved)
        except UnsupportedError:
            return model  # what it proposes is verified anyway
    if capabilities.encoder:
        return model
    return model_view.decoder_view(model, capabilities, no_prefixes(1))


def _tokenizer_of(processor: Any) -> Any:
    return getattr(processor, "tokenizer", None)


def _check_kind(prompt: object) -> None:
    if not isinstance(prompt, SoftPrompt):
        raise InputError(
            f"expected a SoftPrompt, a Prefix or None, got {type(prompt).__name__}; "
            "load a directory with SoftPrompt.load"
        )
