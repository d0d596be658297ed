"""Frontend: binds a request to its prompt and encodes it for the engine.

In: a body that names a prompt. Out: a `Bound` request: ids as the prompt's training encoded them, a
salt, and either embeddings or an order for the connector. Files and tokenizers are used in one
thread of its own, so that the event loop never waits for them. Imports no vLLM.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foreword.config import EncodingConfig
from foreword.data import encoding
from foreword.errors import InputError, NotFoundError, UnsupportedError
from foreword.prompt.narrowing import narrowed
from foreword.server.catalog import Catalog, ServedModel
from foreword.server.tool_use import ToolUse
from foreword.vllm_plugin import compatibility, placeholders, signing
from foreword.vllm_plugin.conversation import behind, conversation, tools_of
from foreword.vllm_plugin.store_watcher import LOOK_SECONDS, Watch

log = logging.getLogger("vllm.foreword")
MAX_BYTES = 1 << 28  # of embeddings that are remembered


@dataclass(frozen=True)
class EngineInput:
    """One row for the engine.

    Attributes:
        ids: `[P + T]`, placeholders first.
        salt: of its cached blocks.
        mixed: its embeddings; None for a key/value prompt.
    """

    ids: list[int]
    salt: str
    mixed: placeholders.Mixed | None = None


@dataclass(frozen=True)
class Bound:
    """A request behind the version of a prompt that was current when it came.

    Attributes:
        served: the prompt.
        num_virtual: P.
        rows: the engine's inputs.
        stop_ids: the ids that end an answer, as at training.
        use: of tools, in a chat.
        order: what the connector has to load; None for embeddings.
    """

    served: ServedModel
    num_virtual: int
    rows: list[EngineInput] = field(repr=False)
    stop_ids: list[int]
    use: ToolUse | None = None
    order: dict[str, Any] | None = None


@dataclass(frozen=True)
class Limits:
    """What the engine takes.

    Attributes:
        max_length: tokens of one request, virtual and new ones included.
        vocab_size: V.
        dtype: of the embeddings that it takes.
        repetition_penalty: where a request says none.
        end_ids: the ids at which the model itself ends.
        has_grammars: whether answers are held to grammars of llguidance.
    """

    max_length: int
    vocab_size: int
    dtype: torch.dtype = torch.float32
    repetition_penalty: float = 1.0
    end_ids: tuple[int, ...] = ()
    has_grammars: bool = False


class Frontend:
    """The prompts of one process that serves HTTP.

    Args:
        catalog: the names that are served.
        watch: keeps them as the store is.
        tokenizer: a copy of its own, which no other thread uses.
        limits: what the engine takes.
    """

    def __init__(self, catalog: Catalog, watch: Watch, tokenizer: Any, limits: Limits) -> None:
        self.catalog, self.watch, self.tokenizer, self.limits = catalog, watch, tokenizer, limits
        self._thread = ThreadPoolExecutor(1, "foreword")
        self._cached: OrderedDict[str, Tensor] = OrderedDict()

    async def follow_forever(self) -> None:
        """Follow the store, again and again."""
        while True:
            try:
                await self.run(self.watch.look)
            except Exception:  # a disk that is away for a while
                log.exception("the store could not be read; what was served stays")
            await asyncio.sleep(LOOK_SECONDS)

    async def run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Run work in the thread of files and tokenizers."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def is_prompt(self, name: str | None) -> bool:
        """Return whether a name is one of the store's, served or refused."""
        plain = (name or "").partition("@")[0]
        if plain in self.watch.reserved:
            return False
        if plain in self.watch.refused:
            return True
        try:
            return self.catalog.find(plain).source is not None
        except NotFoundError:
            return False

    def bind(self, body: Any, *, is_chat: bool) -> Bound:
        """Bind a request to its prompt, and encode it for the engine.

        Raises:
            NotFoundError: no such version. UnsupportedError: a field that would not be exact, or a
                prompt that is not served. InputError: messages or ids that cannot be taken.
        """
        if reason := self.watch.refused.get(body.model.partition("@")[0]):
            raise UnsupportedError(f"{body.model!r} is not served: {reason}")
        served = self.catalog.find(body.model)
        assert served.source is not None and served.entry is not None
        compatibility.check_request(body, served.name, is_chat=is_chat)
        num_virtual = served.source.num_virtual_tokens
        most = self.limits.max_length - num_virtual
        rows, stop_ids, use = self._encoded(body, served.encoding, is_chat, most)
        num_new = self._num_new(body, is_chat)
        for ids in rows:
            compatibility.check_ids(ids, self.limits.vocab_size)
            compatibility.check_room(num_virtual, len(ids), num_new, self.limits.max_length)
        salt = signing.salt(served.source.content_hash, body.cache_salt)
        penalty = body.repetition_penalty
        penalty = self.limits.repetition_penalty if penalty is None else penalty
        if served.facts["form"] == "embeddings":
            values = self._embeddings(served)
            spliced = [
                placeholders.mixed(ids, values, placeholders.placeholder(ids, penalty))
                for ids in rows
            ]
            found = [EngineInput(one.ids, salt, one) for one in spliced]
            return Bound(served, num_virtual, found, stop_ids, use)
        order = {
            "entry": str(served.entry),
            "content": served.source.content_hash,
            "num_virtual": num_virtual,
        }
        found = [
            EngineInput(
                placeholders.with_placeholders(
                    ids, num_virtual, placeholders.placeholder(ids, penalty)
                ),
                salt,
            )
            for ids in rows
        ]
        return Bound(served, num_virtual, found, stop_ids, use, signing.sealed(order))

    def _encoded(
        self, body: Any, config: EncodingConfig, is_chat: bool, max_tokens: int
    ) -> tuple[list[list[int]], list[int], ToolUse | None]:
        """Return each row's ids, the ids at which an answer ends, and how tools are used."""
        if is_chat:
            return self._encoded_chat(body, config, max_tokens)
        given = _prompts_of(body.prompt)
        rows = [
            encoding.encode_prompt(one, self.tokenizer, config, max_tokens=max_tokens)
            if isinstance(one, str)
            else one
            for one in given
        ]
        return rows, self._ends("", config), None

    def _encoded_chat(
        self, body: Any, config: EncodingConfig, max_tokens: int
    ) -> tuple[list[list[int]], list[int], ToolUse | None]:
        chat = conversation(body)
        use = tools_of(body, chat, self.tokenizer, config, can_hold=self.limits.has_grammars)
        tools = use.shown if use is not None else ()
        turns = [message.turn() for message in chat.messages or []]
        ids = encoding.encode_prompt(
            turns, self.tokenizer, config, tools=tools, max_tokens=max_tokens
        )
        return [ids], self._ends(turns, config, tools), behind(use, ids, self.tokenizer)

    def _ends(self, given: Any, config: EncodingConfig, tools: Any = ()) -> list[int]:
        own = encoding.end_ids(given, self.tokenizer, config, tools=tools)[-1:]
        return list(dict.fromkeys([*own, *self.limits.end_ids]))

    def _num_new(self, body: Any, is_chat: bool) -> int | None:
        if is_chat and body.max_completion_tokens is not None:
            return int(body.max_completion_tokens)
        return None if body.max_tokens is None else int(body.max_tokens)

    def _embeddings(self, served: ServedModel) -> Tensor:
        """Return a prompt's embeddings `[P, H]` in the engine's dtype.

        Raises:
            InputError: numbers that it does not hold.
        """
        assert served.source is not None
        key = served.source.content_hash
        if key not in self._cached:
            prompt = served.source.load()
            assert prompt.form == "embeddings"  # type: ignore[union-attr]
            values = prompt.embeddings.detach()  # type: ignore[union-attr]
            self._cached[key] = narrowed(values, self.limits.dtype, "the engine")
            while (
                len(self._cached) > 1
                and sum(row.nbytes for row in self._cached.values()) > MAX_BYTES
            ):
                self._cached.popitem(last=False)
        self._cached.move_to_end(key)
        return self._cached[key]


def _prompts_of(prompt: Any) -> list[Any]:
    """Return each prompt of a completion: a text or ids.

    Raises:
        InputError: there is none.
    """
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, Sequence) or not prompt:
        raise InputError("prompt: expected a text, ids, or a list of either")
    if all(isinstance(one, int) for one in prompt):
        return [list(prompt)]
    return [one if isinstance(one, str) else list(one) for one in prompt]
