"""Requests: what to answer and how, and the handle that fills; engine and callers share both.

In: ids, media between them, a prompt's source, settings, a stop rule. Out: a `Handle` that fills
with choices until it says why it ended. Knows nothing of models and of how rows are batched.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor

from foreword.data.processor import Media
from foreword.engine.sampling import Choice, Sampling
from foreword.errors import InputError
from foreword.prompt.prefix import Prefix
from foreword.prompt.soft_prompt import SoftPrompt

Reason = Literal["stop", "length", "cancelled", "error"]


class Constraint(Protocol):
    """What a grammar allows, id by id; each belongs to one request."""

    def allowed(self) -> Tensor:
        """Return the ids that may come next, bool `[V or fewer]`."""

    def accept(self, chosen_id: int) -> bool:
        """Take note of the next id; return whether all is said."""


@dataclass(frozen=True)
class PromptSource:
    """A prompt by its content, loaded only where its state is not known.

    Attributes:
        content_hash: two sources with the same hash are the same prompt.
        num_virtual_tokens: P.
        load: returns the prompt; called in the engine's thread.
    """

    content_hash: str
    num_virtual_tokens: int
    load: Callable[[], SoftPrompt | Prefix]

    @classmethod
    def of(cls, prompt: SoftPrompt | Prefix) -> "PromptSource":
        """Return the source of a prompt in memory."""
        return cls(prompt.content_hash, prompt.num_virtual_tokens, lambda: prompt)


@dataclass(frozen=True)
class Request:
    """What to answer, and how.

    Attributes:
        ids: the real tokens, at least one.
        prompt: the virtual tokens before them; None for the bare model.
        sampling: how ids are drawn.
        max_new_tokens: after these the answer ends with "length"; 0 only reads.
        stop_ids: the answer ends with "stop" at one of these, which it includes.
        constraint: what a grammar allows.
        num_prompt_logprobs: likeliest ids to report at each of `ids`; None reports nothing.
        logprobs_from: the first of `ids` that is reported; those before need not run again.
        media: what the placeholders among `ids` stand for; such a request is served alone.
        listener: told of each choice and of the end, in the engine's thread; it must not wait.
    """

    ids: tuple[int, ...]
    prompt: PromptSource | None = None
    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int = 16
    stop_ids: frozenset[int] = frozenset()
    constraint: Constraint | None = None
    num_prompt_logprobs: int | None = None
    logprobs_from: int = 1
    media: Media | None = None
    listener: "Callable[[Handle], None] | None" = None


class Handle:
    """A request under way. Its attributes are written by the engine's thread.

    Attributes:
        call: the same for requests that were submitted together, and for no others.
        choices: the answer so far.
        finish_reason: why it ended; None while it goes on.
        error: what went wrong, where the reason is "error".
        num_reused: tokens of the request that did not have to be read again.
        prompt_logprobs: of each of the request's ids from `logprobs_from` on, if asked for.
    """

    def __init__(self, request: Request, call: object = None) -> None:
        self.request = request
        self.call = call if call is not None else self
        self.choices: list[Choice] = []
        self.finish_reason: Reason | None = None
        self.error: Exception | None = None
        self.num_reused = 0
        self.prompt_logprobs: list[Choice] = []
        self.is_cancelled = False

    @property
    def ids(self) -> list[int]:
        """The ids of the answer so far."""
        return [choice.id for choice in self.choices]

    def cancel(self) -> None:
        """End the request; its row is free at the next step. Harmless when it has ended."""
        self.is_cancelled = True

    @property
    def num_tokens(self) -> int:
        """The most tokens that it may hold, virtual ones included."""
        prompt = self.request.prompt
        virtual = prompt.num_virtual_tokens if prompt is not None else 0
        return virtual + len(self.request.ids) + self.request.max_new_tokens

    def take(self, choice: Choice | None) -> None:
        """Add a choice, end where the stop rule says so, and tell the listener.

        None stands for logits that are not finite, or of which a grammar allows none.
        """
        request = self.request
        if choice is None:
            self.fail(InputError("the model's numbers are not finite, or nothing is allowed next"))
            return
        if request.max_new_tokens == 0:
            self.end("length")
            return
        self.choices.append(choice)
        try:
            is_said = request.constraint is not None and request.constraint.accept(choice.id)
        except Exception as error:
            self.fail(error)
            return
        if is_said or choice.id in request.stop_ids:
            self.finish_reason = "stop"
        elif len(self.choices) >= request.max_new_tokens:
            self.finish_reason = "length"
        self._tell()

    def end(self, reason: Reason) -> None:
        """End and tell the listener."""
        if self.finish_reason is None:
            self.finish_reason = reason
            self._tell()

    def fail(self, error: Exception) -> None:
        """End with an error and tell the listener."""
        if self.finish_reason is None:
            self.error = error
            self.end("error")

    def _tell(self) -> None:
        """Call the listener; one that raises ends its own request."""
        if self.request.listener is not None:
            try:
                self.request.listener(self)
            except Exception as error:
                self.finish_reason, self.error = "error", error
