"""Fingerprint: what tells one base model from another, and whether a prompt belongs to this one.

In: a decoder, its embeddings, what a prompt's file says of its base. Out: a fingerprint, or a
`MismatchError` that names both sides. Does not know how a prompt is used.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from foreword.errors import MismatchError
from foreword.model.capabilities import Capabilities
from foreword.prompt.states import States, attention_part

# Of each layer, what its tensors are: "keys", "values" or "states", and their shapes without P.
Shapes = tuple[tuple[tuple[str, tuple[int, ...]], ...], ...]
NUM_ROWS = 256  # of the embedding table
NUM_WEIGHTS = 32  # tensors, spread over the decoder's depth
NUM_NUMBERS = 64  # of each of them


def compute_fingerprint(
    decoder: Module,
    embed: Callable[[Tensor], Tensor],
    capabilities: Capabilities,
    is_quantized: bool,
) -> dict[str, Any]:
    """Return a base's proportions, and hashes of numbers spread over its embeddings and weights.

    The numbers are rounded to bfloat16: one fingerprint for every dtype of one checkpoint. A
    quantized base has no hash of its weights.
    """
    step = max(1, capabilities.vocab_size // NUM_ROWS)
    with torch.no_grad():
        rows = embed(torch.arange(0, capabilities.vocab_size, step))
    found: dict[str, Any] = {
        "model_type": capabilities.model_type,
        "hidden_size": capabilities.hidden_size,
        "num_layers": capabilities.num_layers,
        "vocab_size": capabilities.vocab_size,
        "embeddings": _hash([rows]),
    }
    if not is_quantized:
        weights = [p for p in decoder.parameters() if p.is_floating_point()]
        chosen = weights[:: max(1, len(weights) // NUM_WEIGHTS)]
        found["weights"] = _hash([weight.detach().flatten()[:NUM_NUMBERS] for weight in chosen])
    if capabilities.encoder is not None:
        found["encoder"] = capabilities.encoder.input_name
    if capabilities.virtual_id is not None:
        found["virtual_id"] = capabilities.virtual_id
    return found


def _hash(tensors: list[Tensor]) -> str:
    rounded = [t.to(torch.bfloat16).cpu().view(torch.int16).flatten() for t in tensors]
    return hashlib.sha256(torch.cat(rounded).numpy().tobytes()).hexdigest()


def check_fingerprint(facts: Mapping[str, Any], own: dict[str, Any], name: str) -> None:
    """Refuse a prompt whose file names another base; one that names none passes.

    Raises:
        MismatchError: names both models and what differs.
    """
    theirs = (facts.get("base") or {}).get("fingerprint")
    if theirs is None:
        return
    # What only one of the two knows, as the weights of a quantized base, is not compared.
    differing = [key for key, value in own.items() if theirs.get(key, value) != value]
    if theirs.get("encoder") != own.get("encoder") and "encoder" not in differing:
        differing.append("encoder")
    if differing:
        raise MismatchError(
            f"the prompt was made for {base_name(facts)}, not for {name} (they differ "
            f"in {', '.join(differing)}); load the right base model"
        )


def check_width(found: int, expected: int, name: str, facts: Mapping[str, Any]) -> None:
    """Refuse embeddings of another hidden size.

    Raises:
        MismatchError: names both models and both sizes.
    """
    if found != expected:
        raise MismatchError(
            f"the prompt has hidden size {found}, {name} has {expected}; it was made for "
            f"{base_name(facts)}"
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


def base_name(facts: Mapping[str, Any]) -> str:
    """Return how a prompt's file calls its base."""
    return (facts.get("base") or {}).get("name") or "a base that its file does not name"
