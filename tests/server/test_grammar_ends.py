"""An answer that is held to a grammar ends where its own request ends: by its template's end token,
not by the tokenizer's or the bare model's.
"""

from pathlib import Path
from typing import Any

import httpx
import pytest
import tiny_models
from serving import config, running, tiny_prompt
from tiny_tokenizer import CHATML, tiny_tokenizer
from tool_templates import HERMES

from foreword import Backbone
from foreword.prompt.store import Store
from foreword.server.server import Server
from foreword.server.structured_output import Grammars

INTEGER = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}}
TURNS = [{"role": "user", "content": "say"}]
STRICT_TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "strict": True,
        "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
    },
}


def base_of(eos: str, template: str = CHATML) -> Backbone:
    tokenizer = tiny_tokenizer(eos=eos, chat_template=template)
    model = tiny_models.build(
        "llama", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id
    )
    return Backbone(model, tokenizer, name="tiny")


def ask(server: Server, end: str, tokenizer: Any, **body: Any) -> dict[str, Any]:
    """Return the one choice of a model that would end after any token, and begins with 1 to 9."""
    bias = {str(tokenizer.convert_tokens_to_ids(end)): 100}
    bias |= {str(one): -100 for one in tokenizer.convert_tokens_to_ids(["0", "-"])}
    with running(server) as address:
        found = httpx.post(
            f"{address}/v1/chat/completions",
            json={
                "messages": TURNS,
                "temperature": 0,
                "max_tokens": 12,
                "logit_bias": bias,
                **body,
            },
            timeout=60,
        )
    assert found.status_code == 200, found.text
    choice: dict[str, Any] = found.json()["choices"][0]
    return choice


def test_an_answer_in_json_ends_by_the_templates_own_end_token() -> None:
    base = base_of("<|bos|>")  # the template writes <|im_end|>
    found = ask(
        Server(base, None, config()),
        "<|im_end|>",
        base.tokenizer,
        model="tiny",
        response_format=INTEGER,
    )
    assert found["finish_reason"] == "stop" and len(found["message"]["content"]) == 1


def test_an_answer_in_json_ends_by_the_end_token_of_a_prompts_own_template(tmp_path: Path) -> None:
    base, store = base_of("<|im_end|>"), Store(tmp_path / "store")
    prompt = tiny_prompt(base)
    other = CHATML.replace("<|im_end|>", "<|bos|>")
    prompt.facts["encoding"] = {"chat_template": other, "is_text": False}
    prompt.save(tmp_path / "own")
    store.add("own", tmp_path / "own")
    found = ask(
        Server(base, store, config()),
        "<|bos|>",
        base.tokenizer,
        model="own",
        response_format=INTEGER,
    )
    assert found["finish_reason"] == "stop" and len(found["message"]["content"]) == 1


def test_an_answer_held_to_strict_tools_ends_by_the_templates_own_end_token() -> None:
    base = base_of("<|bos|>", HERMES)
    found = ask(
        Server(base, None, config(max_length=250)),
        "<|im_end|>",
        base.tokenizer,
        model="tiny",
        tools=[STRICT_TOOL],
    )
    assert found["finish_reason"] == "stop" and found["message"]["content"] == ""


def test_an_answer_in_json_ends_at_stop_ids_of_its_request() -> None:
    base = base_of("<|im_end|>")
    stop = base.tokenizer.convert_tokens_to_ids("x")
    found = ask(
        Server(base, None, config()),
        "x",
        base.tokenizer,
        model="tiny",
        response_format=INTEGER,
        stop_token_ids=[stop],
        ignore_eos=True,
    )
    assert found["finish_reason"] == "stop" and len(found["message"]["content"]) == 1


@pytest.mark.parametrize("ends", [[0], [2], [0, 1]])
def test_one_grammar_ends_for_each_answer_at_its_own_ids(ends: list[int]) -> None:
    tokenizer = tiny_tokenizer()
    read = Grammars(tokenizer, tokenizer.eos_token_id).constraint({"type": "integer"})
    one = read.copy(ends)
    assert not one.allowed()[[0, 1, 2]].any(), "no answer yet"
    assert not one.accept(tokenizer.convert_tokens_to_ids("7"))
    allowed = one.allowed()
    assert [id for id in (0, 1, 2) if allowed[id]] == ends and allowed.sum() > len(ends)
    assert one.accept(ends[0])
