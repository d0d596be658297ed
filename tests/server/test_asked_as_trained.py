"""Routes: a prompt is asked a user's message the way it was trained, wherever it is asked."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import oracle
import pytest
import serving
import torch

from foreword import (
    Backbone,
    EncodingConfig,
    Example,
    SoftPrompt,
    TrainConfig,
    answer,
    chat,
    stream,
    train,
)
from foreword.cli.chat import Session
from foreword.config import SamplingConfig
from foreword.data.encoding import decode
from foreword.errors import DataError
from foreword.evaluation import Subject, evaluate
from foreword.evaluation.metrics import METRICS
from foreword.prompt.store import Store
from foreword.server.catalog import Catalog
from foreword.server.server import Server
from foreword.training.rows import encode_rows
from foreword.vllm_plugin import signing
from foreword.vllm_plugin.frontend import Frontend, Limits
from foreword.vllm_plugin.store_watcher import Watch

TEXT, NUM_NEW = "say a", 5
PAIRS = [{"prompt": f"say {letter}", "completion": letter} for letter in "abcd"]
TURNS = [
    {"messages": [{"role": "user", "content": row["prompt"]},
                  {"role": "assistant", "content": row["completion"]}]}
    for row in PAIRS
]  # fmt: skip
TURN = f"<|im_start|>user\n{TEXT}<|im_end|>\n<|im_start|>assistant\n"
FILLED = [row | {"prompt": TURN.replace(TEXT, row["prompt"])} for row in PAIRS]
KINDS: dict[str, tuple[Any, EncodingConfig, str]] = {
    "pairs": (PAIRS, EncodingConfig(), TURN),
    "turns": (TURNS, EncodingConfig(), TURN),
    "filled": (FILLED, EncodingConfig(), TURN),
    "plain": (PAIRS, EncodingConfig(plain=True), TEXT),
    "template": (PAIRS, EncodingConfig(row_template="Q: {prompt}\nA:"), f"Q: {TEXT}\nA:"),
}


class World:
    def __init__(self, folder: Path) -> None:
        self.backbone = serving.tiny_backbone()
        self.store, self.prompts = Store(folder / "store"), dict[str, SoftPrompt]()
        for name, (rows, encoding, _) in KINDS.items():
            config = TrainConfig(form="embeddings", num_virtual_tokens=3, num_steps=1)
            *_, last = train(self.backbone, rows, config, encoding_config=encoding)
            assert last.prompt is not None
            self.prompts[name] = last.prompt
            last.prompt.save(folder / name)
            self.store.add(name, folder / name)
        self.server = Server(self.backbone, self.store, serving.config())

    def ids(self, name: str) -> list[int]:
        """What the rows of a prompt's training begin with, written by hand."""
        found: list[int] = serving.TOKENIZER(KINDS[name][2], add_special_tokens=False).input_ids
        return found

    def answer(self, name: str) -> str:
        ids = torch.tensor(self.ids(name))
        row = oracle.greedy(self.backbone.model, self.prompts[name], ids, NUM_NEW)
        ends = [place for place, one in enumerate(row) if one == serving.END]
        return decode(row[: ends[0]] if ends else row, serving.TOKENIZER)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def http(world: World) -> Iterator[httpx.Client]:
    with serving.running(world.server) as address, httpx.Client(base_url=address) as client:
        yield client


@pytest.mark.parametrize("name", KINDS)
def test_rows_of_training_begin_with_these_ids(name: str, world: World) -> None:
    rows, encoding, _ = KINDS[name]
    (row, *_), _ = encode_rows(world.backbone, rows, TrainConfig(num_virtual_tokens=3), encoding)
    assert list(row.input_ids[: -row.num_labels]) == world.ids(name)


@pytest.mark.parametrize("name", KINDS)
def test_the_server_asks_as_training_did(name: str, world: World, http: httpx.Client) -> None:
    messages, asked = [{"role": "user", "content": TEXT}], {"model": name, "max_tokens": NUM_NEW}
    for body in ({"prompt": TEXT}, {"messages": messages}):
        found = http.post("/tokenize", json={"model": name, **body}).json()["tokens"]
        assert found == world.ids(name), body
    greedy = {**asked, "temperature": 0}
    said = http.post("/v1/chat/completions", json={**greedy, "messages": messages}).json()
    assert said["choices"][0]["message"]["content"] == world.answer(name)
    said = http.post("/v1/completions", json={**greedy, "prompt": TEXT}).json()
    assert said["choices"][0]["text"] == world.answer(name)


@pytest.mark.parametrize("name", KINDS)
def test_the_server_classifies_what_is_asked_so(
    name: str, world: World, http: httpx.Client
) -> None:
    before = len(world.ids(name))
    for body in ({"prompt": TEXT}, {"messages": [{"role": "user", "content": TEXT}]}):
        asked = {"model": name, "choices": ["a", "b"], **body}
        found = http.post("/v1/classify", json=asked).json()
        subject, example = Subject(name, world.prompts[name]), Example(TEXT, "a")
        measured = evaluate(
            world.backbone, subject, [example], [METRICS["exact"]], choices=("a", "b")
        )
        assert found["label"] == measured.outcomes[0].answer, body
        assert found["confidence"] == pytest.approx(measured.outcomes[0].confidence, abs=1e-6)
        assert found["usage"]["prompt_tokens"] > before + 2  # two choices, each with its end


@pytest.mark.parametrize("name", KINDS)
def test_vllm_is_given_the_same_ids(
    name: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(signing.VARIABLE, "s")
    watch = Watch(Catalog(world.backbone, world.store, "tiny"), world.store)
    watch.look()
    front = Frontend(watch.catalog, watch, serving.TOKENIZER, Limits(128, serving.VOCAB))
    fields = {"model": name, "max_tokens": 4, "max_completion_tokens": None, "cache_salt": None}
    fields |= {"repetition_penalty": None, "add_special_tokens": True, "tools": None}
    for body, is_chat in (
        ({"prompt": TEXT, "echo": False, "use_beam_search": False}, False),
        ({"messages": [{"role": "user", "content": TEXT}]}, True),
    ):
        config = front.catalog.find(name).encoding
        rows, *_ = front._encoded(SimpleNamespace(**fields | body), config, is_chat, 100)
        assert rows == [world.ids(name)]


@pytest.mark.parametrize("name", KINDS)
def test_python_and_the_command_line_ask_as_training_did(
    name: str, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone, prompt, expected = world.backbone, world.prompts[name], world.answer(name)
    assert answer(backbone, prompt, TEXT, max_new_tokens=NUM_NEW) == expected
    messages = [{"role": "user", "content": TEXT}]
    assert answer(backbone, prompt, messages, max_new_tokens=NUM_NEW) == expected
    assert "".join(stream(backbone, prompt, TEXT, max_new_tokens=NUM_NEW)) == expected
    Session(backbone, prompt, SamplingConfig(max_new_tokens=NUM_NEW)).answer(TEXT)
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("name", KINDS)
def test_pairs_and_conversations_are_measured_as_training_did(name: str, world: World) -> None:
    from foreword.data.columns import as_examples

    losses = []
    for rows in (PAIRS, TURNS):
        examples = [one for row in rows for one in as_examples(row)]
        found = evaluate(world.backbone, Subject("prompt", world.prompts[name]), examples)
        losses.append(found.scores["loss"].value)
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_several_turns_behind_rows_of_plain_text_are_refused(
    world: World, http: httpx.Client
) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": TEXT}]
    with pytest.raises(DataError, match="expected one user message for rows of plain text"):
        answer(world.backbone, world.prompts["plain"], turns)
    said = http.post("/v1/chat/completions", json={"model": "plain", "messages": turns})
    assert said.status_code == 400 and "found system, user" in said.text


def test_prompts_that_were_saved_before_are_asked_as_their_rows_were(world: World) -> None:
    old = world.prompts["plain"]
    encoding = {key: value for key, value in old.facts["encoding"].items() if key != "plain"}
    prompt = old.replaced(old.tensors, old.facts | {"encoding": encoding})
    config = chat.encoding_of(prompt)
    assert chat.encode(world.backbone, TEXT, config)[0] == world.ids("plain")
    bare = chat.encoding_of(SoftPrompt.from_embeddings(old.embeddings))
    assert chat.encode(world.backbone, TEXT, bare)[0] == world.ids("plain")
    asked = chat.encode(world.backbone, [{"role": "user", "content": TEXT}], bare)[0]
    assert asked == world.ids("turns")


def test_a_base_without_a_chat_template_reads_pairs_as_text() -> None:
    from tiny_tokenizer import tiny_tokenizer

    backbone = Backbone(serving.tiny_backbone().model, tiny_tokenizer(chat_template=None))
    (row, *_), _ = encode_rows(backbone, PAIRS, TrainConfig(num_virtual_tokens=3), EncodingConfig())
    assert row.is_text and decode(row.input_ids, backbone.tokenizer) == "say aa"
