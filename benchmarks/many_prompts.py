"""Many prompts: what a store of ten and one of ten thousand cost to fill, list, load and serve.

Called by `serving.py` where several numbers are given as `--prompts`. One store grows from number
to number, with an alias for each prompt; each operation is timed at that size, over the same few
names. Wall clock, in
which adding waits for the disk of the temporary directory, or with `--cpu-time` this process's own
seconds.
"""

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from foreword import Backbone, SoftPrompt
from foreword.engine.engine import Engine
from foreword.engine.limits import EngineLimits
from foreword.engine.request import Request
from foreword.prompt.store import Store
from foreword.server.catalog import Catalog

clock: Callable[[], float] = time.perf_counter
NUM_TIMED = 50  # names for which an operation is timed, at most
MEMORY = Path("/dev/shm")  # where prompts are made, so that only the store waits for a disk


@dataclass(frozen=True)
class Costs:
    """Figures at one size of the store: milliseconds each, seconds of all, and KiB each."""

    add_ms: float
    names_s: float
    start_s: float
    start_kib: float
    reload_s: float
    load_ms: float
    find_us: float
    list_s: float
    tokens_per_s: float
    unload_us: float
    remove_ms: float


def measure(
    backbone: Backbone, sizes: Sequence[int], requests: Sequence[Request], num_virtual: int
) -> dict[int, Costs]:
    """Return the figures at each size."""
    with tempfile.TemporaryDirectory() as directory:
        store, found = Store(Path(directory) / "store"), {}
        for before, size in zip([0, *sizes], sizes, strict=False):
            add_seconds = _fill(store, backbone, before, size, num_virtual)
            found[size] = _at_size(backbone, store, size, requests, add_seconds)
        return found


def table(found: dict[int, Costs]) -> str:
    """Return the figures as a table, a column for each size."""
    rows: list[tuple[str, Callable[[Costs], str]]] = [
        ("add one, ms", lambda c: f"{c.add_ms:.1f}"),
        ("names of all, s", lambda c: f"{c.names_s:.3f}"),
        ("start: load all, s", lambda c: f"{c.start_s:.2f}"),
        ("memory of one that is loaded, KiB", lambda c: f"{c.start_kib:.1f}"),
        ("read the store again, nothing changed, s", lambda c: f"{c.reload_s:.3f}"),
        ("load one again, ms", lambda c: f"{c.load_ms:.1f}"),
        ("find one, µs", lambda c: f"{c.find_us:.1f}"),
        ("list all that are served, s", lambda c: f"{c.list_s:.4f}"),
        ("answers, each behind another, tokens/s", lambda c: f"{c.tokens_per_s:.1f}"),
        ("unload one, µs", lambda c: f"{c.unload_us:.1f}"),
        ("remove one, ms", lambda c: f"{c.remove_ms:.1f}"),
    ]
    head = " | ".join(f"{size:,} prompts" for size in found)
    lines = [f"| | {head} |", "|---" * (len(found) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(map(say, found.values()))} |" for name, say in rows]
    return "\n".join(lines)


def _fill(store: Store, backbone: Backbone, start: int, end: int, num_virtual: int) -> float:
    """Add prompts up to a number; return the median seconds of the last ones."""
    ids = torch.randint(3, backbone.capabilities.vocab_size, (num_virtual,))
    values, seconds = backbone.embed(ids).float(), []
    facts = {"base": {"name": backbone.name, "fingerprint": backbone.fingerprint()}}
    place = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as directory:
        for number in range(start, end):
            made = SoftPrompt.from_embeddings(values + number * 1e-6, facts=facts)
            made.save(Path(directory) / "made")
            begun = clock()
            store.add(f"prompt-{number}", Path(directory) / "made")
            seconds.append(clock() - begun)
            store.alias(f"alias-{number}", f"prompt-{number}")
    return statistics.median(seconds[-NUM_TIMED:])


def _at_size(
    backbone: Backbone, store: Store, size: int, requests: Sequence[Request], add_seconds: float
) -> Costs:
    names = random.Random(0).sample([f"prompt-{n}" for n in range(size)], min(size, NUM_TIMED))
    names_s, _ = _timed(store.names)
    catalog, before = Catalog(backbone, store, "bare"), _memory()
    start_s, refused = _timed(catalog.load_all)
    assert not refused, refused
    kib = (_memory() - before) / size
    reload_s, _ = _timed(catalog.reload)
    load = statistics.median(_timed(lambda name=name: catalog.load(name))[0] for name in names)
    find = statistics.median(_timed(lambda name=name: catalog.find(name))[0] for name in names)
    list_s, _ = _timed(catalog.all)
    engine = Engine(backbone, EngineLimits(max_rows=32))
    asked = [
        replace(one, prompt=catalog.find(names[index % len(names)]).source)
        for index, one in enumerate(requests)
    ]
    handles = [engine.submit(one) for one in asked]
    seconds, _ = _timed(engine.run)
    new = sum(len(handle.choices) for handle in handles)
    unload = statistics.median(_timed(lambda name=name: catalog.unload(name))[0] for name in names)
    source = store.resolve(names[0]).path
    removing = []
    for number in range(10):
        store.add(f"gone-{number}", source)
        removing.append(_timed(lambda name=f"gone-{number}": store.remove(name))[0])
    return Costs(
        add_seconds * 1e3, names_s, start_s, kib, reload_s, load * 1e3, find * 1e6, list_s,
        new / seconds, unload * 1e6, statistics.median(removing) * 1e3,
    )  # fmt: skip


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    begun = clock()
    result = call()
    return clock() - begun, result


def _memory() -> float:
    """Return this process's memory in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return float(line.split()[1])
    raise RuntimeError("no VmRSS")
