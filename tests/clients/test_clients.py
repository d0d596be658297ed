"""Each client asks as its users do. What it reads is what the server says to a plain request."""

import asyncio
import json
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel

USER: Any = [{"role": "user", "content": "say yes"}]


class Light(BaseModel):
    """What is to be done with a light."""

    area: Literal["hall", "attic"]
    state: Literal["on", "off"]


@pytest.fixture(scope="session")
def said(address: str) -> str:
    """Return what the server answers to a plain request."""
    body = {"model": "a", "messages": USER, "max_tokens": 8, "temperature": 0}
    found = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=300)
    return str(found.json()["choices"][0]["message"]["content"])


@pytest.fixture(scope="session")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{address}/v1", api_key="any", max_retries=0, _strict_response_validation=True
    )


# openai -----------------------------------------------------------------------------------------


def test_openai_chat_whole_and_streamed(client: openai.OpenAI, said: str) -> None:
    options: Any = {"model": "a", "messages": USER, "max_tokens": 8, "temperature": 0}
    assert client.chat.completions.create(**options).choices[0].message.content == said
    chunks = client.chat.completions.create(stream=True, **options)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == said


def test_openai_completions(client: openai.OpenAI) -> None:
    found = client.completions.create(model="a", prompt=["a", "b"], max_tokens=3, logprobs=2)
    assert [choice.index for choice in found.choices] == [0, 1]


def test_openai_responses_whole_and_streamed(client: openai.OpenAI, said: str) -> None:
    options: Any = {"model": "a", "input": "say yes", "max_output_tokens": 8, "temperature": 0}
    assert client.responses.create(**options).output_text == said
    with client.responses.stream(**options) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
    assert text == said


def test_openai_parses_a_chat_and_a_response(client: openai.OpenAI) -> None:
    found = client.chat.completions.parse(model="a", messages=USER, response_format=Light)
    assert isinstance(found.choices[0].message.parsed, Light)
    response = client.responses.parse(model="a", input="say yes", text_format=Light)
    assert isinstance(response.output_parsed, Light)


def test_openai_parses_a_call(client: openai.OpenAI) -> None:
    found = client.chat.completions.parse(
        model="a", messages=USER, tools=[openai.pydantic_function_tool(Light)],
        tool_choice="required",
    )  # fmt: skip
    calls = found.choices[0].message.tool_calls
    assert calls and isinstance(calls[0].function.parsed_arguments, Light)


def test_openai_lists_the_models(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {"tiny", "a", "gpt-4o-mini"}
    assert client.models.retrieve("a").object == "model"


# Clients of it ----------------------------------------------------------------------------------


def test_litellm(address: str, said: str) -> None:
    import litellm

    options: Any = {
        "model": "openai/a", "api_base": f"{address}/v1", "api_key": "any", "temperature": 0,
        "messages": USER, "max_tokens": 8,
    }  # fmt: skip
    assert litellm.completion(**options).choices[0].message.content == said
    parts = [
        one.choices[0].delta.content or "" for one in litellm.completion(stream=True, **options)
    ]
    assert "".join(parts) == said


def test_langchain(address: str, said: str) -> None:
    from langchain_openai import ChatOpenAI

    options: Any = {"model": "a", "base_url": f"{address}/v1", "api_key": "any", "temperature": 0}
    assert ChatOpenAI(max_tokens=8, **options).invoke("say yes").content == said
    assert "".join(c.content for c in ChatOpenAI(max_tokens=8, **options).stream("say yes")) == said
    by_responses = ChatOpenAI(max_tokens=8, use_responses_api=True, **options).invoke("say yes")
    assert by_responses.text == said
    for method in ("json_schema", "function_calling"):
        structured = ChatOpenAI(**options).with_structured_output(Light, method=method)
        assert isinstance(structured.invoke("say yes"), Light)


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_instructor(address: str, mode: str) -> None:
    import instructor

    plain = openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)
    made = instructor.from_openai(plain, mode=instructor.Mode[mode])
    found = made.create(model="a", messages=USER, response_model=Light, max_retries=0)
    assert isinstance(found, Light)


@pytest.mark.parametrize("kind", ["OpenAIChatModel", "OpenAIResponsesModel"])
def test_pydantic_ai(address: str, kind: str) -> None:
    from pydantic_ai import Agent, NativeOutput
    from pydantic_ai.models import openai as models
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=f"{address}/v1", api_key="any")
    model = getattr(models, kind)("a", provider=provider)
    for output in (Light, NativeOutput(Light)):
        found = Agent(model, output_type=output, retries=0).run_sync("say yes")
        assert isinstance(found.output, Light)


@pytest.mark.parametrize("kind", ["OpenAIChatCompletionsModel", "OpenAIResponsesModel"])
def test_openai_agents(address: str, kind: str) -> None:
    import agents

    agents.set_tracing_disabled(True)
    called: list[str] = []

    @agents.function_tool
    def switch(area: Literal["hall"]) -> str:
        """Switch a light on."""
        called.append(area)
        return "done"

    made = openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)
    settings = agents.ModelSettings(tool_choice="required", temperature=0)
    agent = agents.Agent(
        name="home", instructions="be short", tools=[switch], model_settings=settings,
        model=getattr(agents, kind)("a", made), tool_use_behavior="run_llm_again",
    )  # fmt: skip
    found = asyncio.run(agents.Runner.run(agent, "say yes", max_turns=3))
    assert called == ["hall"] and isinstance(found.final_output, str)


def test_llama_index(address: str, said: str) -> None:
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai import OpenAI

    model = OpenAI(
        model="gpt-4o-mini", api_base=f"{address}/v1", api_key="any", temperature=0, max_tokens=8
    )
    assert model.chat([ChatMessage(role="user", content="say yes")]).message.content == said
    assert "".join(part.delta or "" for part in model.stream_complete("say yes")) == said


def test_dspy(address: str, said: str) -> None:
    import dspy

    model = dspy.LM(
        "openai/a", api_base=f"{address}/v1", api_key="any", temperature=0, max_tokens=8,
        cache=False,
    )  # fmt: skip
    assert [one["text"] if isinstance(one, dict) else one for one in model("say yes")] == [said]


def test_outlines(address: str) -> None:
    import outlines

    plain = openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)
    model = outlines.from_openai(plain, "a")
    assert isinstance(Light.model_validate_json(model("say yes", Light)), Light)


# What other programs send -----------------------------------------------------------------------


def test_aiders_requests(client: openai.OpenAI) -> None:
    turns: Any = [
        {"role": "system", "content": "Act as an expert software developer."},
        *[{"role": role, "content": "x = 1"} for role in ("user", "assistant") * 2],
        {"role": "user", "content": "I want you to change x.\n\nx = 1"},
        {"role": "system", "content": "Return edits in blocks."},
    ]
    stream = client.chat.completions.create(
        model="a", messages=turns, temperature=0, stream=True, max_tokens=8
    )
    assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"


def test_open_webuis_requests(address: str) -> None:
    with httpx.Client(base_url=f"{address}/v1", timeout=300) as web:
        assert "a" in [model["id"] for model in web.get("/models").json()["data"]]
        body: Any = {
            "stream": True, "model": "a", "messages": USER, "max_tokens": 8,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        lines = web.post("/chat/completions", json=body).text.split("\n\n")
        assert lines[-2] == "data: [DONE]" and json.loads(lines[-3][6:])["usage"]
        title = {"model": "a", "messages": USER, "stream": False, "max_completion_tokens": 8}
        assert web.post("/chat/completions", json=title).status_code == 200
