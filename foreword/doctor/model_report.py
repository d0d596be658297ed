"""What was decided about a model, in words. In: a backbone. Out: findings. Runs one embedding."""

from collections import Counter

import torch

from foreword.backbone import Backbone
from foreword.doctor.finding import Finding
from foreword.loading.quantized import num_bytes
from foreword.model.capabilities import Capabilities


def capabilities_findings(backbone: Backbone) -> list[Finding]:
    """Return the facts that decide how a prefix reaches the model."""
    facts = backbone.capabilities
    return [
        _family(facts),
        Finding("layers", "ok", _layers(facts)),
        *_encoder(facts),
        Finding("context", "ok", _context(facts)),
        Finding("weights", "ok", _weights(backbone)),
        Finding("attention", "ok", f"{facts.attention}, in {str(backbone.dtype)[6:]}"),
        Finding("embedding scale", "ok", _embedding_scale(backbone)),
        _positions(facts),
        *([Finding("media", "ok", _media(facts))] if facts.modalities else []),
    ]


def _family(facts: Capabilities) -> Finding:
    shape = f"{facts.model_type}, hidden size {facts.hidden_size}, {facts.vocab_size} ids"
    if facts.is_tested:
        return Finding("model", "ok", f"{shape}; a family that the tests compare case by case")
    detail = f"{shape}; not a family of the tests, it proved itself when it was loaded"
    return Finding("model", "warning", detail, "rely on the self-test")


def _weights(backbone: Backbone) -> str:
    found = backbone.quantization
    if found is None:
        return f"{num_bytes(backbone.model):,} bytes, not quantized"
    text = f"{found.method}, {found.num_bytes_loaded:,} bytes loaded"
    if found.num_bytes > found.num_bytes_loaded:
        text += f", {found.num_bytes:,} in use: the base unpacks itself"
    if found.num_straight:
        text += (
            f"; {found.num_straight} modules round their input, with the gradient of the identity"
        )
    return text


def _layers(facts: Capabilities) -> str:
    words = []
    for reach, count in Counter(facts.reaches).items():
        if reach.size is None:
            words.append(f"{count} with full attention")
        elif reach.name == "chunked_attention":
            words.append(f"{count} with chunks of {reach.size} tokens")
        else:
            words.append(f"{count} that see {reach.size} tokens")
    if count := sum(layer.num_recurrences > 0 for layer in facts.layers):
        words.append(f"{count} with recurrent states (padded rows are read one length at a time)")
    return f"{facts.num_layers}: {', '.join(words)}"


def _encoder(facts: Capabilities) -> list[Finding]:
    if facts.encoder is None:
        return []
    place = "before its text, and every row reads it with its own"
    if not facts.encoder.reads_text:
        place = "before the decoder's tokens, and every row reads it behind its own"
    detail = f"reads {facts.encoder.input_name}; an embedding prompt stands {place}"
    if facts.encoder.placing == "counted":
        detail += "; prompts before the decoder are of one length in a batch"
    return [Finding("encoder", "ok", detail)]


def _context(facts: Capabilities) -> str:
    if facts.context_length is None:
        return "its configuration names no length"
    end = "longer inputs are refused" if facts.is_context_hard else "made for no more"
    return f"{facts.context_length} positions, virtual tokens included; {end}"


def _media(facts: Capabilities) -> str:
    """Say what is read beside text, and what that asks of positions and masks."""
    words = [f"{one.name} in {', '.join(one.arguments)}" for one in facts.modalities]
    if facts.num_axes > 1:
        words.append(f"positions of {facts.num_axes} axes from the model's own index")
    if facts.has_image_blocks:
        words.append("the tokens of an image attend to each other both ways")
    if not facts.is_tested:
        words.append("proved on the first media given")
    return "; ".join(words)


def _embedding_scale(backbone: Backbone) -> str:
    """Say whether the embedding module returns its table's rows or scales them."""
    module = backbone.model.get_input_embeddings()
    ids = torch.arange(min(8, backbone.capabilities.vocab_size), device=backbone.device)
    rows = module.weight[ids].float()
    with torch.no_grad():
        found = module(ids).float()
    if rows.shape != found.shape or not rows.abs().max() > 0:
        return "unknown; the table is not stored row by row"
    scale = (found.norm() / rows.norm()).item()
    if abs(scale - 1) < 1e-3:
        return "1: the model reads the table's rows as they are"
    return f"{scale:.4g}: the embedding module scales its rows; prompts live after that"


def _positions(facts: Capabilities) -> Finding:
    name = "positions"
    if facts.rope_switch is not None:
        detail = (
            f"past {facts.rope_switch} tokens, virtual ones included, the rotation of cached ones "
            "changes; generation past that is refused"
        )
        return Finding(name, "warning", detail, f"keep rows within {facts.rope_switch} tokens")
    if facts.slot_scale is not None:
        detail = (
            f"from {facts.slot_scale} tokens on, attention is scaled by a token's place in the "
            "cache; padded and mixed batches past that are refused"
        )
        return Finding(name, "warning", detail, "give longer rows one at a time")
    return Finding(name, "ok", "nothing about cached tokens changes with the length")
