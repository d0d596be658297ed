"""Output items: an answer in the format of the Responses API, whole or as the events of a stream.

In: pieces of one answer, and the request. Out: JSON-ready dictionaries: text is an item, each call
of a function another. The whole answer is what the last event of its stream says, so that both are
the same by their making. Knows no HTTP, and not how the engine runs.
"""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from foreword.data.token_texts import token_texts
from foreword.server.response_request import ResponseRequest
from foreword.server.responses import token_logprobs, usage
from foreword.server.streaming import Piece, StreamedAnswer
from foreword.server.tool_answers import CallsOfAnswers
from foreword.server.tool_use import ToolUse

Event = dict[str, Any]


class ResponseFormatter:
    """Formats the one answer of a Responses request."""

    end = ""

    def __init__(
        self, model: str, tokenizer: Any, body: ResponseRequest, tools: ToolUse | None = None
    ) -> None:
        self.kept = frozenset(tools.kept) if tools is not None else frozenset()
        self._texts = token_texts(tokenizer, self.kept)
        self._calls = CallsOfAnswers(tools)
        self._response = _response(model, body)
        self._num_events = 0
        self._item: Event | None = None  # that is open: a message, or a call
        self._said: list[str] = []  # texts of the open item
        self._logprobs: list[Event] = []  # of the open message
        self._waiting: list[Event] = []  # logprobs whose text is not out
        self._has_logprobs = False

    def opening(self, index: int) -> list[Event]:
        """Return the first events."""
        return [self._of_response("created"), self._of_response("in_progress")]

    def chunks(self, piece: Piece, logprobs: bool) -> list[Event]:
        """Return the events of a piece, as it comes."""
        return self._put(piece, logprobs, piece.answer.finish_reason)

    def _put(self, piece: Piece, logprobs: bool, reason: str | None) -> list[Event]:
        """Return the events of a piece; `reason` is why the answer ends with it."""
        self._has_logprobs = logprobs
        if logprobs:
            self._waiting += token_logprobs(self._texts, piece.choices, piece.places)
        events = []
        for delta in self._calls.deltas(piece.answer.index, piece.text, reason is not None):
            if "content" in delta:
                events += self._text(delta["content"])
            for call in delta.get("tool_calls", ()):
                events += self._call(call)
        if reason is None:
            return events
        if self._item is None and not self._response["output"]:
            events += self._text("")
        status = "incomplete" if reason == "length" else "completed"
        return events + self._close(status)

    def closing(self, answers: Sequence[StreamedAnswer], has_usage: bool) -> list[Event]:
        """Return the last event, which holds the whole response."""
        is_cut = answers[0].finish_reason == "length"
        self._response["status"] = "incomplete" if is_cut else "completed"
        if is_cut:
            self._response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            self._response["completed_at"] = time.time()
        self._response["usage"] = _usage(answers)
        return [self._of_response(self._response["status"])]

    def failure(self, message: str, status: int) -> Event:
        """Return the last event of a stream that cannot go on."""
        self._response["status"] = "failed"
        self._response["error"] = {"code": "server_error", "message": message}
        return self._of_response("failed")

    def body(
        self, answers: Sequence[StreamedAnswer], pieces: Sequence[Piece], logprobs: bool
    ) -> Event:
        """Return the whole answer: what the last event of its stream would say."""
        for number, piece in enumerate(pieces, 1):
            self._put(
                piece, logprobs, piece.answer.finish_reason if number == len(pieces) else None
            )
        whole: Event = self.closing(answers, True)[-1]["response"]
        return whole

    # Items --------------------------------------------------------------------------------------

    def _text(self, text: str) -> list[Event]:
        """Return the events of more text, which opens a message where none is open."""
        events: list[Event] = []
        if self._item is None or self._item["type"] != "message":
            events += self._close("completed")
            item = {"id": _id("msg"), "type": "message", "role": "assistant", "content": []}
            events += self._open(item)
            events.append(self._of_item("content_part.added", content_index=0, part=_part("", [])))
        self._said.append(text)
        told, self._waiting = self._waiting, []
        self._logprobs += told
        if text:
            fields = {"content_index": 0, "delta": text, "logprobs": told}
            events.append(self._of_item("output_text.delta", **fields))
        return events

    def _call(self, call: Event) -> list[Event]:
        """Return the events of a call's name, or of its arguments."""
        events: list[Event] = []
        if "id" in call:
            events += self._close("completed")
            item = {
                "id": _id("fc"), "type": "function_call", "call_id": call["id"],
                "name": call["function"]["name"], "arguments": "",
            }  # fmt: skip
            events += self._open(item)
        text = call["function"]["arguments"]
        self._said.append(text)
        if text:
            events.append(self._of_item("function_call_arguments.delta", delta=text))
        return events

    def _open(self, item: Event) -> list[Event]:
        self._item, self._said, self._logprobs = item, [], []
        begun = item | {"status": "in_progress"}
        return [self._event("output_item.added", output_index=self._index, item=begun)]

    def _close(self, status: str) -> list[Event]:
        """Return the events that end the open item."""
        if (item := self._item) is None:
            return []
        text, events = "".join(self._said), []
        if item["type"] == "message":
            self._logprobs += self._waiting
            part = _part(text, self._logprobs)
            if not self._has_logprobs:
                del part["logprobs"]
            fields = {"content_index": 0, "text": text, "logprobs": self._logprobs}
            events.append(self._of_item("output_text.done", **fields))
            events.append(self._of_item("content_part.done", content_index=0, part=part))
            item |= {"content": [part]}
        else:
            item |= {"arguments": text}
            fields = {"name": item["name"], "arguments": text}
            events.append(self._of_item("function_call_arguments.done", **fields))
        item |= {"status": status}
        events.append(self._event("output_item.done", output_index=self._index, item=item))
        self._response["output"].append(item)
        self._item, self._waiting = None, []
        return events

    @property
    def _index(self) -> int:
        return len(self._response["output"])

    # Events -------------------------------------------------------------------------------------

    def _of_item(self, kind: str, **fields: Any) -> Event:
        assert self._item is not None
        return self._event(kind, item_id=self._item["id"], output_index=self._index, **fields)

    def _of_response(self, kind: str) -> Event:
        told = self._response | {"output": list(self._response["output"])}
        return self._event(kind, response=told)

    def _event(self, kind: str, **fields: Any) -> Event:
        number, self._num_events = self._num_events, self._num_events + 1
        return {"type": f"response.{kind}", "sequence_number": number, **fields}


def _response(model: str, body: ResponseRequest) -> Event:
    """Return the response before its answer; what was asked for is told again."""
    form = body.text.format if body.text is not None else None
    effort = body.reasoning.effort if body.reasoning is not None else None
    return {
        "id": _id("resp"),
        "object": "response",
        "created_at": time.time(),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": effort, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": _plain(form) if form is not None else {"type": "text"}},
        "tool_choice": _plain(body.tool_choice) if body.tool_choice is not None else "auto",
        "tools": [{"parameters": None, "strict": None} | _plain(tool) for tool in body.tools or []],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }


def _plain(value: Any) -> Any:
    is_text = isinstance(value, str)
    return value if is_text else value.model_dump(by_alias=True, exclude_none=True)


def _part(text: str, logprobs: list[Event]) -> Event:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _usage(answers: Sequence[StreamedAnswer]) -> Event:
    """Return the tokens of a call under their names in this API; none is reasoning of its own."""
    counted = usage(answers, 1)
    details = counted["prompt_tokens_details"]
    return {
        "input_tokens": counted["prompt_tokens"],
        "input_tokens_details": {"cache_write_tokens": 0, **details},
        "output_tokens": counted["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counted["total_tokens"],
    }


def _id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"
