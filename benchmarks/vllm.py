"""vLLM with the plugin: the bare base, one prompt, 64 prompts, of both forms, over HTTP.

    python benchmarks/vllm.py [--model DIRECTORY] [--repeats 5] [-- OPTIONS OF VLLM]

In the environment of `make test-vllm`, or any with `foreword[vllm]`. A server is started with a
store of prompts; a closed loop of requests, each of some words of real text, runs through it as
bare ones, behind one prompt, and behind all of them in turn. Systems take turns, so that a noisy
machine is noisy for all; figures are medians, ratios those of one round. With `--cpu-time`, tokens
are counted by the seconds that all processes of the server take (Linux): they tell what the work
costs where others work on the machine too. First tokens are always by the wall's clock. `hits` is
the share of a request's tokens, virtual ones included, that vLLM found in its own cache or was
given; first tokens of single requests are told apart, cold and warm.
"""

import argparse
import itertools
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from foreword import Backbone, SoftPrompt
from foreword.prompt.store import Store

TEXT = Path(__file__).parent.parent / "README.md"
FORMS = ("embeddings", "key_values")


@dataclass(frozen=True)
class Run:
    """One run: new tokens per second, median seconds to the first token, share of cached tokens."""

    speed: float
    first: float
    hits: float


def fill(store: Store, backbone: Backbone, arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Put different prompts of both forms into a store; return their names by form."""
    generator = torch.Generator().manual_seed(0)
    shape = arguments.virtual_tokens, backbone.capabilities.vocab_size
    facts = {"base": {"name": backbone.name, "fingerprint": backbone.fingerprint()}}
    names: dict[str, list[str]] = {form: [] for form in FORMS}
    with tempfile.TemporaryDirectory() as scratch:
        for index in range(arguments.prompts):
            ids = torch.randint(3, shape[1], shape[:1], generator=generator)
            words = SoftPrompt.from_embeddings(backbone.embed(ids).float().clone(), facts=facts)
            keys = SoftPrompt.from_states(backbone.compile(words).states, facts=facts)
            for form, prompt in zip(FORMS, (words, keys), strict=True):
                name = f"{form}-{index}"
                prompt.save(Path(scratch) / name)
                store.add(name, Path(scratch) / name)
                names[form].append(name)
    return names


def rows_for(backbone: Backbone, arguments: argparse.Namespace) -> list[list[int]]:
    """Return rows of real text of 20 to 100 tokens, all different."""
    ids = backbone.tokenizer(TEXT.read_text(), verbose=False)["input_ids"]
    found, start = [], 0
    for length in itertools.islice(itertools.cycle(range(20, 101, 7)), arguments.requests):
        start = (start + 37) % (len(ids) - 101)
        found.append(ids[start : start + length])
    return found


class Client:
    """Asks one server.

    Args:
        url: its address.
        new_tokens: of each answer.
        clock: seconds by which tokens are counted.
    """

    def __init__(self, url: str, new_tokens: int, clock: Callable[[], float]) -> None:
        self.url, self.new_tokens, self.clock = url, new_tokens, clock
        self._lock = threading.Lock()

    def first_token(
        self,
        name: str,
        row: Sequence[int],
        new_tokens: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ) -> float:
        """Stream one answer; return seconds to its first token."""
        body = {
            "model": name, "prompt": list(row), "max_tokens": new_tokens, "temperature": 0,
            "ignore_eos": True, "stream": True,
        }  # fmt: skip
        kind = {"content-type": "application/json"}
        asked = urllib.request.Request(
            f"{self.url}/v1/completions", json.dumps(body).encode(), kind
        )
        started, seconds = clock(), None
        with urllib.request.urlopen(asked) as answer:
            for line in answer:
                if line.startswith(b"data: {") and seconds is None:
                    seconds = clock() - started
        assert seconds is not None
        return seconds

    def run(self, names: Sequence[str], rows: Sequence[Sequence[int]], num_at_once: int) -> Run:
        """Run a closed loop, behind the names in turn."""
        before = self._counts()
        started = self.clock()
        with ThreadPoolExecutor(num_at_once) as pool:
            new = itertools.repeat(self.new_tokens)
            first = list(pool.map(self.first_token, itertools.cycle(names), rows, new))
        seconds = self.clock() - started
        asked, found, given = (b - a for a, b in zip(before, self._counts(), strict=True))
        hits = (found + given) / asked if asked else 0.0
        return Run(len(rows) * self.new_tokens / seconds, statistics.median(first), hits)

    def _counts(self) -> list[float]:
        """Return the tokens that were looked up, found, and given by the connector."""
        with urllib.request.urlopen(f"{self.url}/metrics") as answer:
            text = answer.read().decode()
        kinds = ("prefix_cache_queries", "prefix_cache_hits", "external_prefix_cache_hits")
        return [
            sum(map(float, re.findall(rf"^vllm:{kind}_total\{{.*\}} (\S+)$", text, re.M)))
            for kind in kinds
        ]


@contextmanager
def serving(
    model: str, store: Path, extra: Sequence[str], python: str = sys.executable
) -> Iterator[tuple[str, int]]:
    """Start a server in an environment; yield its address and the group of its processes."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [python, "-m", "foreword", "serve", model, "--engine", "vllm"]
    command += ["--prompts", str(store), "--port", str(port), "--served-name", "base", "--", *extra]
    log = store / ".log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    try:
        while True:
            if process.poll() is not None:
                raise SystemExit(log.read_text()[-3000:])
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def seconds_of(group: int) -> float:
    """Return the seconds of processor that the processes of a group have taken."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            ticks += (int(fields[11]) + int(fields[12])) * (int(fields[2]) == group)
    return ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Print one line for each system, and first tokens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--at-once", type=int, default=32)
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--virtual-tokens", type=int, default=32)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("extra", nargs="*", help="options of vLLM, after --")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    backbone = Backbone.load(arguments.model)
    rows = rows_for(backbone, arguments)
    with tempfile.TemporaryDirectory() as directory:
        names = fill(Store(directory), backbone, arguments)
        del backbone
        with serving(arguments.model, Path(directory), arguments.extra) as (url, group):
            clock = (lambda: seconds_of(group)) if arguments.cpu_time else time.perf_counter
            measure(Client(url, arguments.new_tokens, clock), names, rows, arguments)


def measure(
    client: Client,
    names: dict[str, list[str]],
    rows: list[list[int]],
    arguments: argparse.Namespace,
) -> None:
    """Run all systems in turn and print what they took."""
    client.first_token("base", rows[0][:20])
    single = {}
    for form in FORMS:
        for state in ("cold", "warm"):
            single[form, state] = [client.first_token(name, rows[0][:20]) for name in names[form]]
    single["base", ""] = [client.first_token("base", row[:20]) for row in rows]
    systems: dict[str, list[str]] = {"bare": ["base"]}
    for form in FORMS:
        systems |= {f"one prompt, {form}": names[form][:1]}
        systems |= {f"{len(names[form])} prompts, {form}": names[form]}
    runs: dict[str, list[Run]] = {name: [] for name in systems}
    for round_ in range(arguments.repeats):
        for index, (system, own) in enumerate(systems.items()):
            # Of rows that it has read, vLLM would find the whole, not only virtual tokens.
            asked = [[100 + round_ * len(systems) + index, *row] for row in rows]
            runs[system].append(client.run(own, asked, arguments.at_once))
    report(runs, single, arguments)


def report(
    runs: dict[str, list[Run]],
    single: dict[Any, list[float]],
    arguments: argparse.Namespace,
) -> None:
    """Print the tables."""
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(
        f"{arguments.model}, {where}, {os.environ.get('OMP_NUM_THREADS', 'all')} threads, "
        f"{'CPU seconds of the server, ' if arguments.cpu_time else ''}"
        f"{arguments.at_once} requests at once, {arguments.requests} in all, "
        f"{arguments.new_tokens} new tokens each, P={arguments.virtual_tokens}, median of "
        f"{arguments.repeats}\n\n"
        "| system | tokens/s | to bare | first token, s | to bare | hits |\n"
        "|---|---|---|---|---|---|"
    )
    for name, found in runs.items():
        pairs = list(zip(found, runs["bare"], strict=True))
        speed, first, hits = (
            statistics.median(getattr(run, field) for run in found)
            for field in ("speed", "first", "hits")
        )
        faster = statistics.median(run.speed / bare.speed for run, bare in pairs)
        later = statistics.median(run.first / bare.first for run, bare in pairs)
        print(f"| {name} | {speed:.1f} | {faster:.2f} | {first:.3f} | {later:.2f} | {hits:.2f} |")
    print("\n| one request alone | first token, ms |\n|---|---|")
    for (form, state), seconds in single.items():
        print(f"| {form} {state} | {1000 * statistics.median(seconds):.1f} |")


if __name__ == "__main__":
    main()
