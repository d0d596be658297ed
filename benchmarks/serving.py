"""Serving: the bare model, 64 prompts, stock PEFT, vLLM and llama.cpp, in one table.

    python benchmarks/serving.py [--repeats 3] [--at-once 1 8 32 --requests 6 16 48] [--cpu-time]
                                 [--vllm PYTHON] [--gguf FILE ... --threads N] [-- OPTIONS OF VLLM]
    python benchmarks/serving.py --prompts 10 1000 10000   # see many_prompts.py

A closed loop: so many requests are under way at any time, each of a few sentences, and the next one
comes when one ends. The engine is the server's; nothing is cached between runs but, where "warm" is
said, the prompts' own states. A first token's time is the mean over the requests: they are equally
long, end together, and wait for whole steps of the engine, by which a median jumps.

The bare model runs before and after each other system, which is compared with the mean of these
two: a machine's speed drifts. Figures are medians of the rounds. Where others work on the machine
too, `--cpu-time` counts the seconds of processor that this process takes, and vLLM's own processes:
what a run would take on one idle core. With `--vllm`, the Python of an environment with
`foreword[vllm]`, a server is started there (see vllm.py) and asked over HTTP, with and without
prompts; with `--gguf`, llama.cpp gets the same requests on each of these files, in this process.
"""

import argparse
import contextlib
import copy
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import many_prompts
import torch
import vllm
from peft import PeftModel
from transformers.utils import logging

from foreword import Backbone, SoftPrompt
from foreword.engine.engine import Engine
from foreword.engine.limits import EngineLimits
from foreword.engine.request import Handle, PromptSource, Request
from foreword.engine.serving_engine import ServingEngine
from foreword.prompt.store import Store

clock: Callable[[], float] = time.perf_counter
fresh = itertools.count(100)  # ids that no row has begun with
NUM_FOR_PEFT = 3  # requests, one after the other


@dataclass(frozen=True)
class Run:
    """One run's figures: new tokens per second, and mean seconds to the first token."""

    speed: float
    first: float


System = Callable[[Sequence[Request], Sequence[Request], int], Run]
"""Answers bare requests, or the same behind prompts, so many at once."""


def requests_for(backbone: Backbone, arguments: argparse.Namespace) -> list[Request]:
    """Return requests of real text, of 20 to 100 tokens, that end by length."""
    arguments = argparse.Namespace(**vars(arguments) | {"requests": max(arguments.requests)})
    new = arguments.new_tokens
    return [Request(tuple(row), max_new_tokens=new) for row in vllm.rows_for(backbone, arguments)]


def prompts_for(backbone: Backbone, arguments: argparse.Namespace) -> list[SoftPrompt]:
    """Return different prompts, of embeddings of random vocabulary."""
    generator = torch.Generator().manual_seed(0)
    shape = arguments.virtual_tokens, backbone.capabilities.vocab_size
    return [
        SoftPrompt.from_embeddings(
            backbone.embed(torch.randint(3, shape[1], shape[:1], generator=generator)).float()
        )
        for _ in range(arguments.prompts[0])
    ]


def through_engine(engine: ServingEngine, requests: Sequence[Request], num_at_once: int) -> Run:
    """Run a closed loop through an engine."""
    started: dict[int, float] = {}
    first: dict[int, float] = {}
    coming = iter(enumerate(requests))
    live: list[tuple[int, Handle]] = []
    begun, handles = clock(), []
    while True:
        live = [pair for pair in live if pair[1].finish_reason is None]
        for index, request in itertools.islice(coming, num_at_once - len(live)):
            started[index] = clock()
            handles += engine.submit_all([request])
            live.append((index, handles[-1]))
        if not live:
            break
        engine.step()
        for index, handle in live:
            if handle.choices and index not in first:
                first[index] = clock() - started[index]
    seconds = clock() - begun
    assert all(handle.finish_reason == "length" for handle in handles)
    num_new = sum(len(handle.choices) for handle in handles)
    return Run(num_new / seconds, statistics.mean(first.values()))


def through_peft(model: Any, requests: Sequence[Request]) -> Run:
    """Call stock PEFT's `generate` for one request after the other."""
    begun, first = clock(), []
    for request in requests:
        ids = torch.tensor([request.ids], device=model.device)
        options = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
        started = clock()
        model.generate(input_ids=ids, max_new_tokens=1, **options)
        first.append(clock() - started)
    wasted = clock() - begun
    for request in requests:
        ids = torch.tensor([request.ids], device=model.device)
        options = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
        num_new = request.max_new_tokens
        model.generate(input_ids=ids, max_new_tokens=num_new, min_new_tokens=num_new, **options)
    seconds = clock() - begun - wasted
    return Run(sum(r.max_new_tokens for r in requests) / seconds, statistics.mean(first))


def through_vllm(
    client: vllm.Client, names: Sequence[str], requests: Sequence[Request], num_at_once: int
) -> Run:
    """Run the same closed loop through vLLM, behind the names in turn."""
    # Of rows that it has read, vLLM would find the whole, not only virtual tokens.
    rows = [[next(fresh), *request.ids[1:]] for request in requests]
    new, clocks = (itertools.repeat(one) for one in (requests[0].max_new_tokens, client.clock))
    begun = client.clock()
    with ThreadPoolExecutor(num_at_once) as pool:
        first = list(pool.map(client.first_token, itertools.cycle(names), rows, new, clocks))
    num_new = sum(request.max_new_tokens for request in requests)
    return Run(num_new / (client.clock() - begun), statistics.mean(first))


def own_systems(backbone: Backbone, prompts: Sequence[SoftPrompt]) -> dict[str, System]:
    """Return the embedded engine with prompts, and stock PEFT with one of them."""
    warm: dict[int, Engine] = {}

    def fresh_engine(num_at_once: int) -> Engine:
        return Engine(backbone, EngineLimits(max_rows=num_at_once))

    def warm_engine(num_at_once: int) -> Engine:
        if num_at_once not in warm:
            warm[num_at_once] = engine = fresh_engine(num_at_once)
            for source in map(PromptSource.of, prompts):
                engine.submit(Request((1,), source, max_new_tokens=0))
                engine.run()
        return _only_prompts(warm[num_at_once])

    directory = tempfile.mkdtemp()
    prompts[0].save(directory)
    peft = PeftModel.from_pretrained(copy.deepcopy(backbone.model), directory)
    return {
        "bare": lambda bare, _, n: through_engine(fresh_engine(n), bare, n),
        f"{len(prompts)} prompts, warm": lambda _, own, n: through_engine(warm_engine(n), own, n),
        f"{len(prompts)} prompts, cold": lambda _, own, n: through_engine(fresh_engine(n), own, n),
        "stock PEFT, per request": lambda bare, _, n: through_peft(peft, bare[:NUM_FOR_PEFT]),
    }


def llama_systems(
    backbone: Backbone, file: str, arguments: argparse.Namespace
) -> dict[str, System]:
    """Return llama.cpp on a GGUF file; what is kept of one run is not there in the next."""
    from foreword.engine_llama.engine import LlamaEngine
    from foreword.llama_cpp.model import ContextOptions, LlamaModel

    model, name = LlamaModel(file), f"llama.cpp, {Path(file).stem}"
    options = ContextOptions(
        cache_type="f16" if arguments.flash_attention else "f32",
        has_flash_attention=arguments.flash_attention,
        num_threads=arguments.threads,
    )

    def run(requests: Sequence[Request], num_at_once: int) -> Run:
        limits = EngineLimits(max_rows=num_at_once, max_slots=16384)
        engine = LlamaEngine(model, backbone.capabilities, limits, options)
        try:
            known = {one.prompt.content_hash: one.prompt for one in requests if one.prompt}
            for source in known.values():
                engine.submit_all([Request((1,), source, max_new_tokens=0)])
            engine.run()
            return through_engine(engine, requests, num_at_once)
        finally:
            engine.close()

    return {
        f"{name}, bare": lambda bare, _, n: run(bare, n),
        f"{name}, {arguments.prompts[0]} prompts, warm": lambda _, own, n: run(own, n),
    }


@contextlib.contextmanager
def vllm_systems(backbone: Backbone, arguments: argparse.Namespace) -> Iterator[dict[str, System]]:
    """Start vLLM; yield it without prompts, and with the same prompts, which it has then seen."""
    if not arguments.vllm:
        yield {}
        return
    with tempfile.TemporaryDirectory() as directory:
        given = argparse.Namespace(**vars(arguments) | {"prompts": arguments.prompts[0]})
        names = vllm.fill(Store(directory), backbone, given)["embeddings"]
        server = vllm.serving(arguments.model, Path(directory), arguments.extra, arguments.vllm)
        with server as (url, group):

            def seconds() -> float:
                return clock() + (vllm.seconds_of(group) if clock is time.process_time else 0.0)

            client = vllm.Client(url, arguments.new_tokens, seconds)
            for name in ["base", *names]:
                client.first_token(name, [next(fresh)] * 8)
            yield {
                "vLLM, bare": lambda bare, _, n: through_vllm(client, ["base"], bare, n),
                f"vLLM, {len(names)} prompts, warm": lambda bare, _, n: through_vllm(
                    client, names, bare, n
                ),
            }


def _only_prompts(engine: Engine) -> Engine:
    """Forget the conversations of the run before."""
    for known in [known for known in engine.prefix_cache._entries if len(known.ids)]:
        engine.prefix_cache._drop(known)
    return engine


def compared(
    systems: dict[str, System],
    bare: list[Request],
    own: list[Request],
    num_at_once: int,
    repeats: int,
) -> list[str]:
    """Run all systems in turn, the bare model between any two; return a line of each."""
    base = systems["bare"]
    yardsticks = [base(bare, own, num_at_once)]
    runs: dict[str, list[tuple[Run, float, float]]] = {name: [] for name in systems}
    for _ in range(repeats):
        for name, system in systems.items():
            run = system(bare, own, num_at_once)
            yardsticks.append(base(bare, own, num_at_once))
            near = yardsticks[-2:]
            runs[name].append((
                run,
                run.speed / statistics.mean(one.speed for one in near),
                run.first / statistics.mean(one.first for one in near),
            ))  # fmt: skip
    lines = []
    for name, found in runs.items():
        speed = statistics.median(run.speed for run, *_ in found)
        first = statistics.median(run.first for run, *_ in found)
        faster, later = (statistics.median(one[index] for one in found) for index in (1, 2))
        lines.append(
            f"| {num_at_once} | {name} | {speed:.1f} | {faster:.2f} | {first:.3f} | {later:.2f} |"
        )
    return lines


def main() -> None:
    """Print one line for each system and number of requests at once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--at-once", type=int, nargs="+", default=[32])
    parser.add_argument("--requests", type=int, nargs="+", default=[96], help="for each of them")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--prompts", type=int, nargs="+", default=[64])
    parser.add_argument("--virtual-tokens", type=int, default=32)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--vllm", help="the Python of an environment with foreword[vllm]")
    parser.add_argument("--gguf", action="append", default=[], help="for llama.cpp")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="its own")
    parser.add_argument("--flash-attention", action="store_true", help="and an f16 cache")
    parser.add_argument("extra", nargs="*", help="options of vLLM, after --")
    arguments = parser.parse_args()
    if arguments.cpu_time:
        global clock
        clock = time.process_time
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    backbone = Backbone.load(arguments.model)
    if len(arguments.prompts) > 1:
        many_prompts.clock = clock
        sizes, requests = sorted(arguments.prompts), requests_for(backbone, arguments)
        found = many_prompts.measure(backbone, sizes, requests, arguments.virtual_tokens)
        print(many_prompts.table(found))
        return
    bare, prompts = requests_for(backbone, arguments), prompts_for(backbone, arguments)
    sources = itertools.cycle(map(PromptSource.of, prompts))
    own = [replace(request, prompt=next(sources)) for request in bare]
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(
        f"{arguments.model}, {backbone.dtype}, {where}, {torch.get_num_threads()} threads"
        f"{', CPU seconds' if arguments.cpu_time else ''}, {arguments.requests} requests, "
        f"{arguments.new_tokens} new tokens each, P={arguments.virtual_tokens}, "
        f"median of {arguments.repeats}\n\n"
        "| at once | system | tokens/s | to bare | first token, s | to bare |\n"
        "|---|---|---|---|---|---|"
    )
    systems = own_systems(backbone, prompts)
    for file in arguments.gguf:
        systems |= llama_systems(backbone, file, arguments)
    with vllm_systems(backbone, arguments) as others:
        for n, num in zip(arguments.at_once, arguments.requests, strict=True):
            lines = compared(systems | others, bare[:num], own[:num], n, arguments.repeats)
            print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
