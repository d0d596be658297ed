"""Probes: a conversation with marks in its texts and calls, to see what a template shows of it.

In: messages and tools. Out: the same with probes, and for each what is lost where a filled template
lacks it. Knows no template.
"""

import re
from collections.abc import Sequence
from typing import Any

from foreword.data.example import message_text
from foreword.data.media_parts import Message

PROBE = "foreword-probe"
"""Stands for an answer, to see where a template writes it."""

PROBES = re.compile(
    r"foreword-(?:turn-\d+-(?:start|end)|call-\d+-\d+-(?:name|argument)|tool-\d+-name)"
)
"""Each of those that stand in turns, calls and tools."""

Lost = dict[tuple[str, ...], str]
"""What is not shown where a text lacks all of these probes."""


def probed_turns(messages: Sequence[Message]) -> tuple[list[Message], Lost]:
    """Return messages whose texts have a probe at both ends, and whose calls are probes."""
    turns: list[Message] = []
    lost: Lost = {}
    for number, message in enumerate(messages, 1):
        turn = dict(message)
        calls = message.get("tool_calls") or []
        if (text := message_text(message)).strip():
            start, end = f"foreword-turn-{number}-start ", f" foreword-turn-{number}-end"
            # Of an answer before, templates may leave out the thinking that it begins with, and
            # beside calls all of it.
            is_answer = message["role"] == "assistant"
            turn["content"] = text + end if is_answer else start + text + end
            shown = ([] if calls else [end]) if is_answer else [start, end]
            what = f"the chat template does not show this turn of role {message['role']!r}"
            lost |= {(probe.strip(),): f"message {number}: {what}" for probe in shown}
        if calls:
            turn["tool_calls"] = [
                _probed_call(call, f"foreword-call-{number}-{place}-")
                for place, call in enumerate(calls, 1)
            ]
            for place in range(1, len(calls) + 1):
                stem = f"foreword-call-{number}-{place}-"
                which = (
                    "no calls of tools" if place == 1 else f"no call of tools behind {place - 1}"
                )
                lost[f"{stem}name", f"{stem}argument"] = (
                    f"message {number}: the chat template shows {which}"
                )
        turns.append(turn)
    return turns, lost


def probed_tools(tools: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], Lost]:
    """Return descriptions of tools whose names are probes."""
    found: list[dict[str, Any]] = []
    lost: Lost = {}
    for number, tool in enumerate(tools, 1):
        function = tool.get("function", tool)
        if not isinstance(function, dict) or "name" not in function:
            found.append(tool)
            continue
        probe = f"foreword-tool-{number}-name"
        named = {**function, "name": probe}
        found.append({**tool, "function": named} if "function" in tool else named)
        lost[(probe,)] = f"the chat template does not show tool {number}"
    return found, lost


def _probed_call(call: dict[str, Any], stem: str) -> dict[str, Any]:
    function = call.get("function", call)
    if not isinstance(function, dict):
        return call
    named = {**function, "name": f"{stem}name"}
    if named.get("arguments"):  # an object, or its JSON text
        named["arguments"] = {f"{stem}argument": 0}
    return {**call, "function": named} if "function" in call else named
