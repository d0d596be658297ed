"""Request schema: the bodies of OpenAI's API, every field bounded and unknown fields refused.

In: JSON values. Out: validated requests, and their sampling settings. A field that would change an
answer and is not supported is an error, never ignored; fields that cannot change one are accepted.
A value has its JSON type, none is converted; null is a field that was left out. Knows no model and
no tokenizer.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, Tag, model_validator

from foreword.engine.sampling import Sampling
from foreword.server.fields import (
    LIST,
    TEXT,
    Ids,
    LogitBias,
    Metadata,
    ModelName,
    Prompt,
    StopIds,
    Stops,
    Strict,
    Text,
    is_longer,
    one_of,
    text_or_list,
)
from foreword.server.schema_form import WrittenSchema
from foreword.server.tool_turns import in_order
from foreword.server.tools import Calls, ToolChoice, Tools, check_tools

MAX_LOGPROBS = 20
HarmlessText = Annotated[str, Field(max_length=1000)]  # of a field that changes no answer
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class StreamOptions(Strict):
    """What a stream tells beside the text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchema(Strict):
    """A named JSON schema."""

    name: str = Field(max_length=200)
    schema_: WrittenSchema = Field(alias="schema")
    description: str | None = Field(None, max_length=10_000)
    strict: bool | None = None


class ResponseFormat(Strict):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("type 'json_schema' and the field json_schema go together")
        return self

    @property
    def schema_to_follow(self) -> dict[str, Any] | None:
        """The JSON schema of an answer; None for free text."""
        if self.json_schema is not None:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None


class Common(Strict):
    """What chat and plain completions share."""

    model: ModelName
    n: int = Field(1, ge=1, le=128)
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: Stops | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=1_000_000)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: LogitBias | None = None
    max_tokens: int | None = Field(None, ge=0, le=10_000_000)
    response_format: ResponseFormat | None = None
    ignore_eos: bool = False
    stop_token_ids: StopIds | None = None
    user: HarmlessText | None = None

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    @property
    def num_logprobs(self) -> int | None:
        """Likeliest ids to report; None reports nothing."""
        raise NotImplementedError

    def sampling(self, index: int) -> Sampling:
        """Return the settings of the answer at an index; each answer has a seed of its own."""
        given: dict[str, Any] = {
            "top_p": self.top_p,
            "top_k": self.top_k if self.top_k != -1 else None,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
        }
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            seed=None if self.seed is None else self.seed + index,
            num_logprobs=self.num_logprobs,
            logit_bias={int(key): value for key, value in (self.logit_bias or {}).items()},
            **{name: value for name, value in given.items() if value is not None},
        )


class ImageUrl(Strict):
    """An image as a data URL."""

    url: Text
    detail: Literal["auto"] | None = None


class InputAudio(Strict):
    """A sound in base64."""

    data: Text
    format: Literal["wav"]


class Part(Strict):
    """A part of a message: the field that is called as its type, and no other."""

    type: Literal["text", "image_url", "input_audio"]
    text: Text | None = None
    image_url: ImageUrl | None = None
    input_audio: InputAudio | None = None

    @model_validator(mode="after")
    def _has_its_own(self) -> "Part":
        for name in ("text", "image_url", "input_audio"):
            if (getattr(self, name) is not None) != (name == self.type):
                raise ValueError(f"a part of type {self.type!r} needs {self.type}, and no more")
        return self


Parts = Annotated[list[Part], Field(min_length=1, max_length=4096, fail_fast=True)]
Content = Annotated[
    Annotated[Text, Tag(TEXT)] | Annotated[Parts, Tag(LIST)],
    one_of(text_or_list, "a text or a list of parts"),
]


class ChatMessage(Strict):
    """One turn; a refused answer has its `refusal` in place of content, one that calls tools may
    have none.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = Field(None, max_length=200)
    refusal: Text | None = None
    reasoning_content: Text | None = None
    tool_calls: Calls | None = None
    tool_call_id: str | None = Field(None, max_length=200)
    annotations: Annotated[list[Any], Field(max_length=1000)] | None = None  # of an answer

    @model_validator(mode="after")
    def _says_something(self) -> "ChatMessage":
        if self.refusal is not None and (self.role != "assistant" or self.content is not None):
            raise ValueError("refusal is for a turn of the assistant without content")
        if self.tool_calls and (self.role != "assistant" or self.refusal is not None):
            raise ValueError("tool_calls are for a turn of the assistant without a refusal")
        if self.reasoning_content is not None and self.role != "assistant":
            raise ValueError("reasoning_content is for a turn of the assistant")
        if self.tool_call_id is not None and self.role != "tool":
            raise ValueError(f"tool_call_id is for a turn of role 'tool', not {self.role!r}")
        if self.content is None and self.refusal is None and not self.tool_calls:
            raise ValueError(f"content is missing: a turn of role {self.role!r} needs it")
        return self

    def turn(self) -> dict[str, Any]:
        """Return the turn as plain data; a refusal is its text."""
        notes: Any = {"refusal": True, "annotations": True, "tool_calls": {"__all__": {"index"}}}
        plain = self.model_dump(exclude_none=True, exclude=notes)
        if self.tool_calls is not None and not self.tool_calls:
            del plain["tool_calls"]  # templates ask whether there are calls by the key alone
        if self.tool_calls:
            plain.setdefault("content", "")
        return plain if self.refusal is None else plain | {"content": self.refusal}


Messages = Annotated[
    list[ChatMessage],
    Field(min_length=1, max_length=4096, fail_fast=True),
    AfterValidator(in_order),
]


class TemplateFields(Strict):
    """What a request sets of the chat template beside its turns."""

    reasoning_effort: Effort | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.add_generation_prompt is not None and (
            self.add_generation_prompt == self.continue_final_message
        ):
            raise ValueError(
                "add_generation_prompt is true for a new answer, and false with "
                "continue_final_message: true"
            )
        check_tools(self.tools, self.tool_choice)
        return self

    @property
    def shows_tools(self) -> bool:
        """Whether the template is given tools to show."""
        return bool(self.tools) and self.tool_choice != "none"


class ChatRequest(TemplateFields, Common):
    """`POST /v1/chat/completions`."""

    messages: Messages
    max_completion_tokens: int | None = Field(None, ge=0, le=10_000_000)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    store: bool | None = None
    metadata: Metadata | None = None
    service_tier: HarmlessText | None = None
    safety_identifier: HarmlessText | None = None
    prompt_cache_key: HarmlessText | None = None
    prompt_cache_retention: HarmlessText | None = None
    prompt_cache_options: Metadata | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    verbosity: Literal["medium"] | None = None

    @model_validator(mode="after")
    def _go_together(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        most, new = self.max_tokens, self.max_completion_tokens
        if most is not None and new is not None and most != new:
            raise ValueError(
                f"max_tokens is {most} and max_completion_tokens {new}: give one of them"
            )
        return self

    @property
    def num_logprobs(self) -> int | None:
        """Likeliest ids to report at each step."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Common):
    """`POST /v1/completions`."""

    prompt: Prompt
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool = False
    best_of: int | None = Field(None, ge=1, le=1)

    @property
    def num_logprobs(self) -> int | None:
        """Likeliest ids to report at each step."""
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt apart."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(one, int) for one in self.prompt):
            return [list(self.prompt)]  # type: ignore[arg-type]
        return list(self.prompt)  # type: ignore[arg-type]


class TokenizeRequest(TemplateFields):
    """`POST /tokenize`: a text, or a conversation and its tools, as the model's prompt has them."""

    model: ModelName
    prompt: Text | None = None
    messages: Messages | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        of_chats = sorted(self.model_fields_set & TemplateFields.model_fields.keys())
        if self.prompt is not None and of_chats:
            raise ValueError(f"{of_chats[0]} goes with messages, not with prompt")
        return self


Choice = Annotated[str, StringConstraints(min_length=1, max_length=1000, pattern=r"\S")]


class ClassifyRequest(Strict):
    """`POST /v1/classify`: a conversation or a text, and the answers that there are."""

    model: ModelName
    prompt: Text | None = None
    messages: Messages | None = None
    choices: Annotated[list[Choice], Field(min_length=2, max_length=1024, fail_fast=True)]

    @model_validator(mode="after")
    def _agree(self) -> "ClassifyRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        if len(set(self.choices)) < len(self.choices):
            raise ValueError("choices: each answer once")
        return self

    def is_longer(self, most: int) -> bool:
        """Return whether more characters are to be encoded: the question, once for each answer."""
        question = [self.prompt, self.messages]
        return is_longer(question, most // len(self.choices)) or is_longer(self.choices, most)


class DetokenizeRequest(Strict):
    """`POST /detokenize`: ids of which the text is asked for."""

    model: ModelName
    tokens: Ids


class NameRequest(Strict):
    """`POST /v1/load_soft_prompt` and `/v1/unload_soft_prompt`: a name of the store."""

    name: ModelName
