"""Multimodal inputs: the images and sounds of each forward pass, and their positions.

In: the ids, mask and media of a call, as a processor returns them, and the media of a cache. Out: a
`Reading`: for each pass the media whose placeholders it holds, the rotary positions on the model's
own axes, and the tokens that attend to each other in both directions. Everything is counted on
unpadded rows, so that padding moves nothing, and nothing is kept on the model. Of prompts it knows
only how long they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foreword.compat.error_lines import telling_line
from foreword.errors import InputError, UnsupportedError
from foreword.model.capabilities import Capabilities, Modality
from foreword.model.placeholders import Item, Memory, Turn, find_items

VIDEO = ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts")


@dataclass(frozen=True, eq=False)
class Reading:
    """The images and sounds of one call, for each of its passes.

    Attributes:
        capabilities: of the model.
        memory: all types and grids, those of earlier turns included.
        items: what is not cached yet, row after row.
        given: the caller's tensors, on the model's device.
        num_columns: of the call's tokens, cached ones included: what follows is generated.
        shifts: rotary position of each token minus its order, `[A, B, T + 1]`; the last column is
            that of every later token. None where all are 0.
    """

    capabilities: Capabilities
    memory: Memory
    items: tuple[Item, ...]
    given: Mapping[str, Tensor]
    num_columns: int
    shifts: Tensor | None

    def positions(self, order: Tensor, virtual: Tensor) -> Tensor:
        """Return rotary positions `[A, B, T]` of tokens at places `order` `[B, T]` behind `virtual`
        `[B, 1]` virtual ones.
        """
        if self.shifts is None:
            return order[None].expand(self.capabilities.num_axes, -1, -1)
        copies = order.shape[0] // self.shifts.shape[1]
        shifts = self.shifts.repeat_interleave(copies, dim=1) if copies > 1 else self.shifts
        index = (order - virtual).clamp(0, shifts.shape[2] - 1)
        return order[None] + shifts.gather(2, index[None].expand(shifts.shape[0], -1, -1))

    def read_in(self, starts: Sequence[int], stops: Sequence[int]) -> list[Item]:
        """Return the items of a pass over each row's real tokens from `starts` to `stops`.

        Raises:
            UnsupportedError: the pass would cut through one.
        """
        copies = len(starts) // len(self.memory.types)
        found = []
        for row, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            for item in self.items:
                if item.row != row // copies or item.stop <= start or item.start >= stop:
                    continue
                if item.start < start or item.stop > stop:
                    raise UnsupportedError(
                        f"a pass would cut through the {item.modality.name} at tokens {item.start} "
                        f"to {item.stop - 1} of row {item.row}; leave out prefill_chunk_size"
                    )
                found.append(item)
        return found

    def features(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Return the arguments that hold `items`, in their order."""
        found = {}
        for modality in self.capabilities.modalities:
            units = [unit for item in items if item.modality is modality for unit in item.units]
            if not units:
                continue
            number = len(self.given[modality.grid or modality.features])
            is_all = units == list(range(number))
            for name in modality.arguments:
                if name in self.given:
                    whole = self.given[name]
                    found[name] = whole if is_all else self._part(modality, name, units)
        return found

    def _part(self, modality: Modality, name: str, units: list[int]) -> Tensor:
        tensor = self.given[name]
        if name != modality.features or modality.grid is None:
            return tensor[units]
        patches = tensor.split(self.given[modality.grid].prod(-1).tolist())
        return torch.cat([patches[unit] for unit in units])

    def blocks(self, mask: Tensor | None, num_columns: int, num_rows: int) -> Tensor:
        """Return the image of each column `[B, T]` by number, -1 for text and padding."""
        rows = []
        for types in self.memory.expanded(num_rows).types:
            types = torch.nn.functional.pad(types, (1, num_columns))
            is_image = types == 1
            number = (is_image[1:] & ~is_image[:-1]).cumsum(0)
            rows.append(torch.where(is_image[1:], number, -1)[:num_columns])
        numbers = torch.stack(rows)
        if mask is None:
            return numbers
        order = (mask.to(numbers.device).long().cumsum(1) - 1).clamp_min(0)
        return numbers.gather(1, order).masked_fill(~mask.to(numbers.device).bool(), -1)


def without_padding(reading: Reading, input_ids: Tensor, mask: Tensor | None) -> Tensor:
    """Return ids whose padding is none of the placeholders, which some tokenizers pad with."""
    if mask is None:
        return input_ids
    taken = {modality.token_id for modality in reading.capabilities.modalities}
    spare = next(number for number in range(len(taken) + 1) if number not in taken)
    is_real = mask[:, -input_ids.shape[1] :].to(input_ids.device).bool()
    return input_ids.masked_fill(~is_real, spare)


def split_media(
    capabilities: Capabilities, kwargs: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split a call's media from its other arguments.

    Raises:
        UnsupportedError: videos. InputError: media that is no tensor, or lacks a part.
    """
    media = {name: kwargs[name] for name in kwargs if name in capabilities.media}
    others = {name: value for name, value in kwargs.items() if name not in media}
    media = {name: value for name, value in media.items() if value is not None}
    if capabilities.modalities:
        for name in VIDEO:
            if others.get(name) is not None:
                raise UnsupportedError(
                    f"{name}: videos are not supported; give their frames as images"
                )
    for name, value in media.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"{name}: expected a tensor, got {type(value).__name__}; call the processor with "
                "return_tensors='pt'"
            )
    for modality in capabilities.modalities:
        parts = [name for name in modality.arguments if name in media]
        needed = {modality.features, modality.grid or modality.features}
        if parts and not needed <= set(parts):
            raise InputError(
                f"{', '.join(parts)} without {', '.join(sorted(needed - set(parts)))}; give what "
                "the processor returns"
            )
    return media, others


def read(
    decoder: Any, capabilities: Capabilities, turn: Turn, media: Mapping[str, Tensor]
) -> Reading:
    """Return a call's images and sounds, and where they stand.

    Raises:
        InputError: media that does not fit the placeholders; names the row where it can.
        UnsupportedError: a cache whose media is unknown.
    """
    ids = turn.input_ids.cpu()
    if turn.memory is None and turn.num_cached and capabilities.num_axes > 1:
        _check_no_media(capabilities, turn, ids)
    items: list[Item] = []
    for modality in capabilities.modalities:
        items += find_items(decoder, modality, turn, ids, media)
    items.sort(key=lambda item: (item.row, item.start))
    memory = _memory(capabilities, turn, ids, items, media)
    shifts = _shifts(decoder, capabilities, turn, memory)
    num_columns = turn.num_cached + ids.shape[1] - turn.num_seen
    shifts = shifts if shifts is None else shifts.to(decoder.device)
    return Reading(capabilities, memory, tuple(items), media, num_columns, shifts)


def _check_no_media(capabilities: Capabilities, turn: Turn, ids: Tensor) -> None:
    placeholders = torch.tensor(
        [modality.token_id for modality in capabilities.modalities], device="cpu"
    )
    if turn.num_seen == 0 or bool(torch.isin(ids[:, : turn.num_seen], placeholders).any()):
        raise UnsupportedError(
            "past_key_values was filled elsewhere, and where its images are is not known; start "
            "with an empty cache"
        )


def _memory(
    capabilities: Capabilities,
    turn: Turn,
    ids: Tensor,
    items: Sequence[Item],
    media: Mapping[str, Tensor],
) -> Memory:
    types, grids = [], []
    given = media.get(capabilities.types) if capabilities.types else None
    if given is not None and given.shape != ids.shape:
        raise InputError(
            f"{capabilities.types} is {list(given.shape)}, for input_ids {list(ids.shape)}; give "
            "one type for each of the ids"
        )
    for row in range(len(ids)):
        num_old = int(turn.old(row).sum())
        old = (
            turn.memory.types[row]
            if turn.memory
            else torch.zeros(0, dtype=torch.long, device="cpu")
        )
        old = torch.nn.functional.pad(old, (0, num_old))[:num_old]
        new = ids[row, turn.num_seen :][turn.new(row)]
        image = next((m.token_id for m in capabilities.modalities if m.name == "image"), -1)
        kinds = (new == image).long()
        if given is not None:
            told = given[row, turn.num_seen :].cpu()[turn.new(row)]
            if bool((told == 2).any()):
                raise UnsupportedError("videos are not supported; give their frames as images")
            if not torch.equal(told == 1, kinds == 1):
                raise InputError(
                    f"row {row}: {capabilities.types} does not mark the placeholders of input_ids; "
                    "give what the processor returns for these ids, or leave it out"
                )
        types.append(torch.cat([old, kinds]))
        known = turn.memory.grids[row] if turn.memory else ()
        kept = [(start, grid) for start, grid in known if start < num_old]
        for item in items:
            if item.row == row and item.modality.grid:
                sizes = media[item.modality.grid].cpu()
                kept += [(item.start, sizes[unit]) for unit in item.units]
        grids.append(tuple(kept))
    return Memory(tuple(types), tuple(grids))


def _shifts(decoder: Any, capabilities: Capabilities, turn: Turn, memory: Memory) -> Tensor | None:
    """Ask the model where each row's tokens stand: alone, unpadded, behind its virtual tokens."""
    if capabilities.num_axes == 1 or not any(memory.grids):
        return None
    length = max(len(types) for types in memory.types)
    shifts = torch.zeros(
        capabilities.num_axes, len(memory.types), length + 1, dtype=torch.long, device="cpu"
    )
    for row, types in enumerate(memory.types):
        num_virtual = turn.num_virtual[row]
        whole = torch.nn.functional.pad(types, (num_virtual, 0))[None]
        sizes = [grid for _, grid in memory.grids[row]]
        try:
            positions, delta = decoder.get_rope_index(
                torch.zeros_like(whole),
                mm_token_type_ids=whole,
                image_grid_thw=torch.stack(sizes) if sizes else None,
            )
        except (ValueError, RuntimeError, StopIteration) as error:
            raise InputError(
                f"row {row}: the placeholders do not fit the sizes of its images "
                f"({telling_line(error)}); give what the processor returns"
            ) from error
        order = torch.arange(whole.shape[1], device="cpu")
        shifts[:, row, : len(types)] = (positions[:, 0] - order)[:, num_virtual:]
        shifts[:, row, len(types) :] = int(delta)
    return shifts
