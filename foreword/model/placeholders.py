"""Media placeholders: which tokens among a call's ids stand for which image or sound.

In: ids, mask and media of a call, and what a cache remembers. Out: `Item`s, located by index among
a row's own real tokens, so that padding moves nothing. Knows no positions and no masks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foreword.errors import InputError
from foreword.model.capabilities import Modality


@dataclass(frozen=True, eq=False)
class Item:
    """One image, or one sound in one or more windows.

    Attributes:
        row: of the batch.
        start: how many of the row's real tokens are before its first placeholder.
        stop: the same for the token after its last one.
        modality: what it is.
        units: which of the modality's images or windows it is.
    """

    row: int
    start: int
    stop: int
    modality: Modality
    units: range


@dataclass(frozen=True, eq=False)
class Memory:
    """What a cache must remember of the media that it holds.

    Attributes:
        types: for each row the type of each real token, 0 for text.
        grids: for each row the order of each image's first token, and its patches.
    """

    types: tuple[Tensor, ...]
    grids: tuple[tuple[tuple[int, Tensor], ...], ...]

    @property
    def has_media(self) -> bool:
        """Whether any token is not text."""
        return any(bool(types.any()) for types in self.types)

    def expanded(self, num_rows: int) -> "Memory":
        """Repeat each row for its beams or returned sequences."""
        copies = num_rows // len(self.types)
        return Memory(
            tuple(one for one in self.types for _ in range(copies)),
            tuple(one for one in self.grids for _ in range(copies)),
        )


@dataclass(frozen=True, eq=False)
class Turn:
    """The tokens of one call, and how they follow those that are cached.

    Attributes:
        input_ids: `[B, T]`, padded on either side.
        mask: `[B, cached + new]`, or None where no row is padded.
        num_cached: columns that the cache holds.
        num_seen: columns of `input_ids` that the cache holds: all of them, or 0.
        num_virtual: P of each row.
        memory: what the cache remembers, or None.
    """

    input_ids: Tensor
    mask: Tensor | None
    num_cached: int
    num_seen: int
    num_virtual: tuple[int, ...]
    memory: Memory | None

    def old(self, row: int) -> Tensor:
        """Return which cached columns of a row are real."""
        if self.mask is None:
            return torch.ones(self.num_cached, dtype=torch.bool, device="cpu")
        return self.mask[row, : self.num_cached].bool().cpu()

    def new(self, row: int) -> Tensor:
        """Return which new columns of a row are real."""
        length = self.input_ids.shape[1] - self.num_seen
        if self.mask is None:
            return torch.ones(length, dtype=torch.bool, device="cpu")
        return self.mask[row, -length:].bool().cpu()


def find_items(
    decoder: Any, modality: Modality, turn: Turn, ids: Tensor, media: Mapping[str, Tensor]
) -> list[Item]:
    """Give each run of placeholders its images or windows; return those not cached yet."""
    runs = []  # row, start, stop, whether it is new
    for row in range(len(ids)):
        num_old = int(turn.old(row).sum())
        if turn.num_seen:
            seen = ids[row, : turn.num_seen][turn.old(row)]
            runs += [(row, *run, False) for run in _runs(seen == modality.token_id)]
        new = ids[row, turn.num_seen :][turn.new(row)] == modality.token_id
        runs += [(row, num_old + a, num_old + b, True) for a, b in _runs(new)]
    fresh = [run for run in runs if run[3]]
    if modality.features not in media:
        if fresh:
            raise InputError(
                f"row {fresh[0][0]} holds placeholders of {modality.name} (id "
                f"{modality.token_id}), and there is no {modality.features}; give what the "
                "processor returns"
            )
        return []
    num_units = len(media[modality.grid or modality.features])
    _check_sizes(modality, media, num_units)
    if fresh and modality.name == "audio" and not hasattr(decoder, "get_audio_features"):
        _check_expanded(modality, fresh)
    for candidates in (runs, fresh):  # a whole conversation's media, or this turn's
        units = _units(decoder, modality, candidates, num_units, media)
        if units is not None:
            pairs = zip(candidates, units, strict=True)
            return [Item(row, a, b, modality, found) for (row, a, b, new), found in pairs if new]
    where = "in all rows" if len(ids) > 1 else "in the row"
    raise InputError(
        f"{modality.features} holds {num_units} of {modality.name}, and placeholders for "
        f"{len(runs)} stand {where}; give what the processor returns for these input_ids"
    )


def _runs(is_placeholder: Tensor) -> list[tuple[int, int]]:
    """Return start and stop of each run of True in `[T]`."""
    edges = torch.nn.functional.pad(is_placeholder.int(), (1, 1)).diff()
    starts, stops = (edges == 1).nonzero()[:, 0], (edges == -1).nonzero()[:, 0]
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


def _check_expanded(modality: Modality, runs: Sequence[tuple[int, int, int, bool]]) -> None:
    """Refuse one placeholder for a whole sound, which some classes would still expand inside."""
    if all(stop - start == 1 for _, start, stop, _ in runs):
        raise InputError(
            f"row {runs[0][0]} holds one placeholder of {modality.name}; give input_ids in which "
            "the processor has put one for each token of the sound"
        )


def _check_sizes(modality: Modality, media: Mapping[str, Tensor], num_units: int) -> None:
    """Refuse arguments of one modality that do not belong together."""
    for name in modality.others:
        if name in media and len(media[name]) != num_units:
            raise InputError(
                f"{name} has {len(media[name])} rows for {num_units} of {modality.features}"
            )
    if modality.grid is not None:
        expected, found = int(media[modality.grid].prod(-1).sum()), len(media[modality.features])
        if expected != found:
            raise InputError(
                f"{modality.features} has {found} patches, and {modality.grid} tells of {expected}"
            )


def _units(
    decoder: Any,
    modality: Modality,
    runs: Sequence[tuple[int, int, int, bool]],
    num_units: int,
    media: Mapping[str, Tensor],
) -> list[range] | None:
    """Return which images or windows each run stands for; None where they do not fit."""
    if len(runs) == num_units:
        return [range(index, index + 1) for index in range(num_units)]
    measure = getattr(decoder, f"get_{modality.name}_features", None)
    if modality.grid or measure is None or not 0 < len(runs) < num_units:
        return None
    if len(runs) == 1:
        return [range(num_units)]
    found, unit = [], 0
    lengths = _lengths(measure, modality, media, num_units)
    for _, start, stop, _ in runs:
        first, length = unit, 0
        while length < stop - start and unit < num_units:
            length, unit = length + lengths[unit], unit + 1
        if length != stop - start:
            return None
        found.append(range(first, unit))
    return found if unit == num_units else None


def _lengths(
    measure: Any, modality: Modality, media: Mapping[str, Tensor], num_units: int
) -> list[int]:
    """Return how many tokens each window becomes, which only the model's encoder tells."""
    lengths = []
    for unit in range(num_units):
        part = {name: media[name][unit : unit + 1] for name in modality.arguments if name in media}
        with torch.no_grad():
            features = measure(**part).pooler_output
        lengths.append(features.numel() // features.shape[-1])
    return lengths
