"""Reparametrized prompts: a small network computes them, and is gone once they are trained.

In: the prompt that a run starts from. Out: leaves (inputs `E` of the network and its weights `f`),
and the prompt that they fold to: `start + f(E) - f(E0)`, with `+ E - E0` for a residual one, where
`E0`, `f0` are the values at the start. The constant `start - f0(E0)` makes every run begin at the
prompt it was given, at the table's own scale; the gradient is that of the network alone.

P-tuning: Liu et al. 2021 (arXiv:2103.10385), MLP or LSTM. Residual: Razdaibiedina et al. 2023
(arXiv:2305.03937). Prefix projection: Li and Liang 2021 (arXiv:2101.00190).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from foreword.errors import UnsupportedError
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.prompt.states import attention_part, row_major

Kind = Literal["mlp", "lstm", "residual", "projection"]


class Reencoded:
    """A prompt that a network computes from trained inputs.

    Args:
        kind: of the network.
        sizes: width of the inputs `[P, in]`, of the hidden layer, and of the outputs `[P, out]`.
        shape: what lays the network's output out as a prompt; see `SoftPrompt.layout`.
        shapes: of the prompt's tensors.
        inputs: E.
        offset: `[P, out]`, added to what the network says.
        facts: what the prompt says of itself.
        seed: of the network's first weights.
    """

    name = "reencoded"

    def __init__(
        self,
        kind: Kind,
        sizes: Sequence[int],
        shape: Mapping[str, Any],
        shapes: Sequence[Sequence[int]],
        inputs: Tensor,
        offset: Tensor,
        facts: Mapping[str, Any],
        seed: int = 0,
    ) -> None:
        self.kind, self.sizes = kind, tuple(sizes)
        self.shape, self.shapes = dict(shape), [tuple(one) for one in shapes]
        self.facts = dict(facts)
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(seed)
            network = _network(kind, *self.sizes).to(inputs.device, inputs.dtype)
        self.network = network
        self.inputs = row_major(inputs).requires_grad_()
        self.tensors = [self.inputs, *network.parameters()]
        self.constants = [row_major(offset)]

    @classmethod
    def begin(
        cls, kind: Kind, start: SoftPrompt, inputs: Tensor, hidden_size: int, seed: int
    ) -> "Reencoded":
        """Start so that the prompt is `start`.

        Args:
            kind: of the network.
            start: the prompt to start from; keys and values for "projection", else embeddings.
            inputs: E0, `[P, in]`, in the dtype and on the device that are trained.
            hidden_size: of the network.
            seed: of its weights.

        Raises:
            UnsupportedError: a projection to states that have no virtual tokens of their own.
        """
        if start.form == "key_values":
            _check_attends(start)
        flat = row_major(_flat(start).to(inputs))
        sizes = (inputs.shape[1], hidden_size, flat.shape[1])
        shapes = [tensor.shape for tensor in start.tensors]
        method = cls(kind, sizes, start.layout, shapes, inputs, flat, start.facts, seed)
        with torch.no_grad():
            if kind == "residual":  # the gain of its last norm is the prompt's own deviation
                method.network.norm.weight.fill_(float(flat.std()))  # type: ignore[operator,union-attr]
            method.constants = [row_major(flat - method._encoded())]
        return method

    @classmethod
    def restored(
        cls,
        layout: Mapping[str, Any],
        tensors: Sequence[Tensor],
        constants: Sequence[Tensor],
        facts: Mapping[str, Any],
    ) -> "Reencoded":
        """Build it from what a training state holds."""
        (offset,), (inputs, *weights) = constants, tensors
        in_size, hidden_size, out_size = layout["sizes"]
        known = {size for weight in weights for size in weight.shape}
        widths = inputs.shape[1], offset.shape[1]
        # Before the network is built: a damaged file must not decide how large it is.
        if (in_size, out_size) != widths or not known & {hidden_size, 2 * hidden_size}:
            raise ValueError(f"sizes {layout['sizes']} are not those of the weights")
        method = cls(inputs=inputs, offset=offset, facts=facts, **layout)
        with torch.no_grad():
            for own, stored in zip(method.tensors[1:], weights, strict=True):
                own.copy_(stored)
        return method

    @property
    def layout(self) -> dict[str, Any]:
        """What lays the tensors out."""
        return {
            "name": self.name,
            "kind": self.kind,
            "sizes": list(self.sizes),
            "shape": self.shape,
            "shapes": [list(one) for one in self.shapes],
        }

    def _encoded(self) -> Tensor:
        """Return `f(E)`, and E beside it for a residual network."""
        encoded: Tensor = self.network(self.inputs)
        return encoded + self.inputs if self.kind == "residual" else encoded

    def prompt(self) -> SoftPrompt:
        """Return the prompt that the network computes now."""
        flat = self.constants[0] + self._encoded()
        if self.shape["form"] == "embeddings":
            return SoftPrompt(facts=self.facts, tensors=[flat], **self.shape)
        widths = [heads * size for heads, _, size in self.shapes]
        tensors = [
            part.unflatten(1, (heads, size)).transpose(0, 1)
            for part, (heads, _, size) in zip(flat.split(widths, dim=1), self.shapes, strict=True)
        ]
        return SoftPrompt(facts=self.facts, tensors=tensors, **self.shape)


def _check_attends(start: SoftPrompt) -> None:
    for index, layer in enumerate(start.states):
        if len(attention_part(layer)) != len(layer):
            raise UnsupportedError(
                f"prefix-projection: layer {index} keeps a recurrent state, which no virtual token "
                "owns; use --method prefix-tuning or prompt-tuning"
            )


def _flat(start: SoftPrompt) -> Tensor:
    """Return the values with a row for each virtual token: `[P, H]`, or `[P, sum of N * D]`."""
    if start.form == "embeddings":
        return start.embeddings.detach()
    return torch.cat([t.detach().transpose(0, 1).flatten(1) for t in start.tensors], dim=1)


def _network(kind: Kind, in_size: int, hidden_size: int, out_size: int) -> nn.Module:
    if kind == "mlp":
        return nn.Sequential(
            nn.Linear(in_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, out_size),
        )
    if kind == "projection":
        return nn.Sequential(
            nn.Linear(in_size, hidden_size), nn.Tanh(), nn.Linear(hidden_size, out_size)
        )
    if kind == "lstm":
        return _Recurrent(in_size, hidden_size, out_size)
    return _Bottleneck(in_size, hidden_size, out_size)


class _Recurrent(nn.Module):
    """Two bidirectional LSTM layers over the virtual tokens, and a two-layer MLP."""

    def __init__(self, in_size: int, hidden_size: int, out_size: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(in_size, hidden_size, 2, bidirectional=True)
        self.first = nn.Linear(2 * hidden_size, 2 * hidden_size)
        self.last = nn.Linear(2 * hidden_size, out_size)

    def forward(self, inputs: Tensor) -> Tensor:
        """Encode `[P, in]` to `[P, out]`."""
        encoded: Tensor = self.last(torch.relu(self.first(self.lstm(inputs)[0])))
        return encoded


class _Bottleneck(nn.Module):
    """A bottleneck that all virtual tokens share: down, ReLU, up, layer norm."""

    def __init__(self, in_size: int, hidden_size: int, out_size: int) -> None:
        super().__init__()
        self.down = nn.Linear(in_size, hidden_size)
        self.up = nn.Linear(hidden_size, out_size)
        self.norm = nn.LayerNorm(out_size)

    def forward(self, inputs: Tensor) -> Tensor:
        """Encode `[P, H]` to `[P, H]`."""
        encoded: Tensor = self.norm(self.up(torch.relu(self.down(inputs))))
        return encoded
