"""Rows with images or sounds in the batch: each answer is the oracle's, whatever runs beside it."""

import random

import media_oracle
import pytest
import tiny_media
import tiny_models
import torch
from tiny_media import FAMILIES, GRID_FAMILIES, MediaRow, image, text

from foreword import Backbone, SoftPrompt
from foreword.data.processor import Media
from foreword.engine.engine import Engine
from foreword.engine.limits import EngineLimits
from foreword.engine.request import PromptSource, Request
from foreword.errors import InputError


def engine_of(family: str, **limits: int) -> Engine:
    return Engine(Backbone(tiny_media.shared(family)), EngineLimits(**limits))


def prompts_of(family: str) -> list[SoftPrompt | None]:
    model = tiny_media.shared(family)
    states = Backbone(model).compile(
        SoftPrompt.from_embeddings(tiny_models.embeddings(model, 3, seed=7))
    )
    return [
        None,
        SoftPrompt.from_embeddings(tiny_models.embeddings(model, 4)),
        SoftPrompt.from_states(states.cached),
    ]


def request(
    prompt: SoftPrompt | None, row: MediaRow, num_new: int = 5, **changes: object
) -> Request:
    source = PromptSource.of(prompt) if prompt is not None else None
    media = Media(row.media) if row.media else None
    ids = tuple(row.ids.tolist())
    return Request(ids, source, max_new_tokens=num_new, media=media, **changes)  # type: ignore[arg-type]


def row_of(family: str, kind: int) -> MediaRow:
    if kind == 0:
        return text(7, 3)
    width = 4 if kind % 2 == 0 and family in GRID_FAMILIES else 2
    first = text(3, kind) + image(family, 2, width, seed=kind)
    return first + text(4, kind + 1) if kind < 4 else first + image(family, 2, 2, 9) + text(2, 5)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_with_media_join_and_leave_beside_text(family: str) -> None:
    chance, prompts = random.Random(family), prompts_of(family)
    engine, handles = engine_of(family, max_rows=4, chunk_tokens=16), []
    for _ in range(9):
        kind, prompt = chance.randrange(5), chance.choice(prompts)
        row = row_of(family, kind)
        handles.append((engine.submit(request(prompt, row)), prompt, row))
        for _ in range(chance.randint(0, 2)):
            engine.step()
    assert engine._alone is None and not engine.scheduler._alone
    engine.run()
    for handle, prompt, row in handles:
        assert handle.ids == media_oracle.greedy(tiny_media.shared(family), prompt, row, 5)
        assert handle.num_reused == 0 or not row.media


@pytest.mark.parametrize("family", ["gemma3", "glm4v", "glmasr"])
def test_the_answers_of_one_request_read_its_media_once_and_others_do_not_share_it(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (_, prompt, _) = tiny_media.shared(family), prompts_of(family)
    engine, calls = engine_of(family), []
    real = engine.runner.prefill_media
    monkeypatch.setattr(
        engine.runner, "prefill_media", lambda *given: calls.append(given) or real(*given)
    )
    row, other = row_of(family, 1), text(3, 1) + image(family, 2, 2, seed=5) + text(4, 2)
    assert torch.equal(row.ids, other.ids)
    one = request(prompt, row)
    handles = engine.submit_all([one, one, request(prompt, other)])
    engine.run()
    assert len(calls) == 2
    first, second, third = (handle.ids for handle in handles)
    assert first == second == media_oracle.greedy(model, prompt, row, 5)
    assert third == media_oracle.greedy(model, prompt, other, 5)
    again = engine.submit(request(prompt, other))  # nothing of an image is kept
    engine.run()
    assert len(calls) == 3 and again.ids == third


@pytest.mark.parametrize("family", ["gemma3", "glm4v"])
def test_media_that_does_not_fit_fails_alone(family: str) -> None:
    engine, row = engine_of(family), row_of(family, 1)
    wrong = Media({name: value[:0] for name, value in row.media.items()})
    bad = engine.submit(Request(tuple(row.ids.tolist()), media=wrong))
    good = engine.submit(request(None, row))
    engine.run()
    assert bad.finish_reason == "error" and isinstance(bad.error, InputError)
    assert good.ids == media_oracle.greedy(tiny_media.shared(family), None, row, 5)


@pytest.mark.parametrize("family", ["gemma3", "glmasr"])
def test_log_probabilities_of_a_row_with_media_are_served_alone(family: str) -> None:
    engine, row = engine_of(family), row_of(family, 1)
    handle = engine.submit(request(None, row, num_prompt_logprobs=1))
    assert engine.scheduler._alone
    engine.run()
    assert len(handle.prompt_logprobs) == len(row.ids) - 1
    assert handle.ids == media_oracle.greedy(tiny_media.shared(family), None, row, 5)
