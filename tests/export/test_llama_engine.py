"""Serving over llama.cpp: every answer is the oracle's, whatever else is in the batch."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf_models
import httpx
import numpy as np
import oracle
import pytest
import serving
import tiny_models
import torch
from gguf import GGMLQuantizationType as Kind
from own_cache import cache as cache
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, SoftPrompt
from foreword.engine.engine import Engine
from foreword.engine.limits import EngineLimits
from foreword.engine.request import PromptSource, Request
from foreword.engine.sampling import Sampling
from foreword.engine_llama import launch
from foreword.engine_llama.engine import LlamaEngine
from foreword.engine_llama.words import context_options
from foreword.errors import InputError, ModelError, UnsupportedError
from foreword.llama_cpp.model import ContextOptions, LlamaContext
from foreword.prompt.store import Store
from foreword.server.server import Server

pytest.importorskip("xllamacpp")
TOKENIZER = tiny_tokenizer()
LIMITS = EngineLimits(max_rows=8, max_slots=1024, chunk_tokens=16)
NUM_NEW = 6


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    model = tiny_models.build(
        "llama", dtype=torch.float32, vocab_size=len(TOKENIZER), eos_token_id=2,
        intermediate_size=64,
    )  # fmt: skip
    return Backbone(model, TOKENIZER, name="tiny")


@pytest.fixture(scope="module")
def gguf(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    return gguf_models.write(folder / "tiny.gguf", backbone.model, TOKENIZER)


def make(gguf: Path, **changes: Any) -> LlamaEngine:
    limits = EngineLimits(**{**vars(LIMITS), **changes})
    return launch.launch(str(gguf), limits, ContextOptions(num_threads=1))[1]


@pytest.fixture
def engine(gguf: Path) -> Iterator[LlamaEngine]:
    made = make(gguf)
    yield made
    made.close()


def prompts(backbone: Backbone) -> list[SoftPrompt | None]:
    """Return no prompt, embeddings, and keys and values; of several P."""
    facts = {"base": backbone.identity()}
    embeddings = [
        SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, num, num), facts=facts)
        for num in (3, 40)
    ]
    states = backbone.compile(embeddings[0]).cached.map(lambda tensor: tensor * 1.1)
    return [None, *embeddings, SoftPrompt.from_states(states, facts=facts)]


def request(prompt: SoftPrompt | None, ids: list[int], **changes: Any) -> Request:
    source = PromptSource.of(prompt) if prompt is not None else None
    return Request(tuple(ids), source, **{"max_new_tokens": NUM_NEW} | changes)


def rows(num: int) -> list[list[int]]:
    return [tiny_models.ids(3 + 5 * index, index).tolist() for index in range(num)]


def greedy(backbone: Backbone, prompt: SoftPrompt | None, ids: list[int], num: int) -> list[int]:
    return oracle.greedy(backbone.model, prompt, torch.tensor(ids), num)


def test_mixed_prompts_answer_as_each_alone(backbone: Backbone, engine: LlamaEngine) -> None:
    pairs = list(itertools.product(prompts(backbone), rows(4)))
    handles = [engine.submit(request(prompt, ids)) for prompt, ids in pairs]
    engine.run()
    for handle, (prompt, ids) in zip(handles, pairs, strict=True):
        assert handle.finish_reason == "length"
        assert handle.ids == greedy(backbone, prompt, ids, NUM_NEW)
    assert engine.num_running == engine.num_waiting == 0


def test_every_setting_is_the_embedded_engines(backbone: Backbone, engine: LlamaEngine) -> None:
    prompt, ids = prompts(backbone)[1], rows(3)[2]
    embedded = Engine(backbone)
    settings = [
        Sampling(temperature=0.8, seed=3),
        Sampling(temperature=1.2, top_p=0.7, top_k=20, min_p=0.01, seed=4),
        Sampling(repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=0.5),
        Sampling(logit_bias={9: 100.0}),
        Sampling(num_logprobs=3),
    ]
    extra: list[dict[str, Any]] = [{} for _ in settings]
    extra[-1] = {"num_prompt_logprobs": 2}
    for sampling, more in zip(settings, extra, strict=True):
        asked = request(prompt, ids, sampling=sampling, **more)
        theirs, ours = embedded.submit(asked), engine.submit(asked)
        embedded.run()
        engine.run()
        assert ours.ids == theirs.ids
        for name in ("choices", "prompt_logprobs"):
            pairs = zip(getattr(ours, name), getattr(theirs, name), strict=True)
            for one, other in pairs:
                assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
                assert [i for i, _ in one.top] == [i for i, _ in other.top]


def test_stops_and_limits(backbone: Backbone, engine: LlamaEngine) -> None:
    ids = rows(2)[1]
    answer = greedy(backbone, None, ids, NUM_NEW)
    stopped = engine.submit(request(None, ids, stop_ids=frozenset(answer[2:3])))
    only_read = engine.submit(request(None, ids, max_new_tokens=0))
    engine.run()
    assert stopped.finish_reason == "stop" and stopped.ids == answer[: answer.index(answer[2]) + 1]
    assert only_read.finish_reason == "length" and only_read.ids == []
    for wrong, message in (
        (request(None, []), "empty"),
        (request(None, [len(TOKENIZER)]), "expected ids from 0 to"),
        (request(None, ids, max_new_tokens=300), "at most 256"),
    ):
        with pytest.raises(InputError, match=message):
            engine.submit(wrong)
    with pytest.raises(InputError, match="answers in one call"):
        engine.submit_all([request(None, ids)] * (LIMITS.max_waiting + 1))


def test_copies_of_a_call_read_once(backbone: Backbone, engine: LlamaEngine) -> None:
    prompt, ids = prompts(backbone)[2], rows(6)[5]
    handles = engine.submit_all([request(prompt, ids)] * 4)
    engine.run()
    answer = greedy(backbone, prompt, ids, NUM_NEW)
    assert [handle.ids for handle in handles] == [answer] * 4
    assert [handle.num_reused for handle in handles] == [0, *[len(ids)] * 3]


def test_a_next_turn_reuses_the_last(backbone: Backbone, gguf: Path) -> None:
    prompt, ids = prompts(backbone)[3], rows(5)[4]
    for kept, reused in ((1 << 20, len(ids) + NUM_NEW - 1), (0, 0)):
        engine = make(gguf, max_state_bytes=kept)
        first = engine.submit(request(prompt, ids))
        engine.run()
        turn = [*ids, *first.ids, 7, 8]
        second = engine.submit(request(prompt, turn))
        engine.run()
        assert second.num_reused == reused
        assert second.ids == greedy(backbone, prompt, turn, NUM_NEW)
        engine.close()


def test_many_prompts_share_a_small_cache(backbone: Backbone, gguf: Path) -> None:
    """More prompts than cells and bytes: the least recently used are read again."""
    engine = make(gguf, max_slots=256, max_state_bytes=30_000)
    facts = {"base": backbone.identity()}
    many = [
        SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, 20, seed), facts=facts)
        for seed in range(30)
    ]
    ids = rows(2)[1]
    for _ in range(2):
        handles = [engine.submit(request(prompt, ids)) for prompt in many]
        while engine.step():
            assert engine.sequences.num_cells <= engine.context.num_cells
        assert [h.ids for h in handles] == [greedy(backbone, p, ids, NUM_NEW) for p in many]
    assert engine.num_state_bytes <= 30_000
    engine.close()


def test_a_cancelled_request_makes_room(backbone: Backbone, engine: LlamaEngine) -> None:
    prompt, ids = prompts(backbone)[1], rows(4)[3]
    handles = engine.submit_all([request(prompt, ids, max_new_tokens=50)] * 2)
    for _ in range(5):
        engine.step()
    handles[0].cancel()
    engine.run()
    assert handles[0].finish_reason == "cancelled" and 0 < len(handles[0].ids) < 50
    assert handles[1].ids == greedy(backbone, prompt, ids, 50)
    first, second = engine.submit_all([request(prompt, ids)] * 2)  # one that reads for another
    engine.scheduler.drop_cancelled()
    engine._admit()
    first.cancel()
    engine.run()
    assert second.ids == greedy(backbone, prompt, ids, NUM_NEW)


def test_a_failed_pass_fails_one_request(
    backbone: Backbone, engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    culprit, run = 250, engine.context.run
    ids = rows(4)
    ids[2][1] = culprit

    def failing(tokens: Any, *rest: Any) -> np.ndarray:
        if culprit in tokens:
            raise ModelError("made up")
        return run(tokens, *rest)

    monkeypatch.setattr(engine.context, "run", failing)
    handles = [engine.submit(request(None, one)) for one in ids]
    engine.run()
    assert [handle.finish_reason == "error" for handle in handles] == [False, False, True, False]
    for handle, one in zip(handles, ids, strict=True):
        if handle.finish_reason != "error":
            assert handle.ids == greedy(backbone, None, one, NUM_NEW)


def test_a_prompt_that_cannot_be_read_fails_alone(backbone: Backbone, engine: LlamaEngine) -> None:
    def missing() -> SoftPrompt:
        raise InputError("gone")

    bad = Request((5, 6), PromptSource("x", 4, missing), max_new_tokens=2)
    handles = engine.submit_all([bad, request(None, [5, 6])])
    engine.run()
    assert str(handles[0].error) == "gone" and handles[1].finish_reason == "length"


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_0])
def test_a_quantized_base_answers_as_llama_cpp_fed_by_hand(
    kind: Kind, backbone: Backbone, tmp_path: Path
) -> None:
    path = gguf_models.write(tmp_path / f"{kind.name}.gguf", backbone.model, TOKENIZER, kind)
    engine = make(path)
    prompt, ids = prompts(backbone)[2], rows(4)[3]
    assert prompt is not None
    handle = engine.submit(request(prompt, ids))
    engine.run()
    context = LlamaContext(engine.model, ContextOptions(256, num_threads=1))
    context.run_embeddings(prompt.embeddings.numpy(), 0)
    found: list[int] = []
    while len(found) < NUM_NEW:
        new, start = (found[-1:] or ids), context.length(0)
        wanted = [False] * (len(new) - 1) + [True]
        logits = context.run(new, range(start, start + len(new)), [0] * len(new), wanted)
        found.append(int(logits[0].argmax()))
    assert handle.ids == found
    context.close()
    engine.close()


def test_the_server_serves_names_over_it(backbone: Backbone, gguf: Path, tmp_path: Path) -> None:
    store, known = Store(tmp_path / "store"), {}
    for name, prompt in zip("abc", prompts(backbone)[1:], strict=True):
        assert prompt is not None
        prompt.save(tmp_path / name)
        store.add(name, tmp_path / name)
        known[name] = prompt
    stranger = serving.tiny_prompt(serving.tiny_backbone())
    stranger.save(tmp_path / "stranger")
    store.add("stranger", tmp_path / "stranger")
    limits = EngineLimits(**{**vars(LIMITS), "max_length": 200})
    bare, engine = launch.launch(str(gguf), limits, ContextOptions(num_threads=1))
    server = Server(bare, store, serving.config(served_name="tiny"), engine=engine)
    assert list(server.refused) == ["stranger"] and "they differ in" in server.refused["stranger"]
    turns = [{"role": "user", "content": "hello yes"}]
    with serving.running(server) as url, httpx.Client(base_url=url, timeout=30) as client:
        for name, prompt in {"tiny": None, **known}.items():
            body = {"model": name, "messages": turns, "temperature": 0, "max_tokens": 5}
            answer = client.post("/v1/chat/completions", json=body).json()
            text = answer["choices"][0]["message"]["content"]
            assert text == serving.expected(backbone, prompt, turns, 5)
            with client.stream(
                "POST", "/v1/chat/completions", json=body | {"stream": True}
            ) as told:
                assert "data: [DONE]" in "".join(told.iter_text())
        assert client.get("/health").json() == {"status": "ok"}
        assert "foreword:kv_cache_usage_perc" in client.get("/metrics").text
        models = client.get("/v1/models").json()["data"]
        assert [card["id"] for card in models] == ["tiny", "a", "b", "c"]
        over = {"model": "a", "prompt": [5] * 400, "max_tokens": 1}
        assert client.post("/v1/completions", json=over).status_code == 400


def test_options_after_the_dashes() -> None:
    found = context_options(["--cache-type=f16", "--flash-attention", "--threads", "3"])
    assert (found.cache_type, found.has_flash_attention, found.num_threads) == ("f16", True, 3)
    with pytest.raises(UnsupportedError, match="q8_0"):
        context_options(["--cache-type", "q8_0"])
    assert context_options(["--cache-type", "F16"]).cache_type == "f16"
    with pytest.raises(UnsupportedError, match="'bf16' is not known to be exact"):
        context_options(["--cache-type=bf16"])
    for words in (
        ["--threads"], ["--threads", "0"], ["--other"], ["--threads", "²"], ["--threads="],
        ["--cache-type", "--threads", "1"], ["--flash-attention=on"],
    ):  # fmt: skip
        with pytest.raises(InputError):
            context_options(words)


def test_more_rows_than_sequences_are_refused(gguf: Path) -> None:
    with pytest.raises(InputError, match="lower --max-batch"):
        make(gguf, max_rows=250)
