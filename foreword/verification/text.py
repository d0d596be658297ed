"""The self-test of text: a family that no test covers proves itself when a model of it is loaded.

In: a backbone. Out: nothing, or an `UnsupportedError` that says what differs from the slow obvious
computation: one chunk against two, padded and mixed rows against single ones, cached steps against
none. A few tokens run, in well under a second on a small model. Knows no family.
"""

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from foreword.errors import UnsupportedError
from foreword.generation import model_view
from foreword.model.encoder_decoder import EncoderDecoder
from foreword.prompt.prefix import Prefix, PrefixBatch, no_prefixes
from foreword.prompt.states import DeferredPrompt
from foreword.verification.frozen_model import FrozenModel

NUM_VIRTUAL, NUM_REAL, NUM_STEPS = 5, 3, 3


def prove(backbone: FrozenModel) -> None:
    """Refuse a family whose fast and slow results differ, or that cannot be run so.

    Raises:
        UnsupportedError: what differs and by how much.
    """
    name = backbone.capabilities.model_type
    try:
        with torch.no_grad():
            checks = _checks(backbone)
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, TypeError, ValueError, RuntimeError) as failure:
        reason = str(failure).strip().splitlines()[0] if str(failure) else type(failure).__name__
        raise UnsupportedError(
            f"{name}: its decoder does not take a cache, positions and masks as known families do "
            f"({reason}); this family cannot be made exact yet"
        ) from failure
    limit = 1e-3 if backbone.dtype in (torch.float32, torch.float64) else 0.5
    cause = ""
    if backbone.capabilities.is_recurrent:
        cause = " (its code may drop the recurrent state between passes)"
    for what, (error, scale) in checks.items():
        if not error <= limit * scale:
            raise UnsupportedError(
                f"{name}: {what} give logits that differ by {error:.2g}{cause}; this family cannot "
                "be made exact yet"
            )


def _checks(backbone: FrozenModel) -> dict[str, tuple[float, float]]:
    """Return what is compared: how much it differs, and the size of the numbers."""
    encoder = backbone.capabilities.encoder
    if encoder is None:
        return {
            "a prefix and the text it stands for": _prefix(backbone),
            "a cached step and a full recomputation": _steps(backbone),
        }
    checks = {
        "a prompt and the decoded text it stands for": _decoder_prefix(backbone),
        "a cached step and a full recomputation": _decoder_steps(backbone),
    }
    if encoder.reads_text:
        checks["a prompt and the encoded text it stands for"] = _encoder_prompt(backbone)
    return checks


def _encoder_prompt(backbone: FrozenModel) -> tuple[float, float]:
    """Return how much an encoder's output over embeddings and padding differs from that over ids
    alone.
    """
    passes, (virtual, real) = _passes(backbone), _ids(backbone)
    prefix = Prefix(DeferredPrompt(backbone.embed(virtual)), "self-test")
    rows = torch.stack([real, real.roll(1)])
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]], device=backbone.device)
    found = passes.encode(PrefixBatch((prefix, None)), rows, mask)[0].last_hidden_state
    found = torch.cat([found[0], found[1, :2]])
    encoder, whole = passes.model.get_encoder(), torch.cat([virtual, real])
    alone = [encoder(input_ids=ids[None]).last_hidden_state[0] for ids in (whole, real[:2])]
    return _distance(found, torch.cat(alone))


def _decoder_prefix(backbone: FrozenModel) -> tuple[float, float]:
    """Return how much logits behind a prefix differ from those behind its text, decoded."""
    passes, (virtual, real) = _passes(backbone), _ids(backbone)
    tokens = {"input_ids": virtual[None]}
    if not passes.encoder.reads_text:  # there the decoder reads a prompt's embeddings
        tokens = {"inputs_embeds": backbone.embed(virtual)[None]}
    (states,) = passes.states_after(_encoded(backbone), **tokens)
    batch = PrefixBatch((Prefix(states, "self-test"),))
    found = _decoded(backbone, batch, real)
    whole = _decoded(backbone, no_prefixes(1), torch.cat([virtual, real]))
    return _distance(found, whole[NUM_VIRTUAL:])


def _decoder_steps(backbone: FrozenModel) -> tuple[float, float]:
    """Return the same for a few steps of generation."""
    passes, (_, real) = _passes(backbone), _ids(backbone)
    states = passes.prefill(backbone.embed(real))
    batch = PrefixBatch((Prefix(states, "self-test"),))
    output = model_view.encoder_decoder_view(passes, batch).generate(
        encoder_outputs=BaseModelOutput(_encoded(backbone)),
        encoder_no_repeat_ngram_size=0,
        max_new_tokens=NUM_STEPS,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
    )
    steps = torch.cat(output.logits)
    given = output.sequences[0, : -len(steps)], output.sequences[0, -len(steps) : -1]
    return _distance(steps, _decoded(backbone, batch, torch.cat(given))[-len(steps) :])


def _passes(backbone: FrozenModel) -> EncoderDecoder:
    assert isinstance(backbone.passes, EncoderDecoder)
    return backbone.passes


def _ids(backbone: FrozenModel) -> tuple[Tensor, Tensor]:
    """Return virtual and real ids that are no special ones."""
    capabilities, num_ids = backbone.capabilities, NUM_VIRTUAL + NUM_REAL
    ids = (torch.arange(1, num_ids + 1, device=backbone.device) * 7919) % capabilities.vocab_size
    return ids[:NUM_VIRTUAL], ids[NUM_VIRTUAL:]


def _encoded(backbone: FrozenModel) -> Tensor:
    """Return numbers that stand for an encoder's output, `[1, S, H]`."""
    numbers = torch.arange(4 * backbone.capabilities.hidden_size, device=backbone.device)
    encoded: Tensor = torch.sin(numbers.float()).to(backbone.dtype).reshape(1, 4, -1)
    return encoded


def _decoded(backbone: FrozenModel, batch: PrefixBatch, ids: Tensor) -> Tensor:
    """Return the logits `[T, V]` of decoded ids in a single pass."""
    hidden = _passes(backbone).decoded(batch, _encoded(backbone), None, ids[None], None)
    logits: Tensor = backbone.head(hidden)[0]
    return logits


def _prefix(backbone: FrozenModel) -> tuple[float, float]:
    """Return how much logits behind a prefix differ from those behind its text, and their size."""
    prompt, real, ids = _trial(backbone)
    rows = torch.stack([real, real.roll(1), real.roll(1)])
    mask = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 1, 1]], device=backbone.device)
    batch = PrefixBatch((prompt, prompt, None))
    found = backbone.head(backbone.hidden(batch, rows, mask))
    whole = _bare(backbone, ids)[NUM_VIRTUAL:]
    alone = _bare(backbone, real[:2])
    expected = torch.cat([whole, whole[:2], alone])
    return _distance(torch.cat([found[0], found[1, 1:], found[2, 1:]]), expected)


def _steps(backbone: FrozenModel) -> tuple[float, float]:
    """Return the same for a few steps of generation."""
    prompt, real, ids = _trial(backbone)
    output = backbone.generate(
        prompt,
        real[None],
        torch.ones_like(real[None]),
        max_new_tokens=NUM_STEPS,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
    )
    new = output.sequences[0, NUM_REAL:-1]
    expected = _bare(backbone, torch.cat([ids, new]))[-NUM_STEPS:]
    return _distance(torch.cat(output.logits), expected)


def _trial(backbone: FrozenModel) -> tuple[Prefix, Tensor, Tensor]:
    """Return a prefix, real ids, and the ids that both stand for."""
    capabilities = backbone.capabilities
    num_ids = NUM_VIRTUAL + NUM_REAL
    ids = (torch.arange(1, num_ids + 1, device=backbone.device) * 7919) % capabilities.vocab_size
    for modality in capabilities.modalities:  # a placeholder would want its media
        ids[ids == modality.token_id] = (modality.token_id + 1) % capabilities.vocab_size
    if capabilities.virtual_id is not None:
        ids[:NUM_VIRTUAL] = capabilities.virtual_id
    states = backbone.passes.prefill(backbone.embed(ids[:NUM_VIRTUAL]))
    return Prefix(states, "self-test"), ids[NUM_VIRTUAL:], ids


def _bare(backbone: FrozenModel, ids: Tensor) -> Tensor:
    """Return the logits `[T, V]` of one row without a prefix, in a single pass."""
    logits: Tensor = backbone.head(backbone.hidden(no_prefixes(1), ids[None], None))[0]
    return logits


def _distance(found: Tensor, expected: Tensor) -> tuple[float, float]:
    difference = (found.float() - expected.float()).abs().max()
    return difference.item(), expected.abs().max().item()
