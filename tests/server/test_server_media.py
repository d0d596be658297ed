"""Images and sounds over HTTP: answers are the oracle's, and what is hostile is refused."""

import base64
import io
import logging
import random
import struct
import threading
import wave
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import media_oracle
import openai
import pytest
import tiny_models
import tiny_processors
import torch
from PIL import Image
from serving import config, running, tiny_backbone
from tiny_media import MediaRow
from tiny_processors import picture, tone

from foreword import Backbone, EncodingConfig, SoftPrompt
from foreword.chat import encode_row
from foreword.data.encoding import decode
from foreword.engine.engine import Engine
from foreword.engine.limits import EngineLimits
from foreword.engine.request import Request
from foreword.errors import BusyError, InputError
from foreword.prompt.store import Store
from foreword.server.server import Server

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 6}
TEXT = {"type": "text", "text": "what?"}


def served(family: str) -> Backbone:
    model, processor = tiny_processors.shared(family)
    return Backbone(model, processor=processor, name="tiny")


class World:
    """A family's server with one named prompt, and clients for it."""

    def __init__(self, family: str, directory: Path) -> None:
        self.backbone = served(family)
        facts = {"base": {"name": "tiny", "fingerprint": self.backbone.fingerprint()}}
        values = tiny_models.embeddings(self.backbone.model, 4)
        self.prompts: dict[str, SoftPrompt | None] = {"tiny": None}
        self.prompts["a"] = SoftPrompt.from_embeddings(values, facts=facts)
        self.prompts["a"].save(directory / "a")
        store = Store(directory / "store")
        store.add("a", directory / "a")
        self.server = Server(self.backbone, store, config(max_media=3, image_pixels=2000))

    def answer(self, model: str, parts: list[dict[str, Any]], num_new: int = 6) -> str:
        """Return the oracle's greedy answer to parts that are in memory."""
        row = encode_row(self.backbone, [{"role": "user", "content": parts}], EncodingConfig())
        assert row.media is not None
        media = {
            name: value.double() if value.is_floating_point() else value
            for name, value in row.media.tensors.items()
        }
        before = MediaRow(torch.tensor(row.input_ids), media)
        ids = media_oracle.greedy(self.backbone.model, self.prompts[model], before, num_new)
        return decode(ids[: ids.index(2)] if 2 in ids else ids, self.backbone.tokenizer)

    def ask(self, parts: Any, model: str = "tiny", **changes: Any) -> httpx.Response:
        turns = [{"role": "user", "content": parts}]
        body = {"model": model, "messages": turns} | GREEDY | changes
        return self.http.post("/v1/chat/completions", json=body)


@pytest.fixture(scope="module", params=["glm4v", "glmasr"])
def world(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from running_world(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from running_world("qwen2_5_vl", tmp_path_factory.mktemp("seeing"))


@pytest.fixture(scope="module")
def hearing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    yield from running_world("glmasr", tmp_path_factory.mktemp("hearing"))


def running_world(family: str, directory: Path) -> Iterator[World]:
    made = World(family, directory)
    with running(made.server) as address, httpx.Client(base_url=address, timeout=60) as http:
        made.http = http  # type: ignore[attr-defined]
        made.client = openai.OpenAI(  # type: ignore[attr-defined]
            base_url=f"{address}/v1", api_key="any", max_retries=0
        )
        yield made


def png(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def as_image(content: bytes, kind: str = "png") -> dict[str, Any]:
    data = base64.b64encode(content).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{data}"}}


def as_sound(content: bytes) -> dict[str, Any]:
    data = base64.b64encode(content).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def pairs(
    world: World, folder: Path, number: int, size: int = 1
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return one image or sound as clients send it, and as it is in memory."""
    if world.backbone.capabilities.modalities[0].name == "image":
        image = picture(8 + 8 * size, 8, "OX"[number])
        return as_image(png(image)), {"type": "image", "image": image}
    path = tone(folder / f"{number}.wav", 0.2 + 0.2 * size, 300.0 * (number + 1))
    return as_sound(path.read_bytes()), {"type": "audio", "path": str(path)}


def has_kept_media(world: World) -> bool:
    token_id = world.backbone.capabilities.modalities[0].token_id
    return any(token_id in known.ids for known in world.server.worker.engine.prefix_cache._entries)


def text_of(found: httpx.Response) -> Any:
    assert found.status_code == 200, found.text
    return found.json()["choices"][0]["message"]["content"]


# Answers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["tiny", "a"])
def test_answers_are_the_oracles_whole_and_streamed(
    world: World, model: str, tmp_path: Path
) -> None:
    sent, held = pairs(world, tmp_path, 1)
    turns: Any = [{"role": "user", "content": [sent, TEXT]}]
    create = world.client.chat.completions.create
    whole = create(model=model, messages=turns, **GREEDY)
    expected = world.answer(model, [held, TEXT])
    assert whole.choices[0].message.content == expected and expected
    stream = create(model=model, messages=turns, stream=True, **GREEDY)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected


def test_another_image_or_sound_gets_another_answer(world: World, tmp_path: Path) -> None:
    """No state of one is ever taken for the other's, whose ids are the same."""
    first, second = (pairs(world, tmp_path, number) for number in (0, 1))
    same = [first, second, first]
    found = [text_of(world.ask([sent, TEXT], "a")) for sent, _ in same]
    assert found == [world.answer("a", [held, TEXT]) for _, held in same]
    assert found[0] != found[1] and not has_kept_media(world)


def test_two_in_one_message(world: World, tmp_path: Path) -> None:
    both = [pairs(world, tmp_path, number, size=number) for number in (0, 1)]
    parts = [both[0][0], TEXT, both[1][0]]
    if world.backbone.capabilities.model_type == "glmasr":  # its processor takes one for each text
        refused(world, parts, "must match 1:1")
    else:
        held = [both[0][1], TEXT, both[1][1]]
        assert text_of(world.ask(parts, "a")) == world.answer("a", held)


def test_usage_counts_what_placeholders_become(world: World, tmp_path: Path) -> None:
    sent, held = pairs(world, tmp_path, 1)
    usage = world.ask([sent, TEXT], "a").json()["usage"]
    turns = [{"role": "user", "content": [held, TEXT]}]
    row = encode_row(world.backbone, turns, EncodingConfig())
    token_id = world.backbone.capabilities.modalities[0].token_id
    assert usage["prompt_tokens"] == len(row.input_ids) and row.input_ids.count(token_id) > 1
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0, "virtual_tokens": 4}
    body = {"model": "a", "messages": [{"role": "user", "content": [sent, TEXT]}]}
    assert world.http.post("/tokenize", json=body).json()["tokens"] == list(row.input_ids)


def test_n_stop_and_logprobs_work_as_with_text(world: World, tmp_path: Path) -> None:
    sent, held = pairs(world, tmp_path, 1)
    expected = world.answer("a", [held, TEXT])
    found = world.ask([sent, TEXT], "a", n=2, logprobs=True, top_logprobs=2).json()
    assert [choice["message"]["content"] for choice in found["choices"]] == [expected] * 2
    tokens = found["choices"][1]["logprobs"]["content"]
    assert len(tokens) == found["usage"]["completion_tokens"] // 2
    assert all(len(token["top_logprobs"]) == 2 for token in tokens)
    stop = expected[-2:]
    stopped = world.ask([sent, TEXT], "a", stop=stop).json()["choices"][0]
    assert stopped["message"]["content"] == expected[: expected.index(stop)]
    assert stopped["finish_reason"] == "stop"


def test_text_under_way_beside_media_is_not_held_up(world: World, tmp_path: Path) -> None:
    sent, held = pairs(world, tmp_path, 1)
    texts = ["one", "say yes", "what now?"]
    before = [text_of(world.ask(text, "a")) for text in texts]
    found: dict[int, str] = {}

    def ask(index: int) -> None:
        found[index] = text_of(world.ask(texts[index] if index < 3 else [sent, TEXT], "a"))

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = world.answer("a", [held, TEXT])
    assert [found[index] for index in range(5)] == [*before, expected, expected]


def test_a_picture_is_turned_upright(seeing: World) -> None:
    image = picture(24, 8, "x")
    exif = image.getexif()
    exif[274] = 6  # the camera was held on its side
    turned = image.transpose(Image.Transpose.ROTATE_270)
    found = text_of(seeing.ask([as_image(png(image, exif=exif)), TEXT]))
    assert found == seeing.answer("tiny", [{"type": "image", "image": turned}, TEXT])


def test_states_of_text_stay_known_beside_media_and_hold_none_of_it(
    hearing: World, tmp_path: Path
) -> None:
    sent, held = pairs(hearing, tmp_path, 0)
    first = text_of(hearing.ask("say yes", "a"))
    assert text_of(hearing.ask([sent, TEXT], "a")) == hearing.answer("a", [held, TEXT])
    assert text_of(hearing.ask("say yes", "a")) == first
    again = hearing.ask("say yes", "a").json()["usage"]["prompt_tokens_details"]
    assert again["cached_tokens"] > 0 and not has_kept_media(hearing)


# Refusals ---------------------------------------------------------------------------------------


def refused(world: World, parts: Any, reason: str, **changes: Any) -> None:
    for is_streamed in (False, True):
        found = world.ask(parts, stream=is_streamed, **changes)
        assert found.status_code == 400, found.text
        assert reason in found.json()["error"]["message"]


def chunk(name: bytes, content: bytes) -> bytes:
    body = name + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def huge(width: int, height: int) -> bytes:
    """Return a small PNG that says it is huge."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows)


def scanned(number: int) -> bytes:
    """Return a small JPEG whose last scan comes so many times more."""
    whole = png(picture(16, 8), "JPEG", progressive=True)
    start, end = whole.rfind(b"\xff\xda"), whole.rfind(b"\xff\xd9")
    return whole[:end] + whole[start:end] * number + whole[end:]


def wav(samples: bytes, width: int = 2, rate: int = 16000, channels: int = 1) -> bytes:
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(samples)
    return content.getvalue()


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/x.png", "https://example.org/x.png", "file:///etc/hostname",
        "/etc/hostname", "x.png", "", "data:,x", "data:image/png,x", "data:image/gif;base64,R0lG",
        "data:text/html;base64,PGh0", "ftp://x/y.png", "DATA:image/png;base64,",
    ],
)  # fmt: skip
def test_nothing_but_a_data_url_is_taken(seeing: World, url: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    refused(seeing, [part], "nothing is fetched and no file is read")


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (as_image(b"nothing"), "not a readable PNG"),
        (as_image(b""), "not a readable PNG"),
        (as_image(png(picture(8, 8))[:60]), "not a readable PNG"),
        (as_image(png(picture(8, 8)), "jpeg"), "not a readable JPEG"),
        (as_image(png(picture(8, 8), "GIF")), "not a readable PNG"),
        (as_image(huge(60_000, 60_000)), "more pixels"),
        (as_image(huge(12_000, 9_000)), "more pixels"),
        (as_image(huge(2**31 - 1, 2**31 - 1)), "more pixels"),
        (as_image(huge(20, 101)), "more pixels"),
        (as_image(png(Image.new("RGB", (1000, 1)))), "processor cannot"),
        (as_image(scanned(30_000), "jpeg"), "more than 100 scans"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,?"}}, "base64"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,\u00e9"}}, "base64"),
        ({"type": "image_url", "image_url": {"url": "x", "detail": "high"}}, "detail"),
        ({"type": "image_url", "image_url": "x"}, "image_url"),
        ({"type": "image_url"}, "image_url"),
        ({"type": "image", "path": "/etc/hostname"}, "type"),
        ({"type": "text", "text": "x", "image_url": {"url": "x"}}, "no more"),
        ({"type": "file", "file": {"file_id": "x"}}, "type"),
        (as_sound(wav(bytes(8000))), "reads no audio, only text and image"),
    ],
)
def test_images_that_cannot_be_read_are_refused(
    seeing: World, part: dict[str, Any], reason: str
) -> None:
    refused(seeing, [part, TEXT], reason)


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (as_sound(b""), "not a readable .wav"),
        (as_sound(b"RIFF" + bytes(40)), "not a readable .wav"),
        (as_sound(wav(b"")), "no samples"),
        (as_sound(wav(bytes(8000), width=1)), "16 bits"),
        (as_sound(wav(bytes(8000), rate=8000)), "expected a sound of 16000 Hz"),
        ({"type": "input_audio", "input_audio": {"data": "x", "format": "mp3"}}, "wav"),
        ({"type": "input_audio", "input_audio": {"data": "/etc/x?", "format": "wav"}}, "base64"),
        ({"type": "input_audio", "input_audio": {"data": "x"}}, "format"),
        ({"type": "audio", "path": "/etc/hostname"}, "type"),
        (as_image(png(picture(8, 8))), "reads no image, only text and audio"),
    ],
)
def test_sounds_that_cannot_be_read_are_refused(
    hearing: World, part: dict[str, Any], reason: str
) -> None:
    refused(hearing, [part, TEXT], reason)


def test_too_many_and_too_large_together_are_refused(seeing: World) -> None:
    part = as_image(png(picture(8, 8)))
    refused(seeing, [part] * 4, "4 images and sounds: at most 3")
    refused(seeing, [as_image(png(picture(40, 30)))] * 2, "at most 800 more pixels")
    assert seeing.ask([part] * 3, max_tokens=1).status_code == 200


def test_placeholders_that_a_client_writes_are_refused(world: World, tmp_path: Path) -> None:
    token_id = world.backbone.capabilities.modalities[0].token_id
    written = {"type": "text", "text": world.backbone.tokenizer.convert_ids_to_tokens(token_id)}
    for content in ([written], written["text"]):  # beside no image it is the text that it is
        turns = {"model": "a", "messages": [{"role": "user", "content": content}]}
        found = world.http.post("/tokenize", json=turns)
        assert found.status_code == 200 and token_id not in found.json()["tokens"]
    found = world.http.post("/v1/completions", json={"model": "a", "prompt": [token_id]})
    assert found.status_code == 400
    assert world.ask([written, pairs(world, tmp_path, 0)[0]]).status_code == 400


def test_a_model_of_text_and_one_without_a_processor_say_so() -> None:
    model, known = tiny_processors.shared("glm4v")
    part = as_image(png(picture(8, 8)))
    body = {"messages": [{"role": "user", "content": [part]}], "model": "tiny"}
    for backbone, reason in (
        (tiny_backbone(), "content.0: the model reads no image, only text"),
        (Backbone(model, known.tokenizer, name="tiny"), "served without a processor"),
    ):
        with running(Server(backbone, None, config())) as address:
            found = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60)
        assert found.status_code == 400 and reason in found.json()["error"]["message"]


@pytest.mark.parametrize("seed", range(2))
def test_damaged_files_are_never_the_servers_fault(world: World, seed: int) -> None:
    is_image = world.backbone.capabilities.modalities[0].name == "image"
    kinds = [png(picture(24, 8), kind) for kind in ("PNG", "JPEG")] if is_image else []
    whole = kinds[seed] if kinds else wav(bytes(range(256)) * 8, channels=seed + 1)
    chance, statuses = random.Random(seed), []
    for _ in range(25):
        broken = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            broken[chance.randrange(min(len(broken), 120))] = chance.randrange(256)
        content = bytes(broken[: chance.choice((None, None, chance.randrange(len(broken))))])
        part = as_image(content, ("png", "jpeg")[seed]) if is_image else as_sound(content)
        statuses.append(world.ask([part, TEXT], max_tokens=1).status_code)
    assert set(statuses) <= {200, 400} and 400 in statuses
    assert world.http.get("/health").status_code == 200


def test_logs_hold_nothing_of_what_was_sent(
    seeing: World, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "foreword"):
        good = as_image(png(picture(16, 8)))
        bad = {"type": "image_url", "image_url": {"url": "file:///home/secret"}}
        assert seeing.ask([good, {"type": "text", "text": "secret"}]).status_code == 200
        assert seeing.ask([bad]).status_code == 400
    assert caplog.records and "secret" not in caplog.text and "base64" not in caplog.text


def test_media_that_waits_takes_bounded_memory() -> None:
    backbone = served("glm4v")
    part = {"type": "image", "image": picture(16, 8)}
    row = encode_row(backbone, [{"role": "user", "content": [part]}], EncodingConfig())
    again = encode_row(backbone, [{"role": "user", "content": [part]}], EncodingConfig())
    assert row.media is not None
    size = row.media.num_bytes
    engine = Engine(backbone, EngineLimits(max_media_bytes=size))
    for _ in range(2):  # two answers to one request share its media
        engine.submit(Request(row.input_ids, media=row.media, max_new_tokens=1))
    with pytest.raises(BusyError, match="images or sounds wait"):
        engine.submit(Request(again.input_ids, media=again.media))
    engine.submit(Request(tuple(backbone.tokenizer("text")["input_ids"])))
    engine.run()
    engine.submit(Request(again.input_ids, media=again.media))
    with pytest.raises(InputError, match="at most"):
        small = Engine(backbone, EngineLimits(max_media_bytes=size - 1))
        small.submit(Request(row.input_ids, media=row.media))
