"""Model report: what was decided about a model, in words.

In: a backbone, and a prompt where there is one. Out: findings. Looks up a few embeddings and runs
no forward pass. Knows of a prompt only how many positions it takes, and whose.
"""

from collections import Counter

import torch

from foreword.backbone import Backbone
from foreword.doctor.finding import Finding
from foreword.loading.quantized import num_bytes
from foreword.model.capabilities import Capabilities
from foreword.prompt.soft_prompt import SoftPrompt


def capabilities_findings(backbone: Backbone, prompt: SoftPrompt | None = None) -> list[Finding]:
    """Return what decides how a prefix enters the model, and whether a prompt leaves it room."""
    capabilities = backbone.capabilities
    return [
        _family(capabilities),
        Finding("layers", "ok", _layers(capabilities)),
        *_encoder(capabilities),
        _context(capabilities, prompt),
        Finding("weights", "ok", _weights(backbone)),
        Finding("attention", "ok", f"{capabilities.attention}, in {str(backbone.dtype)[6:]}"),
        Finding("embedding scale", "ok", _embedding_scale(backbone)),
        _positions(capabilities),
        *([Finding("media", "ok", _media(capabilities))] if capabilities.modalities else []),
    ]


def _family(capabilities: Capabilities) -> Finding:
    sizes = f"hidden size {capabilities.hidden_size}, {capabilities.vocab_size} ids"
    shape = f"{capabilities.model_type}, {sizes}"
    if capabilities.is_tested:
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


def _layers(capabilities: Capabilities) -> str:
    words = []
    for pattern, count in Counter(capabilities.attention_patterns).items():
        if pattern.size is None:
            words.append(f"{count} with full attention")
        elif pattern.name == "chunked_attention":
            words.append(f"{count} with chunks of {pattern.size} tokens")
        else:
            words.append(f"{count} that see {pattern.size} tokens")
    if count := sum(layer.num_recurrences > 0 for layer in capabilities.layers):
        words.append(f"{count} with recurrent states (padded rows are read one length at a time)")
    return f"{capabilities.num_layers}: {', '.join(words)}"


def _encoder(capabilities: Capabilities) -> list[Finding]:
    if capabilities.encoder is None:
        return []
    place = "before its text, and every row reads it with its own"
    if not capabilities.encoder.reads_text:
        place = "before the decoder's tokens, and every row reads it behind its own"
    detail = f"reads {capabilities.encoder.input_name}; an embedding prompt stands {place}"
    if capabilities.encoder.placing == "counted":
        detail += "; prompts before the decoder are of one length in a batch"
    return [Finding("encoder", "ok", detail)]


def _context(capabilities: Capabilities, prompt: SoftPrompt | None) -> Finding:
    name = "context"
    if capabilities.context_length is None:
        return Finding(name, "ok", "its configuration names no length")
    end = "longer inputs are refused" if capabilities.is_context_hard else "made for no more"
    detail = f"{capabilities.context_length} positions, virtual tokens included; {end}"
    if prompt is None:
        return Finding(name, "ok", detail)
    whose, length = "", capabilities.context_length
    encoder = capabilities.encoder
    if encoder is not None and encoder.reads_text and prompt.form == "embeddings":
        if encoder.context_length is None:
            return Finding(name, "ok", detail)
        whose, length = " of the encoder", encoder.context_length
    number = prompt.num_virtual_tokens
    detail += f"; the prompt's {number} virtual tokens leave {max(0, length - number)}{whose}"
    if number < length:
        return Finding(name, "ok", detail)
    fewer = f"train a prompt with fewer virtual tokens than {length}"
    return Finding(name, "wrong" if capabilities.is_context_hard else "warning", detail, fewer)


def _media(capabilities: Capabilities) -> str:
    """Say which media the model takes, and what they require of positions and masks."""
    words = [f"{one.name} in {', '.join(one.arguments)}" for one in capabilities.modalities]
    if capabilities.num_axes > 1:
        words.append(f"positions of {capabilities.num_axes} axes from the model's own index")
    if capabilities.has_image_blocks:
        words.append("the tokens of an image attend to each other both ways")
    if not capabilities.is_tested:
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


def _positions(capabilities: Capabilities) -> Finding:
    name = "positions"
    if capabilities.rope_switch is not None:
        detail = (
            f"past {capabilities.rope_switch} tokens, virtual ones included, the rotation of "
            "cached ones changes; generation past that is refused"
        )
        return Finding(
            name, "warning", detail, f"keep rows within {capabilities.rope_switch} tokens"
        )
    if capabilities.counts_slots:
        detail = (
            "the model places tokens by their slots in the cache: padded and mixed rows run one "
            "length at a time, and requests are served one at a time"
        )
        return Finding(name, "warning", detail, "give rows of one length behind one prompt")
    if capabilities.slot_scale is not None:
        detail = (
            f"from {capabilities.slot_scale} tokens on, attention is scaled by a token's place in "
            "the cache; padded and mixed batches past that are refused"
        )
        return Finding(name, "warning", detail, "give longer rows one at a time")
    return Finding(name, "ok", "nothing about cached tokens changes with the length")
