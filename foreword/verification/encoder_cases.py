"""Contract cases of a model with an encoder: fast results against the slow obvious computation.

In: a model whose passes foreword runs. Out: for each case, the largest difference of its logits
from the reference, as a share of their spread. The reference is the model's own forward pass over
one row: the encoder reads the prompt's ids before the text, or, where it takes sounds or images,
the decoder reads them before its own. Knows no family.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from foreword.compat.transformers_api import BaseModelOutput
from foreword.prompt.prefix import Prefix
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.prompt.states import DeferredPrompt
from foreword.verification.cases import Forced, Trials, distance
from foreword.verification.frozen_model import FrozenModel

NUM_NEW = 5
NUM_FRAMES = 4  # of the encoder output that stands for a sound or an image
TEXT_LENGTHS = (7, 4, 9)


@dataclass(frozen=True, eq=False)
class EncoderTrials:
    """Rows of text, or of what an encoder made of a sound, behind prompts of several lengths.

    Attributes:
        backbone: the model, with the passes to be compared.
    """

    backbone: FrozenModel

    @cached_property
    def _ids(self) -> Trials:
        return Trials(self.backbone)

    @property
    def _reads_text(self) -> bool:
        encoder = self.backbone.capabilities.encoder
        assert encoder is not None
        return encoder.reads_text

    @property
    def _is_counted(self) -> bool:
        encoder = self.backbone.capabilities.encoder
        return encoder is not None and not encoder.reads_text and encoder.placing == "counted"

    @cached_property
    def texts(self) -> list[Tensor]:
        """What the encoder reads, ids `[T]` each."""
        return [self._ids.ids(17 * row, length) for row, length in enumerate(TEXT_LENGTHS)]

    @cached_property
    def virtual(self) -> list[Tensor]:
        """The ids whose embeddings are each row's prompt, `[P]`."""
        counts = (5, 5, 5) if self._is_counted else (5, 3, 0)
        return [self._ids.ids(40 + 7 * row, count) for row, count in enumerate(counts)]

    @cached_property
    def prompts(self) -> list[Prefix | None]:
        """Each row's prompt."""
        return [
            Prefix(DeferredPrompt(self.backbone.embed(ids)), f"proof-{row}") if len(ids) else None
            for row, ids in enumerate(self.virtual)
        ]

    @cached_property
    def frames(self) -> Tensor:
        """Numbers that stand for encoder outputs `[B, S, H]`."""
        size = self.backbone.capabilities.hidden_size
        numbers = torch.arange(3 * NUM_FRAMES * size, device=self.backbone.device)
        found: Tensor = torch.sin(numbers.float()).to(self.backbone.dtype).reshape(3, -1, size)
        return found

    @cached_property
    def start(self) -> int:
        """The id that begins every decoded sequence."""
        assert self.backbone.capabilities.encoder is not None
        return self.backbone.capabilities.encoder.start_id

    @cached_property
    def decoded(self) -> Tensor:
        """Each row's decoded ids `[B, 1 + N]`, the first one included."""
        first = torch.tensor([self.start], device=self.backbone.device)
        rows = [torch.cat([first, self._ids.ids(70 + 11 * row, NUM_NEW)]) for row in range(3)]
        return torch.stack(rows)

    def reference(self, row: int, ids: Tensor | None = None, *, is_bare: bool = False) -> Tensor:
        """Return the logits `[T, V]` of decoded ids `[T]`, a row's own by default, by the model
        itself.
        """
        model, ids = self.backbone.model, (self.decoded[row] if ids is None else ids)[None]
        virtual = self.virtual[row][:0] if is_bare else self.virtual[row]
        if self._reads_text:
            whole = torch.cat([virtual, self.texts[row]])[None]
            found = model(input_ids=whole, decoder_input_ids=ids, use_cache=False)
            return found.logits[0]  # type: ignore[no-any-return]
        output = BaseModelOutput(last_hidden_state=self.frames[row][None])
        whole = torch.cat([virtual, ids[0]])[None]
        found = model(encoder_outputs=output, decoder_input_ids=whole, use_cache=False)
        return found.logits[0, len(virtual) :]  # type: ignore[no-any-return]

    def _given(self, order: Sequence[int]) -> dict[str, Any]:
        if not self._reads_text:
            output = BaseModelOutput(last_hidden_state=self.frames[list(order)])
            return {"encoder_outputs": output}
        rows = [self.texts[row] for row in order]
        ids, mask = self._ids.padded(rows, is_left=False)
        return {"input_ids": ids, "attention_mask": mask}

    def logits(self) -> float:
        """Return the distance of a padded, mixed batch's logits."""
        found = self.backbone.logits(
            self.prompts, **self._given((0, 1, 2)), decoder_input_ids=self.decoded
        )
        return max(distance(found[row], self.reference(row)) for row in range(3))

    def generate(self, order: Sequence[int], **options: Any) -> float:
        """Return how far forced generation of some rows is from the reference."""
        forced = self.decoded[list(order), 1:]
        given = self._given(order)
        ids, mask = given.pop("input_ids", None), given.pop("attention_mask", None)
        if ids is None:
            given["decoder_input_ids"] = self.decoded[list(order), :1]
        output = self.backbone.generate(
            [self.prompts[row] for row in order],
            ids,
            mask,
            max_new_tokens=NUM_NEW,
            logits_processor=LogitsProcessorList([Forced(forced)]),
            do_sample=False,
            num_beams=1,
            eos_token_id=None,
            forced_bos_token_id=None,
            forced_eos_token_id=None,
            decoder_start_token_id=self.start,
            return_dict_in_generate=True,
            output_logits=True,
            **given,
            **options,
        )
        steps = torch.stack(output.logits, 1)
        said = output.sequences[:, -steps.shape[1] - 1 :]
        return max(
            distance(steps[index], self.reference(row, said[index, :-1]))
            for index, row in enumerate(order)
        )

    def key_values(self) -> float:
        """Return the distance of a row behind keys and values of the decoder's self-attention."""
        passes: Any = self.backbone.passes
        given = self._given((0,))
        output: Any = BaseModelOutput(last_hidden_state=self.frames[:1])
        if self._reads_text:
            output = self.backbone.model.get_encoder()(**given)
        hidden = output.last_hidden_state
        before = self._ids.ids(55, 4)
        (states,) = passes.states_after(hidden, input_ids=before[None])
        prompt = SoftPrompt.from_states(states)
        found = self.backbone.logits(prompt, **given, decoder_input_ids=self.decoded[:1])[0]
        whole = torch.cat([before, self.decoded[0]])[None]
        model = self.backbone.model
        expected = model(encoder_outputs=output, decoder_input_ids=whole, use_cache=False).logits
        return distance(found, expected[0, len(before) :])

    def rounding(self) -> float:
        """Return how far a row's logits move when its encoder output moves by one unit of
        rounding.
        """
        model, ids = self.backbone.model, self.decoded[:1]
        frames = self.frames[:1]
        moved = frames * (1 + torch.finfo(frames.dtype).eps)
        one, other = (
            model(encoder_outputs=(given,), decoder_input_ids=ids, use_cache=False).logits[0]
            for given in (frames, moved)
        )
        return distance(other, one)

    def strength(self) -> float:
        """Return how far a prompt moves the logits, measured as the cases are."""
        return distance(self.reference(0), self.reference(0, is_bare=True))


CORE: dict[str, Callable[[EncoderTrials], float]] = {
    "padded and mixed rows": EncoderTrials.logits,
    "one row": lambda trials: trials.generate((0,)),
    "mixed generation": lambda trials: trials.generate((0, 1, 2)),
    "static cache": lambda trials: trials.generate((1, 2), cache_implementation="static"),
    "keys and values": EncoderTrials.key_values,
}
