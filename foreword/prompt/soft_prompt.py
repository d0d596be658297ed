"""Soft prompt: the learned values and what is known of them.

In: embeddings `[P, H]`, or each layer's state: keys and values `[N, P, D]`, whose N and D may
differ from layer to layer and from keys to values, and recurrent states. Out: the same, validated,
saved and loaded, in PEFT's format where it has one. Knows no model: a backbone compiles a
`SoftPrompt` to a prefix.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from foreword import notebook
from foreword.config import Form
from foreword.errors import FormError, InputError
from foreword.prompt import artifact, history, peft_format, stored_prompt
from foreword.prompt.artifact import Artifact
from foreword.prompt.facts import asked_as, check_before_saving
from foreword.prompt.layout import hash_with, layout_of
from foreword.prompt.narrowing import narrowed
from foreword.prompt.peft_format import Parts
from foreword.prompt.states import KeyValues, States, regroup, row_major
from foreword.prompt.stored_prompt import BFLOAT16, Array, StoredPrompt
from foreword.storage import path_of


class SoftPrompt:
    """`P` virtual tokens, as embeddings `[P, H]` or as each layer's keys and values `[N, P, D]`.

    Embeddings live in the space of the model's `inputs_embeds`: after the scale, if any, that the
    model applies to those of ids. Keys are cached keys: rotated already, at positions `0..P-1`. On
    models with recurrent layers the form "key_values" is a *state prompt*: it holds those layers'
    states after P tokens too, which have no length of their own.

    Args:
        form: "embeddings" or "key_values".
        tensors: one `[P, H]`, or all layers' tensors in a row.
        facts: what is known of the prompt.
        counts: tensors of each layer, where they are not a pair everywhere; see `states`.
        num_virtual_tokens: P, where no layer keeps keys and values.

    Raises:
        InputError: another form, no tensors, other shapes, layers that differ in P, or facts that
            are not what they are read as.
    """

    def __init__(
        self,
        form: Form,
        tensors: Sequence[Tensor],
        facts: Mapping[str, Any] | None = None,
        *,
        counts: Sequence[int] | None = None,
        num_virtual_tokens: int | None = None,
    ):
        self.form: Form = form
        self.tensors = _listed(form, tensors)
        if form == "embeddings":
            self.num_virtual_tokens = self.tensors[0].shape[0]
            if num_virtual_tokens not in (None, self.num_virtual_tokens):
                raise InputError(
                    f"expected embeddings of {num_virtual_tokens} virtual tokens, got shape "
                    f"{_shape(self.tensors[0])}"
                )
            self.counts: tuple[int, ...] = ()
        else:
            self.counts = tuple(counts or (2,) * (len(self.tensors) // 2))
            states = regroup(self.tensors, self.counts, num_virtual_tokens)
            self.num_virtual_tokens = states.num_virtual_tokens
        self.facts = dict(facts or {}) if isinstance(facts, Mapping | None) else facts
        if wrong := artifact.wrong_fact(self.facts):
            raise InputError(f"facts: {wrong}")

    @classmethod
    def from_embeddings(
        cls, embeddings: Tensor, *, facts: Mapping[str, Any] | None = None
    ) -> "SoftPrompt":
        """Make a prompt of virtual token embeddings `[P, H]`.

        Raises:
            InputError: another shape, no rows, or values that are not finite.
        """
        if not isinstance(embeddings, Tensor) or embeddings.ndim != 2 or not embeddings.numel():
            raise InputError(f"expected embeddings of shape [P, H], got {_shape(embeddings)}")
        _check_values([embeddings], "embeddings")
        return cls("embeddings", [embeddings], facts)

    @classmethod
    def from_key_values(
        cls, key_values: Sequence[Sequence[Tensor]], *, facts: Mapping[str, Any] | None = None
    ) -> "SoftPrompt":
        """Make a prompt of cached keys and values: one pair of `[N, P, D]` for each layer.

        Raises:
            InputError: no layers, other shapes, layers that differ in P, or values that are not
                finite.
        """
        try:
            pairs = [(keys, values) for keys, values in key_values]
        except (TypeError, ValueError):
            pairs = []
        if not pairs:
            raise InputError("expected one (keys, values) pair for each layer of the model")
        for index, pair in enumerate(pairs):
            for tensor in pair:
                if not isinstance(tensor, Tensor) or tensor.ndim != 3 or not tensor.numel():
                    raise InputError(
                        f"layer {index}: expected keys and values [N, P, D], got {_shape(tensor)}"
                    )
        tensors = [tensor for pair in pairs for tensor in pair]
        return cls.from_states(regroup(tensors, [2] * len(pairs)), facts=facts)

    @classmethod
    def from_states(cls, states: States, *, facts: Mapping[str, Any] | None = None) -> "SoftPrompt":
        """Make a prompt of every layer's state, recurrent ones included.

        Raises:
            InputError: tensors of several dtypes, or values that are not finite.
        """
        tensors = states.tensors
        dtypes = sorted({str(tensor.dtype) for tensor in tensors})
        # Some models keep their recurrent states in float32 beside keys of another dtype.
        if len(dtypes) > 1 and not states.is_recurrent:
            raise InputError(f"keys and values are of several dtypes: {', '.join(dtypes)}; use one")
        _check_values(tensors, "states" if states.is_recurrent else "keys and values")
        return cls(
            "key_values",
            tensors,
            facts,
            counts=[len(layer) for layer in states],
            num_virtual_tokens=states.num_virtual_tokens,
        )

    @property
    def num_parameters(self) -> int:
        """How many numbers are learned."""
        return sum(tensor.numel() for tensor in self.tensors)

    @property
    def num_bytes(self) -> int:
        """Size of the values in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def layout(self) -> dict[str, Any]:
        """The arguments of `SoftPrompt` beside tensors and facts, as plain data."""
        return layout_of(self.form, self.counts, self.num_virtual_tokens)

    @property
    def embeddings(self) -> Tensor:
        """The virtual token embeddings `[P, H]` of an embedding prompt.

        Raises:
            FormError: the prompt holds keys and values.
        """
        if self.form != "embeddings":
            raise FormError("a key/value prompt has no embeddings; use .key_values")
        return self.tensors[0]

    @property
    def states(self) -> States:
        """Every layer's state of a key/value prompt.

        Raises:
            FormError: the prompt holds embeddings.
        """
        if self.form != "key_values":
            raise FormError("an embedding prompt has no keys; compile it and use Prefix.key_values")
        return regroup(self.tensors, self.counts, self.num_virtual_tokens)

    @property
    def key_values(self) -> KeyValues:
        """Each layer's keys and values `[N, P, D]` of a key/value prompt."""
        return self.states.key_values

    @property
    def content_hash(self) -> str:
        """SHA-256 of the values, and of their layout where they do not tell it, as P of recurrent
        states: equal prompts have equal hashes, and a trained one has another.
        """
        return hash_with(artifact.content_hash(self.tensors), self.tensors, self.layout)

    def trainable(self, dtype: torch.dtype = torch.float32) -> "SoftPrompt":
        """Return a copy whose tensors are leaves that take a gradient, in `dtype`.

        Raises:
            InputError: numbers that the dtype does not hold.
        """
        copies = [row_major(narrowed(t.detach(), dtype, "the copy")) for t in self.tensors]
        return self.replaced([one.requires_grad_() for one in copies])

    def detached(self) -> "SoftPrompt":
        """Return a copy that later training steps do not change, in row-major order."""
        return self.replaced([row_major(tensor) for tensor in self.tensors])

    def replaced(
        self, tensors: Sequence[Tensor], facts: Mapping[str, Any] | None = None
    ) -> "SoftPrompt":
        """Return a prompt of the same shape with other values, and other facts where given."""
        return SoftPrompt(
            self.form,
            tensors,
            self.facts if facts is None else facts,
            counts=self.counts,
            num_virtual_tokens=self.num_virtual_tokens,
        )

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the prompt as a PEFT adapter: PROMPT_TUNING, or PREFIX_TUNING for keys and values.

        Keys and values whose layers differ in shape, for which PEFT has no layout, are written so
        that only foreword reads them.

        Raises:
            StorageError: no space or no permission; what was there before is kept.
            InputError: values or facts that could not be loaded again, as NaN, no path, or the
                files of another kind of adapter lie there; nothing is written.
        """
        self.write(directory)

    def write(self, directory: str | os.PathLike[str], *, is_cartridge: bool = False) -> None:
        """Write the prompt as `save` does; `is_cartridge`: its keys and values as a CARTRIDGE."""
        target = path_of(directory, "the directory to save to")
        check_before_saving(self.facts, target)
        try:  # tensors may have been changed, or replaced, since the prompt was made
            self.replaced(self.tensors)
            _check_values(self.tensors, "values")
        except InputError as error:
            raise InputError(f"{target}: not saved; {error}") from None
        facts = self.facts | {
            "format_version": artifact.FORMAT_VERSION,
            "content_hash": artifact.content_hash(self.tensors),
            "form": self.form,
        }
        parts = Parts(self.form, self.tensors, self.counts, self.num_virtual_tokens)
        config, tensors = peft_format.to_adapter(
            parts, self.facts.get("base") or {}, is_cartridge=is_cartridge
        )
        artifact.write(target, Artifact(tensors, config, facts))

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> "SoftPrompt":
        """Read a prompt written by foreword or by stock PEFT; nothing in it is executed.

        Args:
            directory: its directory, a folder with the one of a single prompt in it, or a Hub id,
                as `owner/name` or `owner/name@revision`.

        Raises:
            ArtifactError: missing, truncated or hostile files, NaN, or not a soft prompt (LoRA);
                a folder of several prompts; a Hub id that cannot be downloaded.
            InputError: no path at all.
        """
        return cls.from_stored(stored_prompt.read(directory))

    @classmethod
    def from_stored(cls, stored: StoredPrompt) -> "SoftPrompt":
        """Return a prompt that was read from its files."""
        prompt = cls(
            stored.form,
            [_as_tensor(array) for array in stored.arrays],
            counts=stored.counts,
            num_virtual_tokens=stored.num_virtual_tokens,
        )
        prompt.facts = stored.facts
        return prompt

    def outline(self) -> dict[str, Any]:
        """Return what the prompt says of itself, in reading order; unknown facts are left out."""
        known = self.facts
        base = known.get("base") or {}
        metrics = known.get("metrics") or {}
        held_out = metrics.get("validation") or {}
        facts = {
            "base": base.get("name") or "not recorded",
            "weights": base.get("weights"),
            "revision": base.get("revision"),
            "form": self.form,
            "virtual tokens": self.num_virtual_tokens,
            "asked as": asked_as(known),
            "numbers": f"{self.num_parameters:,}",
            "size": f"{self.num_bytes / 1e6:.2f} MB",
            "method": known.get("method"),
            "objective": (known.get("training") or {}).get("objective"),
            "trained": known.get("created"),
            "rows": (known.get("training") or {}).get("num_rows"),
            "step": metrics.get("step"),
            "training loss": metrics.get("training_loss"),
            "validation loss": held_out.get("loss"),
            "validation exact": held_out.get("exact"),
            "validation preferred": held_out.get("preferred"),
            "validation reward": held_out.get("reward"),
            "curve": history.line(known["history"]) if known.get("history") else None,
            "content": self.content_hash[:16],
        }
        return {name: value for name, value in facts.items() if value is not None}

    def _repr_html_(self) -> str:
        return notebook.table("SoftPrompt", self.outline())

    def __repr__(self) -> str:
        return (
            f"SoftPrompt({self.form}, P={self.num_virtual_tokens}, {self.num_parameters:,} numbers)"
        )


def _as_tensor(array: Array) -> Tensor:
    """Return a tensor over the memory of an array."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == BFLOAT16 else tensor


def _listed(form: object, tensors: object) -> list[Tensor]:
    """Return the tensors of a prompt; their values are not looked at."""
    if form not in get_args(Form):
        raise InputError(f"form: expected one of {', '.join(get_args(Form))}, got {form!r:.60}")
    found = list(tensors) if isinstance(tensors, Iterable) else []
    if not found or not all(isinstance(tensor, Tensor) for tensor in found):
        raise InputError(f"expected tensors, got {[_shape(one) for one in found] or tensors!r:.80}")
    if form == "embeddings" and (len(found) > 1 or found[0].ndim != 2 or not found[0].numel()):
        shapes = ", ".join(_shape(tensor) for tensor in found)
        raise InputError(f"expected embeddings of shape [P, H], got {shapes:.80}")
    return found


def _check_values(tensors: list[Tensor], what: str) -> None:
    for tensor in tensors:
        if tensor.layout != torch.strided or tensor.is_meta:
            kind = "on the device meta, without values" if tensor.is_meta else str(tensor.layout)
            raise InputError(f"expected {what} as dense tensors, got a tensor {kind}")
        if tensor.dtype not in artifact.DTYPES:
            raise InputError(
                f"expected floating point {what} of 16, 32 or 64 bits, got {tensor.dtype}"
            )
        if not bool(torch.isfinite(tensor.detach()).all()):
            raise InputError(f"the {what} hold NaN or infinite values; check where they come from")


def _shape(value: object) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__
