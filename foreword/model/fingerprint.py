"""Fingerprint: what tells one base model from another, and whether a prompt belongs to this one.

In: a decoder, its embeddings, what a prompt's file says of its base. Out: a fingerprint, or a
`MismatchError` that names both sides. Does not know how a prompt is used.
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from foreword.errors import MismatchError
from foreword.model.capabilities import Capabilities
from foreword.prompt.base_facts import base_name
from foreword.prompt.states import States, attention_part

# Of each layer, what its tensors are: "keys", "values" or "states", and their shapes without P.
Shapes = tuple[tuple[tuple[str, tuple[int, ...]], ...], ...]
VERSION = 2
NUM_ROWS = 256  # of the embedding table
NUM_NUMBERS = 64  # of every tensor, spread over the whole of it
# Prompts of the first version know these hashes of the beginnings of a few tensors.
NUM_WEIGHTS = 32  # tensors, spread over the decoder's depth
NEW_KEYS = ("version", "tensors", "is_quantized")  # of the second version
HASHES = ("weights", "tensors")  # that a quantized base has not


def compute_fingerprint(
    decoder: Module,
    embed: Callable[[Tensor], Tensor],
    capabilities: Capabilities,
    samples: Iterable[Tensor] | None,
) -> dict[str, Any]:
    """Return a base's proportions, and hashes of numbers spread over its embeddings and weights.

    The numbers are rounded to bfloat16: one fingerprint for every dtype of one checkpoint. A
    quantized base has no hash of its weights.

    Args:
        decoder: whose parameters the first version knows, an encoder included.
        embed: ids to embeddings.
        capabilities: of the model.
        samples: `NUM_NUMBERS` numbers or fewer of every tensor of the model, as `samples_of`
            returns them; None where it is quantized.
    """
    step = max(1, capabilities.vocab_size // NUM_ROWS)
    with torch.no_grad():
        rows = embed(torch.arange(0, capabilities.vocab_size, step, device="cpu"))
    found: dict[str, Any] = {
        "version": VERSION,
        "model_type": capabilities.model_type,
        "hidden_size": capabilities.hidden_size,
        "num_layers": capabilities.num_layers,
        "vocab_size": capabilities.vocab_size,
        "embeddings": _hash([rows]),
    }
    if samples is None:
        found["is_quantized"] = True
    else:
        weights = [p for p in decoder.parameters() if p.is_floating_point()]
        chosen = weights[:: max(1, len(weights) // NUM_WEIGHTS)]
        found["weights"] = _hash([weight.detach().flatten()[:NUM_NUMBERS] for weight in chosen])
        found["tensors"] = _hash(list(samples))
    if capabilities.encoder is not None:
        found["encoder"] = capabilities.encoder.input_name
    if capabilities.virtual_id is not None:
        found["virtual_id"] = capabilities.virtual_id
    return found


def samples_of(model: Module) -> list[Tensor]:
    """Return numbers of every tensor of a model, the head's, norms' and biases' too."""
    tensors = (tensor.detach() for _, tensor in kept_tensors(model))
    return [tensor[tuple(spread(tensor.shape).to(tensor.device))] for tensor in tensors]


def kept_tensors(model: Module) -> list[tuple[str, Tensor]]:
    """Return the tensors of numbers that a checkpoint of a model keeps; those tied, once."""
    kept = model.state_dict().keys()
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if name in kept]
    tensors = [*model.named_parameters(), *buffers]
    return [(name, t) for name, t in tensors if t.is_floating_point() and t.numel()]


def spread(shape: Sequence[int]) -> Tensor:
    """Return the places of up to `NUM_NUMBERS` numbers of a tensor, `[dimensions, numbers]`.

    One is in each of as many equal parts, at another place in each: no row or column is favoured.
    """
    if not shape:
        return torch.zeros(0, 1, dtype=torch.long, device="cpu")
    size = math.prod(shape)
    number = min(size, NUM_NUMBERS)
    borders = [part * size // number for part in range(number + 1)]
    places = [
        start + part * 2654435761 % (stop - start)  # Knuth's multiplicative hash
        for part, (start, stop) in enumerate(itertools.pairwise(borders))
    ]
    return torch.stack(torch.unravel_index(torch.tensor(places, device="cpu"), tuple(shape)))


def _hash(tensors: list[Tensor]) -> str:
    rounded = [t.to(torch.bfloat16).cpu().view(torch.int16).flatten() for t in tensors]
    return hashlib.sha256(torch.cat(rounded).numpy().tobytes()).hexdigest()


def as_known_to(other: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a fingerprint as the version of another one would have it, to compare both."""
    return {k: v for k, v in own.items() if "version" in other or k not in NEW_KEYS}


def identifies(fingerprint: Mapping[str, Any] | None) -> bool:
    """Return whether a fingerprint tells a base from another, by a hash, and not its kind alone."""
    return any(key in (fingerprint or {}) for key in ("embeddings", *HASHES))


def check_fingerprint(facts: Mapping[str, Any], own: dict[str, Any], name: str) -> None:
    """Refuse a prompt whose file names another base; one that names none passes.

    Raises:
        MismatchError: names both models and what differs.
    """
    theirs = (facts.get("base") or {}).get("fingerprint")
    if theirs is None:
        return
    # What only one of the two can know, as the weights of a quantized base, is not compared.
    known = as_known_to(theirs, own)
    known.pop("version", None)
    if theirs.get("is_quantized"):
        known = {key: value for key, value in known.items() if key not in HASHES}
    known.pop("is_quantized", None)
    is_new = "version" in theirs
    differing = [
        key for key, value in known.items() if theirs.get(key, None if is_new else value) != value
    ]
    if theirs.get("encoder") != own.get("encoder") and "encoder" not in differing:
        differing.append("encoder")
    if differing:
        raise MismatchError(
            f"the prompt was made for {base_name(facts)}, not for {name} (they differ "
            f"in {', '.join(differing)}); load the right base model"
        )


def shapes_of(states: States) -> Shapes:
    """Return heads and sizes of each layer's keys and values, shapes of its recurrent states."""
    shapes = []
    for layer in states:
        sides = [
            (name, (tensor.shape[0], tensor.shape[2]))
            for name, tensor in zip(("keys", "values"), attention_part(layer), strict=False)
        ]
        rest = [("states", tuple(tensor.shape)) for tensor in layer[len(sides) :]]
        shapes.append((*sides, *rest))
    return tuple(shapes)


def check_shapes(found: Shapes, expected: Shapes, name: str) -> None:
    """Refuse keys and values that do not fit a model's layers.

    Raises:
        MismatchError: names the first layer that differs, and both shapes.
    """
    if len(found) != len(expected):
        raise MismatchError(
            f"the prompt has {len(found)} layers, {name} has {len(expected)} that keep "
            "a state; it is for another base"
        )
    for index, (ours, theirs) in enumerate(zip(expected, found, strict=True)):
        if ours != theirs:
            raise MismatchError(
                f"layer {index}: the prompt has {_describe(theirs)}, {name} has "
                f"{_describe(ours)}; it is for another base"
            )


def _describe(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> str:
    texts = [
        f"{name} of {' x '.join(map(str, shape))}"
        if name == "states"
        else f"{name} of {shape[0]} heads of size {shape[1]}"
        for name, shape in shapes
    ]
    return " and ".join(texts)
