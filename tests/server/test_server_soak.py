"""Many mixed requests with clients that go and prompts that change: afterwards all is as before."""

import concurrent.futures
import contextlib
import gc
import json
import random
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import TOKENIZER, config, expected, fill, running, tiny_backbone, tiny_prompt

from foreword.prompt.store import Store
from foreword.server.server import Server

ADMIN = {"authorization": "Bearer root"}
STATUSES = {200, 400, 404, 503}


class Soak:
    """One client of many: sends what chance says and checks what can be checked at once."""

    def __init__(self, address: str, seed: int) -> None:
        self.chance = random.Random(seed)
        self.http = httpx.Client(base_url=address, timeout=60)
        self.greedy: list[tuple[str, str, str]] = []  # model, text, answer
        self.statuses: list[int] = []

    def run(self, num_requests: int) -> "Soak":
        """Send requests one after the other."""
        with self.http:
            for _ in range(num_requests):
                self.chance.choices(
                    [self.whole, self.stream, self.leave, self.wrong, self.reload],
                    [5, 3, 3, 1, 1],
                )[0]()
        return self

    def body(self, **changes: Any) -> dict[str, Any]:
        """Return a random request."""
        text = "".join(self.chance.choices("abc XYZ€", k=self.chance.randint(1, 60)))
        return {
            "model": self.chance.choice(["tiny", "a", "b", "c"]),
            "prompt": text,
            "max_tokens": self.chance.randint(1, 40),
            "temperature": self.chance.choice([0, 0, 0.7, 1.5]),
            "top_p": self.chance.choice([1, 0.9]),
            "n": self.chance.choice([1, 1, 2]),
            **changes,
        }

    def whole(self) -> None:
        """Ask and read the whole answer."""
        body = self.body()
        found = self.http.post("/v1/completions", json=body)
        self.statuses.append(found.status_code)
        if found.status_code == 200 and body["temperature"] == 0 and body["model"] != "c":
            self.greedy.append((body["model"], body["prompt"], found.json()["choices"][0]["text"]))

    def stream(self) -> None:
        """Ask and read a stream to its end."""
        with self.http.stream("POST", "/v1/completions", json=self.body(stream=True)) as found:
            lines = [line for line in found.iter_lines() if line]
        self.statuses.append(found.status_code)
        assert found.status_code != 200 or lines[-1] == "data: [DONE]"

    def leave(self) -> None:
        """Ask, and go at some event or before any."""
        with httpx.Client(base_url=self.http.base_url, timeout=60) as http:
            body = self.body(stream=self.chance.random() < 0.7, max_tokens=100, ignore_eos=True)
            if not body["stream"]:
                with contextlib.suppress(httpx.TimeoutException):
                    http.post("/v1/completions", json=body, timeout=0.02 * self.chance.random())
                return
            with http.stream("POST", "/v1/completions", json=body) as found:
                self.statuses.append(found.status_code)
                for line, _ in zip(
                    found.iter_lines(), range(self.chance.randint(0, 9)), strict=False
                ):
                    assert found.status_code != 200 or not line or line.startswith("data: ")

    def wrong(self) -> None:
        """Ask for what is refused."""
        bad: dict[str, Any] = self.chance.choice(
            [{"model": "x"}, {"n": 99}, {"prompt": [9999]}, {"max_tokens": 999}]
        )
        found = self.http.post("/v1/completions", json=self.body() | bad)
        self.statuses.append(found.status_code)
        assert found.status_code in (400, 404)

    def reload(self) -> None:
        """Load or unload the prompt `c`."""
        verb = self.chance.choice(["load", "load", "unload"])
        found = self.http.post(f"/v1/{verb}_soft_prompt", headers=ADMIN, json={"name": "c"})
        self.statuses.append(found.status_code)


def resident_bytes() -> int:
    """Return the memory of this process in use."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def test_a_soak_leaves_everything_where_it_was(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    num_requests: int = pytestconfig.getoption("--soak")
    backbone = tiny_backbone("mistral")
    store = Store(tmp_path / "store")
    prompts = {"tiny": None} | fill(store, backbone, tmp_path, "abc")
    tiny_prompt(backbone, 8, 7).save(tmp_path / "c2")
    options = config(
        runtime_loading=True, max_batch=6, max_queue=6, cache_bytes=300_000, chunk_tokens=32
    )
    server = Server(backbone, store, options, admin_key="root")
    engine = server.worker.engine
    with running(server) as address, concurrent.futures.ThreadPoolExecutor(8) as pool:
        Soak(address, 99).run(10)
        before = resident_bytes()
        clients = [pool.submit(Soak(address, seed).run, num_requests // 8) for seed in range(8)]
        store.add("c", tmp_path / "c2")
        done = [client.result() for client in clients]
        deadline = time.monotonic() + 120
        while (engine.has_work or server.worker.num_live) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not engine.running and not engine.num_waiting and not engine.num_decoding
        assert (
            not engine.scheduler.prefilling
            and not engine.kv_cache.num_bytes
            and not server.worker.num_live
        )
        assert 0 < engine.prefix_cache.num_bytes <= 300_000
        assert resident_bytes() - before < 100_000_000
        with httpx.Client(base_url=address) as http:
            assert http.get("/health").status_code == 200
            text = http.get("/metrics").text
    assert 'num_requests_running{model_name="tiny"} 0.0' in text
    assert 'num_requests_waiting{model_name="tiny"} 0.0' in text
    statuses = [status for client in done for status in client.statuses]
    assert set(statuses) <= STATUSES and statuses.count(200) > len(statuses) // 3
    answers = [answer for client in done for answer in client.greedy]
    assert len(answers) > num_requests // 20
    for model, prompt, answer in random.Random(0).sample(answers, min(len(answers), 40)):
        num_new = len(TOKENIZER(answer)["input_ids"]) + 1
        whole = expected(backbone, prompts[model], prompt, num_new)
        assert whole.startswith(answer.rstrip("\ufffd")), json.dumps([model, prompt, answer])
