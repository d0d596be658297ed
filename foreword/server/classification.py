"""Classification: `POST /v1/classify`, the likeliest of a few answers, and how likely each is.

In: a conversation or a text, and the answers that there are. Out: their probabilities, each that of
all its tokens and the end, as rows of training and evaluation have them, divided by the sum.
Nothing is generated. Does not know how the engine runs.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import Request

from foreword import chat
from foreword.backbone import Backbone
from foreword.data import encoding
from foreword.data.encoding import Row
from foreword.data.example import Example
from foreword.data.media_parts import Message
from foreword.engine import request
from foreword.errors import InputError
from foreword.evaluation.choice_losses import MIN_SHARED, num_shared
from foreword.evaluation.evaluation import check_begun
from foreword.evaluation.label_choice import check_different, chosen
from foreword.server.catalog import ServedModel
from foreword.server.protocol import ClassifyRequest
from foreword.server.responses import tokens_used
from foreword.server.routes import LONG_TEXT, num_virtual, room
from foreword.server.serving import collected, fields_of
from foreword.server.state import AppState, note, state_of
from foreword.server.streaming import Answers


async def classify(body: ClassifyRequest, http: Request) -> dict[str, Any]:
    """Return the likeliest answer and the probabilities of all."""
    state, started = state_of(http), time.perf_counter()
    deadline = state.deadline()
    served = await state.encode(lambda: state.catalog.find(body.model), deadline)
    if len(body.choices) > state.config.max_choices:
        raise InputError(
            f"choices: at most {state.config.max_choices} to one request, got {len(body.choices)}"
        )
    turns = tuple(message.turn() for message in body.messages or [])
    rows = await state.encode_with(
        lambda backbone: rows_of(backbone, state, served, turns or body.prompt or "", body.choices),
        body.is_longer(LONG_TEXT),
        deadline,
    )
    requests = [_request(row.input_ids, served, row.num_labels) for row in rows]
    for one in requests:
        state.worker.engine.check(one)
    told = {"model": served.name, "soft_prompt": served.label, "choices": len(requests)}
    shared = rows[0].input_ids[: num_shared(rows)]
    first: Answers | None = None
    if len(shared) >= MIN_SHARED and state.config.cache_bytes:
        # The question is read once, and its state kept: every answer goes on from it.
        first = await _read([_request(shared, served)], http, told, started, deadline)
    answers = await _read(requests, http, told, started, deadline)
    reused = [one.handle.num_reused for one in answers.answers]
    before = first.answers[0].handle.num_reused if first is not None else reused[0]
    counted = usage_of(rows, reused, before, num_virtual(served))
    fields = fields_of(answers, 1, started) | {
        "prompt_tokens": counted["prompt_tokens"],
        "cached_tokens": counted["prompt_tokens_details"]["cached_tokens"],
        "finish_reasons": ["stop"],  # one answer, whose end was read
    }
    note(http, fields)
    state.metrics.count_finished(served.label, fields)
    losses = [
        -sum(choice.logprob or 0.0 for choice in answer.handle.prompt_logprobs)
        for answer in answers.answers
    ]
    [found] = chosen(losses, body.choices)
    return {
        "object": "classification",
        "created": int(time.time()),
        "model": served.name,
        "label": found.text,
        "confidence": found.confidence,
        "probabilities": [
            {"label": label, "probability": share}
            for label, share in zip(body.choices, found.probabilities, strict=True)
        ],
        "usage": counted,
        "seconds": round(time.perf_counter() - started, 4),
    }


def usage_of(
    rows: Sequence[Row], reused: Sequence[int], before: int, virtual: int
) -> dict[str, Any]:
    """Return the tokens of a call: what all answers stand behind is counted once, and so are the
    virtual tokens.

    Args:
        rows: the question and an answer, one for each.
        reused: tokens of each row that were not read again.
        before: tokens of the question that were there before the call.
        virtual: P.
    """
    most = min(len(row.input_ids) - row.num_labels for row in rows)
    columns = zip(*(row.input_ids[:most] for row in rows), strict=True)
    question = next((place for place, ids in enumerate(columns) if len(set(ids)) > 1), most)
    given = question + sum(len(row.input_ids) - question for row in rows)
    cached = min(before, question) + sum(max(0, one - question) for one in reused)
    return tokens_used(given, 0, cached, virtual)


def _request(ids: tuple[int, ...], served: ServedModel, num_labels: int = 0) -> request.Request:
    """Return a request that reads ids and generates nothing: where the last of them are labels,
    their log-probabilities are told.
    """
    if not num_labels:
        return request.Request(ids, served.source, max_new_tokens=0)
    return request.Request(
        ids,
        served.source,
        max_new_tokens=0,
        num_prompt_logprobs=0,
        logprobs_from=len(ids) - num_labels,
    )


async def _read(
    requests: Sequence[request.Request],
    http: Request,
    told: dict[str, Any],
    started: float,
    deadline: float,
) -> Answers:
    """Let the engine read some requests, and return what it says of them; the log is told, however
    that ends.
    """
    state = state_of(http)
    answers = Answers(
        state.worker,
        state.backbone.tokenizer,
        (),
        state.config.request_seconds,
        deadline=deadline,
    )
    answers.submit(requests)
    try:
        await collected(http, answers)
    finally:
        answers.cancel()
        note(http, told | fields_of(answers, 1, started))
    return answers


def rows_of(
    backbone: Backbone,
    state: AppState,
    served: ServedModel,
    prompt: str | Sequence[Message],
    choices: Sequence[str],
) -> list[Row]:
    """Return a row for each answer, encoded as the prompt's training encoded its own: behind a
    space, where all of these were.

    Raises:
        InputError: images or sounds, or a text that is longer than a request may be.
        DataError: a conversation that the template cannot take, an answer that it cannot close, or
            nothing before it.
    """
    config = replace(served.encoding, max_length=None, truncate=False)
    longest = room(state, served)
    _, media = chat.encode(backbone, prompt, config, longest)  # a text that is too long is not read
    if media is not None:
        raise InputError("messages: choices are read behind text, without images and sounds")
    asked = prompt if isinstance(prompt, str) else tuple(prompt)
    is_literal = isinstance(prompt, str) or bool(config.is_text or config.row_template)
    is_spaced = served.is_spaced and is_literal
    texts = [f" {one}" if is_spaced and not one[:1].isspace() else one for one in choices]
    examples = [Example(asked, text, f"choices[{place}]") for place, text in enumerate(texts)]
    rows, _ = encoding.encode_examples(examples, backbone.tokenizer, config, encoding.NO_LIMIT)
    for row in rows:
        check_begun(row)
    check_different(rows, choices)
    return rows
