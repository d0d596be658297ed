"""Classification over HTTP: probabilities beside evaluation, and what is refused."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from serving import config, fill, running, tiny_backbone, tiny_prompt

from foreword import Example, chat, text_prompt
from foreword.data.encoding import encode_examples
from foreword.evaluation.evaluation import Subject, evaluate
from foreword.evaluation.metrics import METRICS
from foreword.prompt.store import Store
from foreword.server.catalog import Catalog
from foreword.server.classification import rows_of
from foreword.server.server import Server

CHOICES = ["yes", "no", "blue or red"]
TURNS = [{"role": "user", "content": "say yes"}]


class Served:
    """Prompts by name, and a client of the server that has them."""

    def __init__(self, directory: Path) -> None:
        self.backbone, self.store = tiny_backbone(), Store(directory / "store")
        self.prompts: dict[str, Any] = {"tiny": None, **fill(self.store, self.backbone, directory)}
        for number, (name, is_text) in enumerate({"turns": False, "plain": True}.items()):
            self.prompts[name] = tiny_prompt(self.backbone, 7 + number)
            self.prompts[name].facts["encoding"] = {"is_text": is_text}
            self.prompts[name].save(directory / name)
            self.store.add(name, directory / name)
        self.prompts["named"] = text_prompt(self.backbone, "Say yes, or no.")
        self.prompts["named"].save(directory / "named")
        self.store.add("named", directory / "named")
        self.server = Server(self.backbone, self.store, config(max_choices=4))

    def classify(self, **body: Any) -> httpx.Response:
        return self.http.post("/v1/classify", json={"model": "a", "choices": CHOICES} | body)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(tmp_path_factory.mktemp("classified"))
    with running(made.server) as address:
        made.http = httpx.Client(base_url=address, timeout=60)
        with made.http:
            yield made


@pytest.mark.parametrize("model", ["tiny", "a", "b", "turns", "plain", "named"])
@pytest.mark.parametrize("asked", [{"messages": TURNS}, {"prompt": "say yes"}], ids=str)
def test_what_is_measured_is_what_is_served(
    served: Served, model: str, asked: dict[str, Any]
) -> None:
    given: Any = asked.get("prompt") or tuple(TURNS)
    subject = Subject("x", served.prompts[model])
    measured = evaluate(
        served.backbone, subject, [Example(given, "no")], [METRICS["exact"]], choices=CHOICES
    )
    if model in ("tiny", "a", "b"):  # nothing says how their rows were: they are asked in a turn
        asked = {"messages": TURNS}
    [outcome] = measured.outcomes
    found = served.classify(model=model, **asked).json()
    assert found["label"] == outcome.answer and found["model"] == model
    assert found["confidence"] == pytest.approx(outcome.confidence, abs=1e-6)  # float32 reports
    shares = {one["label"]: one["probability"] for one in found["probabilities"]}
    assert list(shares) == CHOICES and sum(shares.values()) == pytest.approx(1)
    assert max(shares.values()) == shares[found["label"]] == found["confidence"]
    assert found["usage"]["completion_tokens"] == 0


def test_a_question_is_read_once_for_all_answers(served: Served) -> None:
    engine = served.server.worker.engine
    long = [{"role": "user", "content": "tell me whether it is yes or no " * 5}]
    alone = {
        label: served.classify(messages=long, choices=[label, "x"]).json() for label in CHOICES
    }
    before = engine.num_prompt_tokens - engine.num_reused_tokens
    other = [{"role": "user", "content": "say at once whether it is yes or no " * 5}]
    served.classify(messages=other)
    num_read = engine.num_prompt_tokens - engine.num_reused_tokens - before
    rows = [
        len(chat.encode(served.backbone, other, chat.encoding_of(served.prompts["a"]))[0])
        for _ in CHOICES
    ]
    assert rows[0] > 40 and num_read < rows[0] + 40
    found = served.classify(messages=long).json()
    shares = {one["label"]: one["probability"] for one in found["probabilities"]}
    odds = {
        label: one["probabilities"][0]["probability"] / one["probabilities"][1]["probability"]
        for label, one in alone.items()
    }
    for label in CHOICES:
        assert shares[label] == pytest.approx(odds[label] / sum(odds.values()), rel=1e-4)


def finished(served: Served) -> dict[str, float]:
    """Return how many answers of prompt a ended, by why."""
    text = served.http.get("/metrics").text
    found = re.findall(r'request_success_total\{finished_reason="(\w+)".*prompt="a"\} (.+)', text)
    return {reason: float(number) for reason, number in found}


@pytest.mark.parametrize("is_cached", [True, False])
def test_usage_counts_the_question_once_and_metrics_one_answer(
    served: Served, is_cached: bool, caplog: pytest.LogCaptureFixture
) -> None:
    asked = [{"role": "user", "content": f"is it yes or no {is_cached} " * 5}]
    encoding = chat.encoding_of(served.prompts["a"])
    question = len(chat.encode(served.backbone, asked, encoding)[0])
    state: Any = SimpleNamespace(worker=served.server.worker)
    model = served.server.catalog.find("a")
    choices = sum(row.num_labels for row in rows_of(served.backbone, state, model, asked, CHOICES))
    if is_cached:
        served.classify(messages=asked)
    before = finished(served)
    with caplog.at_level("INFO", "foreword.access"):
        usage = served.classify(messages=asked).json()["usage"]
        deadline = time.monotonic() + 60
        while not caplog.records and time.monotonic() < deadline:  # it is written behind the answer
            time.sleep(0.002)
    assert usage["prompt_tokens"] == usage["total_tokens"] == question + choices
    details = usage["prompt_tokens_details"]
    assert details["virtual_tokens"] == model.source.num_virtual_tokens  # type: ignore[union-attr]
    assert details["cached_tokens"] <= question + choices
    assert (details["cached_tokens"] > question / 2) is is_cached
    after = finished(served)
    assert after == before | {"stop": before.get("stop", 0) + 1} and "length" not in after
    [line] = [json.loads(one.getMessage()) for one in caplog.records]
    assert line["prompt_tokens"] == usage["prompt_tokens"] and line["finish_reasons"] == ["stop"]


@pytest.mark.parametrize("is_text", [True, False])
def test_answers_stand_behind_a_space_where_those_of_training_did(
    is_text: bool, tmp_path: Path
) -> None:
    backbone, store = tiny_backbone(), Store(tmp_path / "store")
    prompt = tiny_prompt(backbone)
    prompt.facts["encoding"] = {"is_text": is_text, "is_spaced": True}  # a template may write one
    prompt.save(tmp_path / "p")
    store.add("p", tmp_path / "p")
    catalog = Catalog(backbone, store, "tiny")
    catalog.load("p")
    state: Any = SimpleNamespace(worker=SimpleNamespace(engine=SimpleNamespace(max_length=200)))
    rows = rows_of(backbone, state, catalog.find("p"), "say yes", ["yes", " no"])
    labels = [backbone.tokenizer.decode(row.input_ids[-row.num_labels :]) for row in rows]
    assert labels == [" yes<|im_end|>" if is_text else "yes<|im_end|>", " no<|im_end|>"]
    if is_text:  # as `eval --choices yes,no` measures it on rows of such answers
        asked = [Example("say yes", text) for text in (" yes", " no")]
        written, _ = encode_examples(asked, backbone.tokenizer, chat.encoding_of(prompt), 10**6)
        assert [row.input_ids for row in rows] == [row.input_ids for row in written]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 400, "give either prompt or messages"),
        ({"prompt": "x", "messages": TURNS}, 400, "give either prompt or messages"),
        ({"prompt": "x", "choices": ["a"]}, 400, "choices"),
        ({"prompt": "x", "choices": ["a", "a"]}, 400, "each answer once"),
        ({"prompt": "x", "choices": ["a", " "]}, 400, "choices"),
        ({"prompt": "x", "choices": [*"abcde"]}, 400, "at most 4 to one request, got 5"),
        ({"prompt": "x", "choices": ["a", "b" * 1001]}, 400, "choices"),
        ({"prompt": "x" * 9000}, 400, "tokens"),
        ({"prompt": "x", "model": "nobody"}, 404, "nobody"),
        ({"prompt": "x", "temperature": 1}, 400, "temperature"),
    ],
)
def test_what_cannot_be_classified_is_refused(
    served: Served, body: dict[str, Any], status: int, said: str
) -> None:
    found = served.classify(**body)
    assert found.status_code == status and said in found.json()["error"]["message"], found.text


@pytest.mark.parametrize("choices", [["no", "no<|im_end|>"], ["yes", "no", "no<|im_end|>"]])
def test_choices_that_become_the_same_tokens_are_refused(
    served: Served, choices: list[str]
) -> None:
    end = served.backbone.tokenizer.eos_token
    asked = [one.replace("<|im_end|>", end) for one in choices]
    found = served.classify(messages=TURNS, choices=asked)
    assert found.status_code == 400 and "become the same tokens" in found.json()["error"]["message"]


def test_a_classification_is_counted(served: Served) -> None:
    def counted() -> float:
        lines = served.http.get("/metrics").text.splitlines()
        [found] = [x for x in lines if x.startswith("foreword:prompt_tokens_total") and '"a"' in x]
        return float(found.split()[-1])

    served.classify(messages=TURNS)
    before = counted()
    used = served.classify(messages=TURNS).json()["usage"]["prompt_tokens"]
    assert counted() == before + used
