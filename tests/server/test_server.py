"""The server, by the official client: names pick prompts, answers are the oracle's."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import oracle
import pytest
import serving
import torch
from serving import CURVE, config, expected, fill, running, tiny_backbone

from foreword import Backbone, EncodingConfig, Example
from foreword.data.encoding import decode, encode
from foreword.prompt.history import thinned
from foreword.prompt.store import Store
from foreword.server.server import Server

TURNS: Any = [{"role": "user", "content": "say yes"}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


class World:
    """A backbone, its prompts by name, a store, a running server and clients for it."""

    def __init__(self, directory: Path) -> None:
        self.backbone: Backbone = tiny_backbone()
        self.store = Store(directory / "store")
        self.prompts: dict[str, Any] = {"tiny": None}
        self.prompts |= fill(self.store, self.backbone, directory)
        self.store.alias("other", "a")
        self.server = Server(
            self.backbone, self.store, config(runtime_loading=True), admin_key="root"
        )

    def connect(self, address: str) -> None:
        self.http = httpx.Client(base_url=address, timeout=60)
        self.client = openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)

    def answer(self, model: str, text: Any, num_new: int = 12) -> str:
        return expected(self.backbone, self.prompts[model], text, num_new)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"))
    with running(made.server) as address:
        made.connect(address)
        with made.http, made.client:
            yield made


@pytest.mark.parametrize("model", ["tiny", "a", "b"])
def test_a_name_picks_a_prompt_and_the_answer_is_the_oracles(world: World, model: str) -> None:
    chat = world.client.chat.completions.create(model=model, messages=TURNS, **GREEDY)
    assert chat.choices[0].message.content == world.answer(model, TURNS)
    assert chat.model == model and chat.usage is not None
    plain = world.client.completions.create(model=model, prompt="say yes", **GREEDY)
    assert plain.choices[0].text == world.answer(model, "say yes")


def test_answers_differ_by_prompt(world: World) -> None:
    assert len({world.answer(model, TURNS) for model in ("tiny", "a", "b")}) == 3


def test_a_version_and_an_alias_pick_a_prompt(world: World) -> None:
    version = world.store.resolve("b").version
    for name, model in ((f"b@{version}", "b"), (f"b@{version[:8]}", "b"), ("other", "a")):
        chat = world.client.chat.completions.create(model=name, messages=TURNS, **GREEDY)
        assert chat.choices[0].message.content == world.answer(model, TURNS)


def test_a_stream_says_the_same_and_its_usage(world: World) -> None:
    stream = world.client.chat.completions.create(
        model="a", messages=TURNS, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == world.answer("a", TURNS)
    assert chunks[0].choices[0].delta.role == "assistant"
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] in ("length", "stop") and not any(reasons[:-1])
    usage = chunks[-1].usage
    assert usage is not None and usage.completion_tokens <= 12
    assert usage.prompt_tokens_details.virtual_tokens == 3  # type: ignore[union-attr]
    plain = world.client.completions.create(model="b", prompt="hi", stream=True, **GREEDY)
    assert "".join(chunk.choices[0].text for chunk in plain) == world.answer("b", "hi")


def test_a_conversations_next_turn_is_cached(world: World) -> None:
    first = world.client.completions.create(model="a", prompt="one two three", **GREEDY)
    longer = "one two three" + first.choices[0].text + " four"
    second = world.client.completions.create(model="a", prompt=longer, **GREEDY)
    details = second.usage.prompt_tokens_details  # type: ignore[union-attr]
    assert details is not None and (details.cached_tokens or 0) >= len("one two three")
    assert second.choices[0].text == world.answer("a", longer)


def test_several_answers_are_drawn_each_by_its_own_seed(world: World) -> None:
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 1.0, "seed": 3, "n": 3}
    first, again = (
        world.client.completions.create(model="a", prompt="hi", **options) for _ in range(2)
    )
    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in again.choices] and len(set(texts)) > 1
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert first.usage is not None and first.usage.prompt_tokens == 2


def test_several_answers_read_their_prompt_once(world: World) -> None:
    engine = world.server.worker.engine
    before = engine.num_prompt_tokens - engine.num_reused_tokens
    found = world.client.completions.create(model="b", prompt="one red two", n=4, **GREEDY)
    assert engine.num_prompt_tokens - engine.num_reused_tokens - before <= len("one red two")
    assert [choice.text for choice in found.choices] == [world.answer("b", "one red two")] * 4


def test_a_list_of_prompts_gives_an_answer_to_each(world: World) -> None:
    both = world.client.completions.create(model="b", prompt=["hi", "say yes"], **GREEDY)
    found = [choice.text for choice in both.choices]
    assert found == [world.answer("b", "hi"), world.answer("b", "say yes")]
    ids = serving.TOKENIZER("hi")["input_ids"]
    by_ids = world.client.completions.create(model="b", prompt=[ids, ids], **GREEDY)
    assert [choice.text for choice in by_ids.choices] == [found[0]] * 2
    assert by_ids.usage is not None and by_ids.usage.prompt_tokens == 2 * len(ids)


def test_a_stop_string_ends_the_answer_before_it(world: World) -> None:
    whole = world.answer("a", "say yes")
    stop = whole[4:6]
    for stream in (False, True):
        found = world.client.completions.create(
            model="a", prompt="say yes", stop=[stop, "never"], stream=stream, **GREEDY
        )
        pieces: Any = found if stream else [found]
        choices = [piece.choices[0] for piece in pieces]
        assert "".join(choice.text for choice in choices) == whole[: whole.index(stop)]
        assert choices[-1].finish_reason == "stop"


def test_what_follows_a_stop_string_is_not_computed(world: World) -> None:
    before = world.server.worker.engine.num_new_tokens
    stop = world.answer("a", "say yes")[4:6]
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 240, "stop": stop}
    world.client.completions.create(
        model="a", prompt="say yes", extra_body={"ignore_eos": True}, **options
    )
    world.client.completions.create(model="a", prompt="hi", **GREEDY)  # waits for the row
    assert world.server.worker.engine.num_new_tokens - before < 200


def test_the_id_that_ends_an_answer_is_counted_but_no_text(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = torch.tensor(serving.TOKENIZER("say yes")["input_ids"])
    row = oracle.greedy(world.backbone.model, world.prompts["a"], given, 4)
    monkeypatch.setattr("foreword.chat.end_tokens", lambda *_: row[3:])
    found = world.client.completions.create(model="a", prompt="say yes", **GREEDY)
    length = row.index(row[3])
    assert found.choices[0].text == decode(row[:length], serving.TOKENIZER)
    assert found.usage.completion_tokens == length + 1  # type: ignore[union-attr]
    assert found.choices[0].finish_reason == "stop"


def test_logprobs_and_echo(world: World) -> None:
    found = world.client.completions.create(
        model="a", prompt="hi", echo=True, logprobs=2, temperature=0, max_tokens=3
    )
    choice = found.choices[0]
    assert choice.text == "hi" + world.answer("a", "hi", 3) and choice.logprobs is not None
    values = choice.logprobs.token_logprobs
    assert values is not None and values[0] is None and len(values) == 5
    for value, top in zip(values[2:], (choice.logprobs.top_logprobs or [])[2:], strict=True):
        assert value == pytest.approx(max(top.values()))
    only_read = world.client.completions.create(
        model="a", prompt="hi", echo=True, logprobs=0, max_tokens=0
    )
    assert only_read.choices[0].text == "hi"
    assert only_read.choices[0].logprobs.token_logprobs == pytest.approx(values[:2])  # type: ignore[union-attr]


def test_chat_logprobs(world: World) -> None:
    found = world.client.chat.completions.create(
        model="a", messages=TURNS, logprobs=True, top_logprobs=2, **GREEDY
    )
    content = found.choices[0].logprobs.content  # type: ignore[union-attr]
    assert content is not None and len(content) == found.usage.completion_tokens  # type: ignore[union-attr]
    assert all(len(token.top_logprobs) == 2 for token in content)
    assert content[0].logprob == pytest.approx(content[0].top_logprobs[0].logprob)


SCHEMA = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}, "room": {"enum": ["hall", "bath"]}},
    "required": ["on", "room"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("schema", [SCHEMA, {**SCHEMA, "additionalProperties": None}])
def test_an_answer_follows_a_json_schema(world: World, schema: dict[str, Any]) -> None:
    schema = {key: value for key, value in schema.items() if value is not None}
    form: Any = {"type": "json_schema", "json_schema": {"name": "call", "schema": schema}}
    for temperature in (0, 1, 1, 1, 1):
        found = world.client.chat.completions.create(
            model="a", messages=TURNS, response_format=form, temperature=temperature, max_tokens=100
        )
        assert found.choices[0].finish_reason == "stop"
        call = json.loads(found.choices[0].message.content or "")
        assert isinstance(call["on"], bool) and call["room"] in ("hall", "bath")


MANY = {f"k{number}": {"type": "string"} for number in range(900)}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string", "pattern": "^(?=a)"}, "look-around"),
        ({"type": "object", "properties": MANY}, "cannot be followed .*max is 2000"),
        ({"$ref": "#"}, r"cannot be followed \(NoExtensionBias\)"),
    ],
)
def test_a_schema_that_cannot_be_followed_says_why(
    world: World, schema: dict[str, Any], expected: str
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match=expected) as raised:
        world.client.chat.completions.create(model="a", messages=TURNS, response_format=form)  # type: ignore[call-overload]
    assert "\n" not in raised.value.body["message"]  # type: ignore[index]


def test_models_are_listed_with_their_base(world: World) -> None:
    cards = {card.id: card for card in world.client.models.list()}
    assert {"tiny", "a", "b", "other"} <= set(cards)
    assert cards["tiny"].parent is None and cards["a"].parent == "tiny"  # type: ignore[attr-defined]
    assert cards["a"].root == str(world.store.resolve("a"))  # type: ignore[attr-defined]
    assert world.client.models.retrieve("a").soft_prompt["virtual_tokens"] == 3  # type: ignore[attr-defined]


def test_a_prompts_training_is_outlined_in_the_list_and_told_alone(world: World) -> None:
    listed = {card["id"]: card for card in world.http.get("/v1/models").json()["data"]}
    alone = world.http.get("/v1/models/a").json()["soft_prompt"]["history"]
    assert alone == CURVE.facts() and len(alone["loss"]) == 100
    assert listed["a"]["soft_prompt"]["history"] == thinned(alone, 60)
    assert listed["b"]["soft_prompt"]["history"] is None


def test_tokenize_counts_virtual_tokens_apart(world: World) -> None:
    found = world.http.post("/tokenize", json={"model": "a", "prompt": "hi"}).json()
    assert found["tokens"] == serving.TOKENIZER("hi")["input_ids"]
    assert found["count"] == 2 and found["virtual_tokens"] == 3


def test_version_health_and_readiness(world: World) -> None:
    assert world.http.get("/version").json()["version"]
    assert world.http.get("/health").status_code == world.http.get("/ready").status_code == 200


def test_metrics_name_served_prompts_only(world: World) -> None:
    world.client.completions.create(model="a", prompt="hi", **GREEDY)
    world.http.post("/v1/completions", json={"model": "made-up-name", "prompt": "hi"})
    text = world.http.get("/metrics").text
    assert 'foreword:generation_tokens_total{model_name="tiny",soft_prompt="a"}' in text
    assert 'foreword:time_to_first_token_seconds_count{model_name="tiny",soft_prompt="a"}' in text
    assert "foreword:num_requests_running" in text and "made-up-name" not in text


# What is refused --------------------------------------------------------------------------------

COMPLETION: dict[str, Any] = {"model": "a", "prompt": "hi"}


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"model": "nobody"}, 404, "does not exist"),
        ({"model": "../../etc/passwd"}, 404, "does not exist"),
        ({"model": "a@ffffffff"}, 404, "no version"),
        ({"model": "a@../.."}, 400, "not a version"),
        ({"prompt": ""}, 400, "at least one id"),
        ({"prompt": [100000]}, 400, "from 0 to"),
        ({"prompt": [True, "x"]}, 400, "prompt"),
        ({"max_tokens": 100000}, 400, "at most 256 are served"),
        ({"n": 17}, 400, "at most 16 answers"),
        ({"temperature": -1}, 400, "temperature"),
        ({"logprobs": 21}, 400, "logprobs"),
        ({"stop": ["x"] * 9}, 400, "stop"),
        ({"logit_bias": {"x": 1}}, 400, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, 400, "logit_bias"),
        ({"suffix": "x"}, 400, "suffix"),
        ({"best_of": 4}, 400, "best_of"),
        ({"prompt_embeds": "AAAA"}, 400, "prompt_embeds"),
        ({"seed": 2**70}, 400, "seed"),
        ({"response_format": {"type": "json_schema"}}, 400, "json_schema"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "nonsense"}},
                }
            },
            400,
            "response_format",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_with_a_reason(
    world: World, changes: dict[str, Any], status: int, reason: str
) -> None:
    found = world.http.post("/v1/completions", json=COMPLETION | changes)
    assert found.status_code == status, found.text
    error = found.json()["error"]
    assert reason in error["message"] and error["code"] == status


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "image_url",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "needs text"),
        ({"tools": [{"type": "retrieval"}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "template shows no calls"),
        ({"top_logprobs": 3}, "logprobs"),
    ],
)
def test_a_chat_that_cannot_be_served_is_refused(
    world: World, changes: dict[str, Any], reason: str
) -> None:
    found = world.http.post(
        "/v1/chat/completions", json={"model": "a", "messages": TURNS} | changes
    )
    assert found.status_code == 400 and reason in found.json()["error"]["message"]


def test_the_official_client_raises_its_own_errors(world: World) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        world.client.completions.create(model="nobody", prompt="hi")
    with pytest.raises(openai.BadRequestError, match="at most"):
        world.client.completions.create(model="a", prompt="hi", max_tokens=10**6)


SURROGATE = b'{"model": "a", "prompt": "\\ud800"}'


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b"NaN", b'"x"', SURROGATE])
def test_a_body_that_is_no_json_is_refused(world: World, body: bytes) -> None:
    kind = {"content-type": "application/json"}
    assert world.http.post("/v1/completions", content=body, headers=kind).status_code == 400


@pytest.mark.parametrize("depth", [100, 900, 5000])
def test_a_schema_that_is_nested_too_deeply_is_refused(world: World, depth: int) -> None:
    schema = '{"not":' * depth + "{}" + "}" * depth
    form = '{"type":"json_schema","json_schema":{"name":"x","schema":' + schema + "}}"
    body = '{"model":"a","prompt":"hi","response_format":' + form + "}"
    kind = {"content-type": "application/json"}
    assert world.http.post("/v1/completions", content=body, headers=kind).status_code == 400


def test_a_body_of_another_kind_is_refused(world: World) -> None:
    """A web page elsewhere can send plain text without asking."""
    kind = {"content-type": "text/plain"}
    found = world.http.post("/v1/completions", content=json.dumps(COMPLETION), headers=kind)
    assert found.status_code == 415
    assert world.http.post("/v1/completions", content=b"{}").status_code == 415


def test_unknown_routes_and_methods(world: World) -> None:
    assert world.http.get("/v1/nothing").status_code == 404
    assert world.http.delete("/v1/models").status_code == 405
    assert world.http.get("/v1/models/nobody").json()["error"]["code"] == 404


def test_ids_and_text_go_both_ways(world: World) -> None:
    ids = world.http.post("/tokenize", json={"model": "a", "messages": TURNS}).json()["tokens"]
    found = world.http.post("/detokenize", json={"model": "a", "tokens": ids})
    assert found.json() == {"prompt": serving.TOKENIZER.decode(ids)}
    beyond = world.http.post("/detokenize", json={"model": "a", "tokens": [10_000]})
    assert beyond.status_code == 400 and "10000 is no id" in beyond.json()["error"]["message"]


def test_a_stop_id_ends_the_answer_even_where_the_end_is_ignored(world: World) -> None:
    given = torch.tensor(serving.TOKENIZER("say yes")["input_ids"])
    row = oracle.greedy(world.backbone.model, world.prompts["a"], given, 6)
    found = world.client.completions.create(
        model="a",
        prompt="say yes",
        extra_body={"stop_token_ids": [row[4]], "ignore_eos": True},
        **GREEDY,
    )
    assert found.choices[0].text == decode(row[: row.index(row[4])], serving.TOKENIZER)
    assert found.choices[0].finish_reason == "stop"


def test_a_begun_answer_goes_on_as_it_was_trained_to(world: World) -> None:
    begun = [*TURNS, {"role": "assistant", "content": "Well"}]
    row = encode(Example(tuple(TURNS), "Well"), serving.TOKENIZER, EncodingConfig(), 999)
    ids = torch.tensor(row.input_ids[:-1])  # all but what closes the answer
    expected = oracle.greedy(world.backbone.model, world.prompts["a"], ids, 8)
    for more in ({}, {"add_generation_prompt": False}):
        found = world.client.chat.completions.create(
            model="a",
            messages=begun,  # type: ignore[arg-type]
            extra_body={"continue_final_message": True, "ignore_eos": True, **more},
            temperature=0,
            max_tokens=8,
        )
        assert found.choices[0].message.content == decode(expected, serving.TOKENIZER)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"messages": TURNS, "continue_final_message": True}, "a last message of the assistant"),
        ({"messages": TURNS, "add_generation_prompt": False}, "add_generation_prompt is true"),
        (
            {
                "messages": [*TURNS, {"role": "assistant", "content": '{"a": '}],
                "continue_final_message": True,
                "response_format": {"type": "json_object"},
            },
            "response_format: an answer that goes on",
        ),
    ],
)
def test_an_answer_that_has_not_begun_or_has_a_form_cannot_go_on(
    world: World, fields: dict[str, Any], reason: str
) -> None:
    found = world.http.post("/v1/chat/completions", json={"model": "a", **fields})
    assert found.status_code == 400 and reason in found.json()["error"]["message"]


def test_each_text_of_a_list_ends_as_it_does_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = {"hi": [], "say yes": oracle_ids(world, "say yes")[2:3]}
    monkeypatch.setattr("foreword.chat.end_tokens", lambda _, text, __: ends[text])
    both = world.client.completions.create(model="b", prompt=["hi", "say yes"], **GREEDY)
    alone = [
        world.client.completions.create(model="b", prompt=text, **GREEDY).choices[0].text
        for text in ends
    ]
    assert [choice.text for choice in both.choices] == alone


def oracle_ids(world: World, text: str) -> list[int]:
    given = torch.tensor(serving.TOKENIZER(text)["input_ids"])
    return oracle.greedy(world.backbone.model, world.prompts["b"], given, 12)
