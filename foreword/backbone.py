"""One frozen language model: what it reads, compiles, generates and how it is told from another.

In: a transformers model. Out: prefixes, logits, hidden states, generations. The model is frozen,
never patched, and stays usable on its own. Everything that depends on a family or on a release of
transformers is behind this class, in `capabilities`, `layout`, `caches` and `generation`. It knows
ids, not text.
"""

import copy
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoTokenizer,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from foreword import arguments, caches, generation, identity, media_proof, models, processors
from foreword.capabilities import Capabilities, inspect_model
from foreword.errors import InputError, MismatchError, UnsupportedError
from foreword.media import Reading, split_media
from foreword.placeholders import Turn
from foreword.prefix import Prefix, PrefixBatch, no_prefixes
from foreword.prompt import KeyValues, SoftPrompt

Prompt = SoftPrompt | Prefix | None
NUM_COMPILED = 8  # prompts whose prefix is remembered by content


class Backbone:
    """A frozen causal language model that takes prefixes.

    Args:
        hf_model: a transformers causal language model in memory; its parameters stop taking
            gradients.
        tokenizer: its tokenizer, where text is to be read; ids in and ids out need none.
        processor: its processor, where messages with images or sounds are to be read.
        name: how the model is called in a saved prompt; default: what the model calls itself.

    Raises:
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
        self.capabilities: Capabilities = inspect_model(hf_model)
        self.model = hf_model.eval().requires_grad_(False)
        self.processor = processor
        self.tokenizer = tokenizer if tokenizer is not None else _tokenizer_of(processor)
        self.name = name or getattr(hf_model, "name_or_path", "") or hf_model.config.model_type
        self.revision: str | None = getattr(hf_model.config, "_commit_hash", None)
        self._compiled: OrderedDict[str, Prefix] = OrderedDict()
        self._lock = threading.Lock()
        self._fingerprint: dict[str, Any] | None = None
        self._layer_shapes: identity.Shapes | None = None
        self._is_media_proved = self.capabilities.is_tested
        if not self.capabilities.is_tested:
            self._prove_family()

    @classmethod
    def load(
        cls,
        model: str,
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        revision: str | None = None,
        **kwargs: Any,
    ) -> "Backbone":
        """Load a model by name, directory or GGUF file.

        Args:
            model: "smollm2-135m", a Hub id, a local directory, or a .gguf file.
            dtype: "auto" is float32 on a CPU and the checkpoint's own on an accelerator.
            device: "auto" is the accelerator where there is one.
            revision: of a Hub id.
            **kwargs: more arguments of transformers' `from_pretrained`.

        Raises:
            InputError: no such model. UnsupportedError: a model that cannot be made exact.
        """
        source = models.resolve(model)
        place = _device(device)
        if dtype == "auto" and place.type == "cpu":
            dtype = torch.float32
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
            trust = {name: kwargs[name] for name in ("trust_remote_code",) if name in kwargs}
            config = kwargs.get("config") or AutoConfig.from_pretrained(
                source, revision=revision, **trust
            )
            kind = _model_class(config)
            loaded = kind.from_pretrained(source, dtype=dtype, revision=revision, **kwargs)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"{model}: transformers cannot load it ({reason})") from error
        if "device_map" not in kwargs:
            loaded = loaded.to(place)
        processor = None
        if kind is AutoModelForMultimodalLM:
            processor = processors.load(source, config, revision)
        return cls(loaded, tokenizer, processor=processor, name=model)

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

    def embed(self, input_ids: Tensor) -> Tensor:
        """Return the embeddings that the model computes for ids: `[..., T]` to `[..., T, H]`."""
        embedded: Tensor = self.model.get_input_embeddings()(input_ids.to(self.device))
        return embedded

    def compile(self, prompt: SoftPrompt | Prefix) -> Prefix:
        """Compute a prompt's prefix: what the model's cache holds after its virtual tokens.

        The result does not change when the prompt is trained further. A prompt with the same values
        is not computed again.

        Raises:
            MismatchError: the prompt was made for another base model.
        """
        if isinstance(prompt, Prefix):
            return prompt
        _check_kind(prompt)
        self._check_base(prompt)
        key = prompt.content_hash
        with self._lock:
            if key in self._compiled:
                self._compiled.move_to_end(key)
                return self._compiled[key]
        with torch.no_grad():
            states = tuple((k.clone(), v.clone()) for k, v in self.read(prompt))
        # A prefix is a state of this very model, whatever its prompt's file says.
        base = {"name": self.name, "revision": self.revision, "fingerprint": self.fingerprint()}
        prefix = Prefix(states, key, dict(prompt.facts) | {"base": base})
        with self._lock:
            self._compiled[key] = prefix
            while len(self._compiled) > NUM_COMPILED:
                self._compiled.popitem(last=False)
        return prefix

    def read(self, prompt: SoftPrompt) -> KeyValues:
        """Return every layer's keys and values `[N, P, D]`, with gradient to the prompt."""
        if prompt.form == "key_values":
            return tuple(
                (keys.to(self.device, self.dtype), values.to(self.device, self.dtype))
                for keys, values in prompt.key_values
            )
        return self.read_embeddings(prompt.embeddings.to(self.device, self.dtype))

    def read_embeddings(self, embeddings: Tensor) -> KeyValues:
        """Run the model over embeddings `[P, H]`; return each layer's keys and values."""
        arguments.check_length(self.capabilities, 0, len(embeddings))
        cache = caches.uncached(no_prefixes(1), self.capabilities.num_layers)
        tokens = {"inputs_embeds": embeddings[None]}
        if self.capabilities.virtual_id is not None:
            ids = torch.full((1, len(embeddings)), self.capabilities.virtual_id, device=self.device)
            looked_up = self.decoder.embed_tokens_per_layer(ids)
            num_layers = self.decoder.config.num_hidden_layers
            tokens["per_layer_inputs"] = looked_up.unflatten(-1, (num_layers, -1))
        self._decode(no_prefixes(1), cache, None, None, **tokens)
        return tuple((layer.keys[0], layer.values[0]) for layer in cache.layers)

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
            input_ids: `[B, T]`, padded on either side.
            attention_mask: `[B, T]`; with `past_key_values`, one column for every token so far.
            **kwargs: what `generate` takes.

        Returns:
            What `generate` returns: sequences begin with `input_ids`, scores are of real tokens.
            `attentions`, where asked for, keep the columns of the virtual tokens, first.

        Raises:
            MismatchError: a prompt of another base, or a cache started from other prompts.
            UnsupportedError: a strategy or cache that would not be exact.
        """
        if input_ids is None and isinstance(kwargs.get("inputs"), Tensor):
            input_ids = kwargs.pop("inputs")
        if kwargs.get("assistant_model") is not None:
            kwargs["assistant_model"] = self._assistant(kwargs["assistant_model"])
        inputs = input_ids if input_ids is not None else kwargs.get("inputs_embeds")
        if inputs is None:
            raise InputError("generate needs input_ids or inputs_embeds; got neither")
        name = "input_ids" if input_ids is not None else "inputs_embeds"
        arguments.check_inputs(inputs, self.capabilities.vocab_size, name)
        batch = self.batch_of(prompt, inputs.shape[0])
        if not self._is_media_proved and input_ids is not None:
            found, _ = split_media(self.capabilities, kwargs)
            self._prove_media(input_ids, attention_mask, found)
        return generation.generate(
            self.model, self.capabilities, batch, input_ids, attention_mask, kwargs
        )

    def logits(
        self,
        prompt: Prompt | Sequence[Prompt],
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        **media: Any,
    ) -> Tensor:
        """Return the logits `[B, T, V]` of every real token; those of padding mean nothing.

        With gradients enabled, they reach a prompt whose tensors require one.
        """
        arguments.check_inputs(input_ids, self.capabilities.vocab_size)
        if attention_mask is not None:
            arguments.check_mask(attention_mask, *input_ids.shape)
        batch = self.batch_of(prompt, input_ids.shape[0], needs_grad=torch.is_grad_enabled())
        return self.head(self.hidden(batch, input_ids.to(self.device), attention_mask, media))

    def hidden(
        self,
        batch: PrefixBatch,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        media: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the last hidden states `[B, T, H]` of real tokens, each row behind its prefix.

        `media` is what a processor returns beside ids and mask, the rows' one after another.

        Raises:
            UnsupportedError: media that the model does not read, or not behind a prefix.
            InputError: media that does not fit the placeholders.
        """
        found, others = split_media(self.capabilities, media or {})
        if others:
            known = ", ".join(["input_ids", "attention_mask", *sorted(self.capabilities.media)])
            raise UnsupportedError(
                f"{self.capabilities.model_type} takes no {', '.join(sorted(others))}; "
                f"give {known} only"
            )
        self._prove_media(input_ids, attention_mask, found)
        return self.read_rows(batch, input_ids, attention_mask, found)

    def read_rows(
        self,
        batch: PrefixBatch,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        media: Mapping[str, Tensor],
    ) -> Tensor:
        """Return the last hidden states `[B, T, H]` without a look at what was given."""
        cache = caches.uncached(batch, self.capabilities.num_layers)
        longest = input_ids.shape[1] if attention_mask is None else int(attention_mask.sum(1).max())
        arguments.check_length(
            self.capabilities, longest, batch.num_slots, is_cached=batch.num_slots > 0
        )
        reading = None
        if self.capabilities.modalities:
            turn = Turn(input_ids, attention_mask, 0, 0, batch.num_virtual, None)
            reading = generation.read_media(self.model, self.capabilities, turn, media)
        return self._decode(batch, cache, attention_mask, reading, input_ids=input_ids)

    def head(self, hidden: Tensor) -> Tensor:
        """Turn hidden states `[..., H]` into logits `[..., V]` with the model's own head, scale and
        soft cap.
        """
        decoder = _Given(hidden.reshape(1, -1, hidden.shape[-1]))
        head = copy.copy(self.model)
        head.__dict__["_modules"] = dict(self.model._modules) | {self.capabilities.decoder: decoder}
        logits = (
            type(self.model).forward(head, inputs_embeds=decoder.hidden, use_cache=False).logits
        )
        return logits.reshape(*hidden.shape[:-1], -1)  # type: ignore[no-any-return]

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
        for one in prompts:
            if id(one) not in known:
                known[id(one)] = self._prefix(one, needs_grad)  # type: ignore[arg-type]
        return PrefixBatch(tuple(known[id(one)] for one in prompts))

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells this base from another: proportions and hashes of its numbers."""
        if self._fingerprint is None:
            is_quantized = bool(getattr(self.model, "is_quantized", False))
            self._fingerprint = identity.fingerprint(
                self.decoder, self.embed, self.capabilities, is_quantized
            )
        return self._fingerprint

    @staticmethod
    def _assistant(assistant: Any) -> Any:
        """Return a view of an assistant, whose sliding layers can then take candidates back."""
        model = assistant.model if isinstance(assistant, Backbone) else assistant
        try:
            capabilities = inspect_model(model)
        except UnsupportedError:
            return model  # what it proposes is verified anyway
        return generation.view(model, capabilities, no_prefixes(1), (0,))

    def _prefix(self, prompt: Prompt, needs_grad: bool) -> Prefix | None:
        if prompt is None:
            return None
        if isinstance(prompt, Prefix):
            self._check_shapes(prompt.key_values)
            self._check_fingerprint(prompt.facts)
            return prompt
        _check_kind(prompt)
        if needs_grad and any(tensor.requires_grad for tensor in prompt.tensors):
            self._check_base(prompt)
            return Prefix(self.read(prompt), "trained", prompt.facts)
        return self.compile(prompt)

    def _check_base(self, prompt: SoftPrompt) -> None:
        """Refuse a prompt of another base by name, before any arithmetic."""
        if prompt.form == "embeddings":
            found = prompt.embeddings.shape[1]
            if found != self.capabilities.hidden_size:
                made_for = identity.base_name(prompt.facts)
                raise MismatchError(
                    f"the prompt has hidden size {found}, {self.name} has "
                    f"{self.capabilities.hidden_size}; it was made for {made_for}"
                )
        else:
            self._check_shapes(prompt.key_values)
        self._check_fingerprint(prompt.facts)

    def _check_fingerprint(self, facts: Mapping[str, Any]) -> None:
        if (facts.get("base") or {}).get("fingerprint") is not None:
            identity.check_fingerprint(facts, self.fingerprint(), self.name)

    def _check_shapes(self, key_values: KeyValues) -> None:
        identity.check_shapes(identity.shapes_of(key_values), self._shapes(), self.name)

    def _shapes(self) -> identity.Shapes:
        """Find what each layer caches by letting the model read one token."""
        if self._layer_shapes is None:
            with torch.no_grad():
                token = self.embed(torch.zeros(1, dtype=torch.long))
                self._layer_shapes = identity.shapes_of(self.read_embeddings(token))
        return self._layer_shapes

    def _decode(
        self,
        batch: PrefixBatch,
        cache: Cache,
        attention_mask: Tensor | None,
        reading: Reading | None = None,
        **tokens: Tensor,
    ) -> Tensor:
        """Run the decoder without its head over one pass of tokens and return `[B, T, H]`."""
        given = tokens["input_ids"] if "input_ids" in tokens else tokens["inputs_embeds"]
        placed = generation.model_inputs(
            self.capabilities, batch, cache, given, attention_mask, 0, self.dtype, reading
        )
        output = generation.read_pass(self.decoder, tokens | placed)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _prove_family(self) -> None:
        """Run an untested family once, cached against uncached and padded against alone, and refuse
        it if it differs or cannot be run so.
        """
        try:
            error, scale = self._self_test()
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, TypeError, ValueError, RuntimeError) as failure:
            reason = (
                str(failure).strip().splitlines()[0] if str(failure) else type(failure).__name__
            )
            raise UnsupportedError(
                f"{self.capabilities.model_type}: its decoder does not take a cache, positions and "
                f"masks as known families do ({reason}); this family cannot be made exact yet"
            ) from failure
        limit = 1e-3 if self.dtype in (torch.float32, torch.float64) else 0.5
        if not error <= limit * scale:
            raise UnsupportedError(
                f"{self.capabilities.model_type}: a prefix and the text it stands for give logits "
                f"that differ by {error:.2g}; this family cannot be made exact yet"
            )

    def _prove_media(
        self, input_ids: Tensor, attention_mask: Tensor | None, media: dict[str, Tensor]
    ) -> None:
        """Let an untested family prove itself on the first media that it is given."""
        if self._is_media_proved or not media.keys() - {self.capabilities.types}:
            return
        media_proof.prove(self, input_ids, attention_mask, media)
        self._is_media_proved = True

    def _self_test(self) -> tuple[float, float]:
        """Return how much logits behind a prefix differ from those behind its text, and their
        size.
        """
        vocab = self.capabilities.vocab_size
        ids = (torch.arange(1, 9, device=self.device) * 7919) % vocab
        for modality in self.capabilities.modalities:  # a placeholder would want its media
            ids[ids == modality.token_id] = (modality.token_id + 1) % vocab
        if self.capabilities.virtual_id is not None:
            ids[:5] = self.capabilities.virtual_id
        real = ids[5:]
        rows = torch.stack([real, real.roll(1), real.roll(1)])
        mask = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 1, 1]], device=self.device)
        with torch.no_grad():
            prompt = Prefix(self.read_embeddings(self.embed(ids[:5])), "self-test")
            batch = PrefixBatch((prompt, prompt, None))
            found = self.head(self.hidden(batch, rows, mask))
            whole = self.head(self.hidden(no_prefixes(1), ids[None], None))[0, 5:]
            alone = self.head(self.hidden(no_prefixes(1), real[None, :2], None))[0]
        expected = torch.cat([whole, whole[:2], alone])
        difference = torch.cat([found[0], found[1, 1:], found[2, 1:]]) - expected
        return difference.abs().max().item(), expected.abs().max().item()

    def __repr__(self) -> str:
        return f"Backbone({self.name}, {self.capabilities.model_type}, {self.dtype}, {self.device})"


class _Given(Module):
    """Stands for a decoder whose hidden states are known, so that a model's own head can be applied
    to them.
    """

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *args: Any, **kwargs: Any) -> "_Hidden":
        return _Hidden(last_hidden_state=self.hidden)


class _Hidden(BaseModelOutputWithPast):
    """A decoder's output of which only the hidden states are known: all else is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _model_class(config: Any) -> Any:
    """Return the auto class that loads a model, with its images and sounds where it has any."""
    text, whole = AutoModelForCausalLM._model_mapping, AutoModelForMultimodalLM._model_mapping
    kind = type(config)
    # Some families name the same class twice, and others a class that reads text alone.
    is_text = kind not in whole or (kind in text and text[kind] is not whole[kind])
    return AutoModelForCausalLM if is_text else AutoModelForMultimodalLM


def _tokenizer_of(processor: Any) -> Any:
    return getattr(processor, "tokenizer", None)


def _device(device: str | torch.device) -> torch.device:
    if device != "auto":
        return torch.device(device)
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _check_kind(prompt: object) -> None:
    if not isinstance(prompt, SoftPrompt):
        raise InputError(
            f"expected a SoftPrompt, a Prefix or None, got {type(prompt).__name__}; "
            "load a directory with SoftPrompt.load"
        )
