"""Request schema of the Responses API: one answer, stateless, asked for in its terms.

In: JSON values. Out: a validated request, and the chat request that asks for the same answer, so
that there is one way from a conversation to ids. What would need state, a service behind the server
or another model is refused by name; what cannot change an answer is accepted. Knows no model.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from foreword.server.body_errors import errors_of, said
from foreword.server.fields import (
    LIST,
    TEXT,
    Metadata,
    ModelName,
    Strict,
    Text,
    one_of,
    text_or_list,
)
from foreword.server.input_items import InputItem, messages_of
from foreword.server.protocol import MAX_LOGPROBS, ChatRequest, Effort, HarmlessText
from foreword.server.schema_form import WrittenSchema
from foreword.server.tools import MAX_TOOLS, OBJECT, ToolName

LOGPROBS = "message.output_text.logprobs"
Includable = Literal[
    "message.output_text.logprobs",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
]


def _refused(why: str, is_harmless: Callable[[Any], bool] = lambda _: False) -> BeforeValidator:
    """Return what refuses a field with a reason; null is left out before."""

    def check(value: Any) -> Any:
        if not is_harmless(value):
            raise PydanticCustomError("refused", "{why}", {"why": why})
        return value

    return BeforeValidator(check)


def _is_no_true(value: Any) -> bool:
    return value is not True  # what is no truth value at all has an error of its own


STATE = "nothing is kept from one request to the next: send the whole conversation as input"
NOT_STORED = "nothing is stored: leave it out, or say false"
AT_ONCE = "an answer comes with its request: leave it out, or say false"
NO_PROMPTS = "no prompts are stored by an id: a soft prompt is asked for as model"
NO_BUILT_IN = "it counts calls of built-in tools, of which there are none: leave it out"


class TextFormat(Strict):
    """The form of an answer's text."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(None, max_length=200)
    schema_: WrittenSchema | None = Field(None, alias="schema")
    description: str | None = Field(None, max_length=10_000)
    strict: bool | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> "TextFormat":
        if (self.type == "json_schema") != (self.schema_ is not None and self.name is not None):
            raise ValueError("type 'json_schema' and the fields name and schema go together")
        return self

    def response_format(self) -> dict[str, Any]:
        """Return the same as a chat request says it."""
        if self.schema_ is None:
            return {"type": self.type}
        return {"type": self.type, "json_schema": {"name": self.name, "schema": self.schema_}}


class TextOptions(Strict):
    """What an answer's text is like."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Strict):
    """How much the model thinks; no answer tells its reasoning apart, so none is summed up."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ResponseStreamOptions(Strict):
    """What a stream tells beside the text."""

    include_obfuscation: bool = False


class FunctionTool(Strict):
    """A function that the model may call."""

    type: Literal["function"]
    name: ToolName
    description: str | None = Field(None, max_length=100_000)
    parameters: WrittenSchema | None = None
    strict: bool | None = None

    def chat_tool(self) -> dict[str, Any]:
        """Return the same as a chat request says it."""
        return {"type": "function", "function": self.model_dump(exclude={"type"})}


class ChosenTool(Strict):
    """The one function that is to be called."""

    type: Literal["function"]
    name: ToolName


def _kind_of_choice(value: Any) -> str | None:
    if isinstance(value, str):
        return TEXT
    return OBJECT if isinstance(value, dict | ChosenTool) else None


Input = Annotated[
    Annotated[Text, Tag(TEXT)]
    | Annotated[list[InputItem], Field(min_length=1, max_length=4096, fail_fast=True), Tag(LIST)],
    one_of(text_or_list, "a text or a list of items"),
]
Choice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(TEXT)] | Annotated[ChosenTool, Tag(OBJECT)],
    one_of(_kind_of_choice, "none, auto, required, or an object that names a function"),
]


class ResponseRequest(Strict):
    """`POST /v1/responses`."""

    model: ModelName
    input: Input
    instructions: Text | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=10_000_000)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=1_000_000)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool = False
    stream_options: ResponseStreamOptions | None = None
    text: TextOptions | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    include: Annotated[list[Includable], Field(max_length=16, fail_fast=True)] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    reasoning: Reasoning | None = None
    truncation: Literal["disabled"] | None = None
    metadata: Metadata | None = None
    user: HarmlessText | None = None
    safety_identifier: HarmlessText | None = None
    service_tier: HarmlessText | None = None
    prompt_cache_key: HarmlessText | None = None
    prompt_cache_retention: HarmlessText | None = None
    prompt_cache_options: Metadata | None = None
    store: Annotated[bool, _refused(NOT_STORED, _is_no_true)] | None = None
    background: Annotated[bool, _refused(AT_ONCE, _is_no_true)] | None = None
    previous_response_id: Annotated[Any, _refused(STATE)] | None = None
    conversation: Annotated[Any, _refused(STATE)] | None = None
    prompt: Annotated[Any, _refused(NO_PROMPTS)] | None = None
    max_tool_calls: Annotated[Any, _refused(NO_BUILT_IN)] | None = None

    _chat: ChatRequest = PrivateAttr()

    @model_validator(mode="after")
    def _is_a_chat(self) -> "ResponseRequest":
        try:
            self._chat = ChatRequest.model_validate(self._as_chat())
        except ValidationError as error:
            first = errors_of(error)[0]
            where = str(first["loc"][0]) if first["loc"] else ""
            place = {"messages": "input: ", "": ""}.get(where, f"{where}: ")
            raise ValueError(place + said(first)) from None
        return self

    @property
    def chat(self) -> ChatRequest:
        """The chat request that asks for the same answer."""
        return self._chat

    @property
    def logprobs(self) -> bool:
        """Whether the logprobs of the text are asked for."""
        return LOGPROBS in (self.include or []) or bool(self.top_logprobs)

    def _as_chat(self) -> dict[str, Any]:
        messages = (
            [{"role": "user", "content": self.input}]
            if isinstance(self.input, str)
            else messages_of(self.input)
        )
        if self.instructions is not None:
            messages = [{"role": "system", "content": self.instructions}, *messages]
        form = self.text.format if self.text is not None else None
        choice: Any = self.tool_choice
        if isinstance(choice, ChosenTool):
            choice = {"type": "function", "function": {"name": choice.name}}
        same = ("model", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
        return {name: getattr(self, name) for name in (*same, "stream", "parallel_tool_calls")} | {
            "messages": messages,
            "max_completion_tokens": self.max_output_tokens,
            "response_format": form.response_format() if form is not None else None,
            "tools": [tool.chat_tool() for tool in self.tools or []] or None,
            "tool_choice": choice,
            "logprobs": self.logprobs,
            "top_logprobs": self.top_logprobs if self.logprobs else None,
            "reasoning_effort": self.reasoning.effort if self.reasoning is not None else None,
        }
