"""The page in a real browser: both answers stream side by side, and are the oracle's."""

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import config, expected, fill, running, tiny_backbone, tiny_prompt

from foreword.prompt.store import Store
from foreword.server.routes import PAGE, PAGE_KINDS
from foreword.server.server import Server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
TURNS = [{"role": "user", "content": "say yes"}]


class Browser:
    """A headless Chromium, through the WebDriver protocol."""

    def __init__(self, http: httpx.Client) -> None:
        options = {
            "binary": CHROMIUM,
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-proxy-server",
                     "--disable-dev-shm-usage"],
        }  # fmt: skip
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        self.http = http
        self.path = f"/session/{self.send('POST', '/session', wanted)['sessionId']}"

    def send(self, method: str, path: str, body: Any = None) -> Any:
        found = self.http.request(method, path, json={} if body is None else body).json()["value"]
        assert not isinstance(found, dict) or "error" not in found, found
        return found

    def open(self, address: str) -> None:
        self.send("POST", f"{self.path}/url", {"url": address})

    def run(self, script: str, *arguments: Any) -> Any:
        body = {"script": script, "args": list(arguments)}
        return self.send("POST", f"{self.path}/execute/sync", body)

    def until(self, condition: str) -> None:
        deadline = time.monotonic() + 120
        while not self.run(f"return Boolean({condition})"):
            assert time.monotonic() < deadline, self.run("return document.body.innerText")
            time.sleep(0.05)

    def text(self, selector: str) -> str:
        return str(self.run("return document.querySelector(arguments[0]).textContent", selector))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip(
            "no chromium with chromedriver here: make browser installs them, on Debian as root"
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
            deadline = time.monotonic() + 120
            while True:
                try:
                    http.get("/status")
                    break
                except httpx.TransportError:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            found = Browser(http)
            yield found
            found.send("DELETE", found.path)
    finally:
        driver.terminate()
        driver.wait(30)


ASK = """
const [prompt, text, tokens] = arguments;
document.getElementById("prompt").value = prompt;
document.getElementById("text").value = text;
document.getElementById("tokens").value = tokens;
document.getElementById("send").click();
"""


def test_both_answers_stream_side_by_side(browser: Browser, tmp_path: Path) -> None:
    backbone, store = tiny_backbone(), Store(tmp_path / "store")
    prompts = fill(store, backbone, tmp_path)
    with running(Server(backbone, store, config())) as address:
        browser.open(address)
        browser.until("document.querySelectorAll('#prompts tr').length === 2")
        assert "a" in browser.text("#prompts tr td") and "MB" in browser.text("#prompts")
        browser.run(ASK, "b", "say yes", 12)
        browser.until("document.querySelector('#soft .figures').textContent.includes('tokens/s')")
        browser.until("!document.getElementById('send').disabled")
        assert browser.text("#soft h2") == "b" and browser.text("#bare h2") == "tiny"
        assert browser.text("#soft .answer") == expected(backbone, prompts["b"], TURNS, 12)
        assert browser.text("#bare .answer") == expected(backbone, None, TURNS, 12)
        for place in ("#soft", "#bare"):
            figures = browser.text(f"{place} .figures")
            assert re.fullmatch(r"first token [\d.]+ s · \d+ tokens · [\d.]+ tokens/s", figures)
        assert browser.run("return document.getElementById('error').hidden")
        loaded = browser.run("return performance.getEntriesByType('resource').map((e) => e.name)")
        assert loaded and all(name.startswith(address) for name in loaded)


def test_each_prompts_training_is_drawn_where_it_is_recorded(
    browser: Browser, tmp_path: Path
) -> None:
    backbone, store = tiny_backbone(), Store(tmp_path / "store")
    fill(store, backbone, tmp_path)
    with running(Server(backbone, store, config())) as address:
        browser.open(address)
        browser.until("document.querySelectorAll('#prompts tr').length === 2")
        first, second = "#prompts tr:first-child", "#prompts tr:last-child"
        said = "loss 4.00 to 3.02 in 100 steps", "held out 3.80 to 3.20"
        assert browser.text(f"{first} svg title") == ", ".join(said)
        assert tuple(browser.text(f"{first} .said.{of}") for of in ("trained", "judged")) == said
        assert browser.text(f"{second} td:last-child") == "no history"
        points = "return document.querySelector(arguments[0]).getAttribute('points').split(' ')"
        trained = browser.run(points, f"{first} polyline.trained")
        judged = browser.run(points, f"{first} polyline.judged")
        heights = [float(point.split(",")[1]) for point in trained]
        assert len(trained) == 60 and heights == sorted(heights)  # down the picture: a lower loss
        assert len(judged) == 2 and judged[1].startswith("176.0,")
        box = "return document.querySelector(arguments[0]).getBoundingClientRect().width"
        assert browser.run(box, f"{first} polyline.trained") > 100
        assert browser.run("return document.querySelectorAll('#prompts circle').length") == 2


def test_a_wrong_key_is_told_and_the_right_one_opens(browser: Browser) -> None:
    server = Server(tiny_backbone(), None, config(), api_key="secret")
    with running(server) as address:
        browser.open(address)
        browser.until("!document.getElementById('error').hidden")
        assert "a valid key is needed" in browser.text("#error")
        browser.run(
            "const key = document.getElementById('key'); key.value = 'secret';"
            "key.dispatchEvent(new Event('change'))"
        )
        browser.until("document.getElementById('error').hidden")
        assert browser.text("#bare h2") == "tiny"


def test_pages_fit_a_narrow_window(browser: Browser, tmp_path: Path) -> None:
    backbone, store = tiny_backbone(), Store(tmp_path / "store")
    fill(store, backbone, tmp_path)
    tiny_prompt(backbone, 5).save(tmp_path / "long")
    store.add("n" * 64, tmp_path / "long")
    width = {"width": 320, "height": 600, "deviceScaleFactor": 1, "mobile": True}
    command = {"cmd": "Emulation.setDeviceMetricsOverride", "params": width}
    browser.send("POST", f"{browser.path}/goog/cdp/execute", command)
    try:
        with running(Server(backbone, store, config())) as address:
            for page, rows in (("/", 3), ("/docs", 20)):
                browser.open(address + page)
                browser.until(f"document.querySelectorAll('tbody tr').length >= {rows}")
                sizes = "return [document.documentElement.scrollWidth, window.innerWidth]"
                assert browser.run(sizes) == [320, 320], page
    finally:
        browser.send(
            "POST", f"{browser.path}/goog/cdp/execute",
            {"cmd": "Emulation.clearDeviceMetricsOverride", "params": {}},
        )  # fmt: skip


def test_the_reference_names_every_route_and_field_and_needs_no_key() -> None:
    server = Server(tiny_backbone(), None, config(), api_key="secret")
    with running(server) as address, httpx.Client(base_url=address) as client:
        page = client.get("/docs")
        assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
        described = client.get("/openapi.json", headers={"authorization": "Bearer secret"}).json()
        for path, methods in described["paths"].items():
            for method in methods:
                assert f"<h2>{method.upper()} {path}</h2>" in page.text
        for field in ("messages", "temperature", "logprobs", "choices"):
            assert f'<td data-name="field">{field}</td>' in page.text
        assert "script" not in page.text and "http:" not in page.text
        icon = client.get("/favicon.ico")
        assert icon.status_code == 200 and icon.headers["content-type"] == "image/svg+xml"
        assert all("/favicon.ico" in client.get(path).text for path in ("/", "/docs"))


def test_the_page_names_no_outside_address() -> None:
    for file in PAGE_KINDS:
        text = (PAGE / file).read_text().replace("http://www.w3.org/2000/svg", "")  # a name
        assert not re.search(r"https?:|//[a-z]+\.", text), file
