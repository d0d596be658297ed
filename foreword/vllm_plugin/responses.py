"""Response rewriting: vLLM's answers under a prompt's name, virtual tokens counted apart.

In: the JSON of an answer, or the lines of a stream. Out: the same, rewritten, with the calls of
tools told apart from text; its usage and finish reasons are kept. Knows JSON only.
"""

import json
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from foreword.server.tool_answers import CallsOfAnswers

PREFIX, END = "data: ", "\n\n"


@dataclass
class ResponseRewriter:
    """Rewrites the answer to one request.

    Attributes:
        name: what answers call the model.
        num_virtual: P.
        num_rows: prompts of the request, each behind the virtual tokens.
        calls: reads the calls of answers; None: text is text.
        tells_usage: whether the client of a stream asked for its usage.
        usage: what was counted, once it is known.
        finish_reasons: why each answer ended.
    """

    name: str
    num_virtual: int
    num_rows: int = 1
    calls: CallsOfAnswers | None = None
    tells_usage: bool = True
    usage: dict[str, Any] = field(default_factory=dict)
    finish_reasons: list[str] = field(default_factory=list)

    def whole(self, content: dict[str, Any]) -> dict[str, Any]:
        """Rewrite a whole answer, in place."""
        if self.calls is not None:
            for choice in content["choices"]:
                index, message = choice["index"], choice["message"]
                message |= self.calls.message(index, message.get("content") or "")
                choice["finish_reason"] = self.calls.reason(index, choice["finish_reason"])
        self._rewrite(content)
        self._count(content["usage"], self.num_rows)
        self.usage = content["usage"]
        return content

    def event(self, content: dict[str, Any]) -> dict[str, Any] | None:
        """Rewrite an event of a stream, in place; None where the client did not ask for it."""
        if "error" in content:
            return content
        self._rewrite(content)
        is_last = not content["choices"]
        if usage := content.get("usage"):
            # Usage that comes with a choice counts its own row only.
            self._count(usage, self.num_rows if is_last else 1)
            if is_last:
                self.usage = usage
        return content if self.tells_usage or not is_last else None

    async def stream(self, chunks: AsyncIterable[Any]) -> AsyncIterator[str]:
        """Rewrite a stream of server-sent events; what is not JSON passes unchanged."""
        async for chunk in chunks:
            text = chunk.decode() if isinstance(chunk, bytes) else chunk
            for line in text.split(END):
                if not line.startswith(PREFIX + "{"):
                    if line:
                        yield line + END
                    continue
                for content in self._told(json.loads(line.removeprefix(PREFIX))):
                    if (event := self.event(content)) is not None:
                        yield PREFIX + json.dumps(event, ensure_ascii=False) + END

    def _told(self, content: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the events that an event with text becomes, once its calls are read."""
        if self.calls is None or not content.get("choices"):
            return [content]
        found = []
        for choice in content["choices"]:
            index, reason = choice["index"], choice.get("finish_reason")
            delta = {name: one for name, one in choice["delta"].items() if one is not None}
            text = delta.pop("content", "")
            deltas = [delta] if delta else []
            deltas += self.calls.deltas(index, text, reason is not None)
            if not deltas and (reason is not None or choice.get("logprobs")):
                deltas = [{}]
            plain = choice | {"finish_reason": None, "logprobs": None}
            parts = [plain | {"delta": one} for one in deltas]
            for last in parts[-1:]:
                last |= {
                    "finish_reason": self.calls.reason(index, reason),
                    "logprobs": choice.get("logprobs"),
                }
            found += [content | {"choices": [part], "usage": None} for part in parts]
        for last in found[-1:]:
            last["usage"] = content.get("usage")
        return found

    def _rewrite(self, content: dict[str, Any]) -> None:
        content["model"] = self.name
        for holder in (content, *content["choices"]):
            if ids := holder.get("prompt_token_ids"):
                holder["prompt_token_ids"] = ids[self.num_virtual :]
            if reason := holder.get("finish_reason"):
                self.finish_reasons.append(reason)

    def _count(self, usage: dict[str, Any], num_rows: int) -> None:
        virtual = self.num_virtual * num_rows
        usage["prompt_tokens"] -= virtual
        usage["total_tokens"] -= virtual
        details = usage.get("prompt_tokens_details") or {}
        if (cached := details.get("cached_tokens")) is not None:
            details["cached_tokens"] = max(0, cached - self.num_virtual)
        usage["prompt_tokens_details"] = details | {"virtual_tokens": virtual}
