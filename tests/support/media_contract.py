"""The cases of the contract on rows with images or sounds, each against the oracle of such rows."""

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import media_oracle
import tiny_media
import tiny_models
import torch
import transformers
from tiny_media import MediaRow, image, joined, text
from torch import Tensor

from foreword import Backbone, SoftPrompt

NUM_NEW = 4
GREEDY: dict[str, Any] = {"max_new_tokens": NUM_NEW, "do_sample": False}


@dataclass
class World:
    """One model, one prompt, and rows: text alone, one image, two of different sizes."""

    family: str
    prompt: SoftPrompt | None

    def __post_init__(self) -> None:
        self.model = tiny_media.shared(self.family)
        self.backbone = Backbone(self.model)
        self.tolerance = tiny_media.TOLERANCES.get(self.family, 1e-9)
        self.one = text(3) + image(self.family, 2, 3) + text(4, 3)
        self.two = (
            text(1) + image(self.family, 2, 2) + text(2, 9) + image(self.family, 1, 3) + text(3, 8)
        )
        self.rows = [text(4), self.one, self.two]
        self._known: dict[MediaRow, list[int]] = {}

    def greedy(self, row: MediaRow) -> list[int]:
        """Return what the oracle says; what many cases ask is computed once."""
        if row not in self._known:
            found = media_oracle.greedy(self.model, self.prompt, row, NUM_NEW)
            self._known[row] = found
        return self._known[row]

    def generate(self, rows: Sequence[MediaRow], side: str = "left", **kwargs: Any) -> Any:
        ids, mask = padded(rows, side)
        media = joined(rows)
        return self.backbone.generate(self.prompt, ids, mask, **media, **(GREEDY | kwargs))

    def expect(self, output: Tensor, rows: Sequence[MediaRow]) -> None:
        """Assert greedy continuations of every row."""
        width = output.shape[1] - NUM_NEW
        assert output[:, width:].tolist() == [self.greedy(row) for row in rows]

    def expect_strategy(self, output: Tensor, row: MediaRow, **kwargs: Any) -> None:
        expected = media_oracle.generate(self.model, self.prompt, row, **kwargs)
        assert output[:, -expected.shape[1] :].tolist() == expected.tolist()


def padded(rows: Sequence[MediaRow], side: str) -> tuple[Tensor, Tensor]:
    """Return ids and mask `[B, T]` of rows padded on one side."""
    length = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        count = len(row.ids)
        part = slice(0, count) if side == "right" else slice(length - count, length)
        ids[index, part], mask[index, part] = row.ids, 1
    return ids, mask


def one_row(world: World) -> None:
    """Greedy decoding of one row without a mask, and the logits of every step."""
    row = world.two
    options = GREEDY | {"return_dict_in_generate": True, "output_logits": True}
    output = world.backbone.generate(world.prompt, row.ids[None], **row.media, **options)
    assert output.sequences[0].tolist() == row.ids.tolist() + world.greedy(row)
    ids = output.sequences[0, :-1]
    expected = media_oracle.row_logits(world.model, world.prompt, row, ids)[-NUM_NEW:]
    steps = torch.stack(output.logits, 1)[0]
    torch.testing.assert_close(steps.double(), expected, rtol=1e-5, atol=1e-4)


def _logits(world: World, side: str) -> None:
    ids, mask = padded(world.rows, side)
    with torch.no_grad():
        logits = world.backbone.logits(world.prompt, ids, mask, **joined(world.rows))
    for index, row in enumerate(world.rows):
        expected = media_oracle.row_logits(world.model, world.prompt, row, row.ids)
        error = (logits[index][mask[index].bool()] - expected).abs().max().item()
        assert error <= world.tolerance, f"row {index}: logits differ by {error:.2e}"


def logits_padded_left(world: World) -> None:
    """One pass over rows with none, one and two images, padded on the left."""
    _logits(world, "left")


def logits_padded_right(world: World) -> None:
    """The same, padded on the right."""
    _logits(world, "right")


def text_alone(world: World) -> None:
    """Greedy decoding of rows of text alone, padded on the left."""
    rows = [text(4), text(9)]
    world.expect(world.generate(rows), rows)


def batch_padded_left(world: World) -> None:
    """Greedy decoding of the three rows, padded on the left."""
    world.expect(world.generate(world.rows, "left"), world.rows)


def batch_padded_right(world: World) -> None:
    """Greedy decoding of the three rows, padded on the right."""
    world.expect(world.generate(world.rows, "right"), world.rows)


def static_cache(world: World) -> None:
    """The left-padded batch with `cache_implementation="static"`."""
    world.expect(world.generate(world.rows, cache_implementation="static"), world.rows)


def given_dynamic_cache(world: World) -> None:
    """The left-padded batch with an empty dynamic cache of the caller's."""
    cache = transformers.DynamicCache(config=world.model.config.get_text_config())
    world.expect(world.generate(world.rows, past_key_values=cache), world.rows)


def without_cache(world: World) -> None:
    """The left-padded batch with `use_cache=False`: every pass reads the images again."""
    world.expect(world.generate(world.rows, use_cache=False), world.rows)


def beam_search(world: World) -> None:
    """The left-padded batch with two beams."""
    options = {"max_new_tokens": NUM_NEW, "num_beams": 2, "do_sample": False}
    output = world.generate(world.rows, **options)
    for index, row in enumerate(world.rows):
        world.expect_strategy(output[index : index + 1], row, **options)


def sampling(world: World) -> None:
    """One row, sampled from the oracle's random state."""
    options: dict[str, Any] = {"max_new_tokens": NUM_NEW, "do_sample": True, "top_p": 0.9}
    options["suppress_tokens"] = list(tiny_media.SPECIAL)
    torch.manual_seed(7)
    output = world.generate([world.two], **options)
    torch.manual_seed(7)
    world.expect_strategy(output, world.two, **options)


def num_return_sequences(world: World) -> None:
    """Two sampled sequences of one row."""
    options: dict[str, Any] = {"max_new_tokens": NUM_NEW, "do_sample": True}
    options |= {"num_return_sequences": 2, "suppress_tokens": list(tiny_media.SPECIAL)}
    torch.manual_seed(7)
    output = world.generate([world.one], **options)
    torch.manual_seed(7)
    world.expect_strategy(output, world.one, **options)


def num_return_sequences_of_rows(world: World) -> None:
    """Two beams returned for each row of the left-padded batch."""
    options = {"max_new_tokens": NUM_NEW, "num_beams": 2, "num_return_sequences": 2}
    output = world.generate(world.rows, **options, do_sample=False)
    for index, row in enumerate(world.rows):
        part = output[2 * index : 2 * index + 2]
        world.expect_strategy(part, row, **options, do_sample=False)


def prompt_lookup(world: World) -> None:
    """One row whose text returns, so that candidates are proposed."""
    row = world.one + MediaRow(torch.tensor(world.greedy(world.one))) + text(4, 3)
    output = world.generate([row], prompt_lookup_num_tokens=3)
    assert output[0, len(row.ids) :].tolist() == world.greedy(row)


def assisted_decoding(world: World) -> None:
    """One row with candidates of the same model without prompt and without images."""
    assistant = tiny_media.build(world.family)
    world.expect(world.generate([world.one], assistant_model=assistant), [world.one])


def chunked_prefill(world: World) -> None:
    """A row read in chunks, with its image inside one of them."""
    chunk = len(world.one.ids) - 2
    world.expect(world.generate([world.one], prefill_chunk_size=chunk), [world.one])


def _turns(world: World, first: MediaRow, more: MediaRow, given: str) -> None:
    """Two turns: `given` says what of ids and media the second brings."""
    ids = first.ids[None]
    options = GREEDY | {"return_dict_in_generate": True}
    before = world.backbone.generate(world.prompt, ids, **first.media, **options)
    answered = first + MediaRow(before.sequences[0, ids.shape[1] :])
    whole = answered + more
    media = whole.media if given == "whole" else more.media
    # The last answered token was not read yet.
    new = whole.ids[-1 - len(more.ids) :] if given == "new ids" else whole.ids
    output = world.backbone.generate(
        world.prompt,
        new[None],
        torch.ones(1, len(whole.ids), dtype=torch.long),
        past_key_values=before.past_key_values,
        **media,
        **GREEDY,
    )
    assert output[0, len(new) :].tolist() == world.greedy(whole)


def second_turn_of_text(world: World) -> None:
    """A turn of text after one with an image; the processor returns the image again."""
    _turns(world, world.one, text(3, 5), "whole")


def second_turn_without_media(world: World) -> None:
    """The same, without the image, which the cache holds."""
    _turns(world, world.one, text(3, 5), "media of the turn")


def second_turn_with_an_image(world: World) -> None:
    """A turn with an image after one with two; the processor returns all."""
    _turns(world, world.two, text(1, 5) + image(world.family, 2, 2, 5) + text(2, 6), "whole")


def second_turn_of_its_own(world: World) -> None:
    """The same with the turn's own ids and image only."""
    _turns(world, world.two, text(1, 5) + image(world.family, 2, 2, 5) + text(2, 6), "new ids")


def multi_turn_padded(world: World) -> None:
    """Two turns of a batch whose rows bring different images in both."""
    ids, mask = padded(world.rows, "left")
    options = GREEDY | {"return_dict_in_generate": True}
    media = joined(world.rows)
    before = world.backbone.generate(world.prompt, ids, mask, **media, **options)
    more = [text(2) + image(world.family, 1, 3) + text(1), text(5), text(3, 4)]
    more_ids, more_mask = padded(more, "right")
    turn = torch.cat([before.sequences, more_ids], 1)
    turn_mask = torch.cat([mask, torch.ones(3, NUM_NEW, dtype=torch.long), more_mask], 1)
    answers = [MediaRow(answer) for answer in before.sequences[:, ids.shape[1] :]]
    whole = [a + b + c for a, b, c in zip(world.rows, answers, more, strict=True)]
    cache = before.past_key_values
    output = world.backbone.generate(
        world.prompt, turn, turn_mask, past_key_values=cache, **joined(whole), **GREEDY
    )
    assert output[:, turn.shape[1] :].tolist() == [world.greedy(row) for row in whole]


def threads(world: World) -> None:
    """Threads that generate from different images on one model at once."""
    results: dict[int, list[int]] = {}

    def run(index: int) -> None:
        row = world.rows[index % 3]
        results[index] = world.generate([row])[0, len(row.ids) :].tolist()

    workers = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == {index: world.greedy(world.rows[index % 3]) for index in range(4)}


def mixed_prompts(world: World) -> None:
    """Rows with images behind prompts of different lengths and forms, and one behind none."""
    short = SoftPrompt.from_embeddings(tiny_models.embeddings(world.model, 3, seed=9))
    states = SoftPrompt.from_key_values(world.backbone.compile(short).key_values)
    prompts = [world.prompt, None, short, states]
    rows = [world.one, world.two, world.one, world.rows[0]]
    ids, mask = padded(rows, "left")
    output = world.backbone.generate(prompts, ids, mask, **joined(rows), **GREEDY)
    for found, row, prompt in zip(output, rows, prompts, strict=True):
        expected = media_oracle.greedy(world.model, prompt, row, NUM_NEW)
        assert found[ids.shape[1] :].tolist() == expected


CASES: dict[str, Callable[[World], None]] = {
    case.__name__: case
    for case in (
        one_row, logits_padded_left, logits_padded_right, text_alone, batch_padded_left,
        batch_padded_right, static_cache, given_dynamic_cache, without_cache, beam_search, sampling,
        num_return_sequences, num_return_sequences_of_rows, prompt_lookup, assisted_decoding,
        chunked_prefill, second_turn_of_text, second_turn_without_media, second_turn_with_an_image,
        second_turn_of_its_own, multi_turn_padded, threads, mixed_prompts,
    )
}  # fmt: skip


@functools.cache
def world_of(family: str, form: str) -> World:
    """Return a family behind a prompt of one form; keys and values are such that no text has."""
    model = tiny_media.shared(family)
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(model, 6))
    if form == "embeddings":
        return World(family, prompt)
    torch.manual_seed(3)
    states = [
        (k + 0.3 * torch.randn_like(k), v + 0.3 * torch.randn_like(v))
        for k, v in Backbone(model).compile(prompt).key_values
    ]
    return World(family, SoftPrompt.from_key_values(states))
