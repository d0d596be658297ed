"""Serving: the bare model, 64 prompts, and stock PEFT called per request, in one process run.

    python benchmarks/serving.py [--repeats 3] [--cpu-time] [--vllm URL --vllm-model NAME]
                                 [--gguf FILE ... --threads N]
    python benchmarks/serving.py --prompts 10 1000 10000   # see many_prompts.py

A closed loop: so many requests are under way at any time, each of a few sentences, and the next one
comes when one ends. The engine is the server's; nothing is cached between runs but, where "warm" is
said, the prompts' own states. A first token's time is the mean over the requests: they are equally
long, end together, and wait for whole steps of the engine, by which a median jumps. Systems take
turns, so that a noisy machine is noisy for all; figures are medians of the rounds. Where others
work on the machine too, `--cpu-time` counts this process's own seconds, which tell what the work
costs but not how long it waits. With `--vllm`, an OpenAI-compatible server at that address gets the
same requests; with `--gguf`, so does llama.cpp on each of these files, in this process.
"""

import argparse
import copy
import itertools
import json
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import many_prompts
import torch
from peft import PeftModel
from transformers.utils import logging

from foreword import Backbone, SoftPrompt
from foreword.engine.engine import Engine
from foreword.engine.limits import EngineLimits
from foreword.engine.request import Handle, PromptSource, Request
from foreword.engine.serving_engine import ServingEngine

clock: Callable[[], float] = time.perf_counter
TEXT = Path(__file__).parent.parent / "README.md"


@dataclass(frozen=True)
class Run:
    """One run's figures: new tokens per second, and mean seconds to the first token."""

    speed: float
    first: float


def requests_for(backbone: Backbone, arguments: argparse.Namespace) -> list[Request]:
    """Return requests of real text, of 20 to 100 tokens, that end by length."""
    ids = backbone.tokenizer(TEXT.read_text(), verbose=False)["input_ids"]
    found, start = [], 0
    for length in itertools.islice(itertools.cycle(range(20, 101, 7)), arguments.requests):
        start = (start + 37) % (len(ids) - 101)
        new = arguments.new_tokens
        found.append(Request(tuple(ids[start : start + length]), max_new_tokens=new))
    return found


def prompts_for(backbone: Backbone, arguments: argparse.Namespace) -> list[SoftPrompt]:
    """Return different prompts, of embeddings of random vocabulary."""
    generator = torch.Generator().manual_seed(0)
    shape = arguments.virtual_tokens, backbone.capabilities.vocab_size
    return [
        SoftPrompt.from_embeddings(
            backbone.embed(torch.randint(3, shape[1], shape[:1], generator=generator)).float()
        )
        for _ in range(arguments.prompts)
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


def through_http(url: str, model: str, requests: Sequence[Request], num_at_once: int) -> Run:
    """Run the same closed loop through an OpenAI-compatible server."""
    first: list[float] = []
    lock = threading.Lock()

    def ask(request: Request) -> None:
        body = {
            "model": model, "prompt": list(request.ids), "max_tokens": request.max_new_tokens,
            "temperature": 0, "ignore_eos": True, "stream": True,
        }  # fmt: skip
        kind = {"content-type": "application/json"}
        started, seconds = clock(), None
        asked = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), kind)
        with urllib.request.urlopen(asked) as answer:
            for line in answer:
                if line.startswith(b"data: {") and seconds is None:
                    seconds = clock() - started
        assert seconds is not None
        with lock:
            first.append(seconds)

    begun = clock()
    with ThreadPoolExecutor(num_at_once) as pool:
        list(pool.map(ask, requests))
    num_new = sum(request.max_new_tokens for request in requests)
    return Run(num_new / (clock() - begun), statistics.mean(first))


def systems_for(backbone: Backbone, arguments: argparse.Namespace) -> dict[str, Callable[[], Run]]:
    """Return what is compared."""
    bare = requests_for(backbone, arguments)
    prompts = prompts_for(backbone, arguments)
    cycle = itertools.cycle(map(PromptSource.of, prompts))
    prompted = [replace(request, prompt=next(cycle)) for request in bare]
    limits = EngineLimits(max_rows=arguments.at_once)
    warm = Engine(backbone, limits)
    for source in map(PromptSource.of, prompts):
        warm.submit(Request((1,), source, max_new_tokens=0))
        warm.run()
    systems = {
        "bare": lambda: through_engine(Engine(backbone, limits), bare, arguments.at_once),
        f"{arguments.prompts} prompts, warm": lambda: through_engine(
            _only_prompts(warm), prompted, arguments.at_once
        ),
        f"{arguments.prompts} prompts, cold": lambda: through_engine(
            Engine(backbone, limits), prompted, arguments.at_once
        ),
    }
    if arguments.peft_requests:
        directory = tempfile.mkdtemp()
        prompts[0].save(directory)
        peft = PeftModel.from_pretrained(copy.deepcopy(backbone.model), directory)
        systems["stock PEFT, per request"] = lambda: through_peft(
            peft, bare[: arguments.peft_requests]
        )
    for file in arguments.gguf:
        systems |= through_llama_cpp(backbone, file, bare, prompted, arguments)
    if arguments.vllm:
        systems["server at --vllm"] = lambda: through_http(
            arguments.vllm, arguments.vllm_model, bare, arguments.at_once
        )
    return systems


def through_llama_cpp(
    backbone: Backbone,
    file: str,
    bare: Sequence[Request],
    prompted: Sequence[Request],
    arguments: argparse.Namespace,
) -> dict[str, Callable[[], Run]]:
    """Return a GGUF file's runs; what is kept of one is not there in the next."""
    from foreword.engine_llama.engine import LlamaEngine
    from foreword.llama_cpp.model import ContextOptions, LlamaModel

    model, name = LlamaModel(file), Path(file).stem
    limits = EngineLimits(max_rows=arguments.at_once, max_slots=16384)
    options = ContextOptions(
        cache_type="f16" if arguments.flash_attention else "f32",
        has_flash_attention=arguments.flash_attention,
        num_threads=arguments.threads,
    )

    def run(requests: Sequence[Request]) -> Run:
        engine = LlamaEngine(model, backbone.capabilities, limits, options)
        try:
            known = {one.prompt.content_hash: one.prompt for one in requests if one.prompt}
            for source in known.values():
                engine.submit_all([Request((1,), source, max_new_tokens=0)])
            engine.run()
            return through_engine(engine, requests, arguments.at_once)
        finally:
            engine.close()

    return {
        f"llama.cpp, {name}, bare": lambda: run(bare),
        f"llama.cpp, {name}, {arguments.prompts} prompts, warm": lambda: run(prompted),
    }


def _only_prompts(engine: Engine) -> Engine:
    """Forget the conversations of the run before."""
    for known in [known for known in engine.prefix_cache._entries if len(known.ids)]:
        engine.prefix_cache._drop(known)
    return engine


def main() -> None:
    """Print one line for each system."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=32)
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--prompts", type=int, nargs="+", default=[64])
    parser.add_argument("--virtual-tokens", type=int, default=32)
    parser.add_argument("--peft-requests", type=int, default=6)
    parser.add_argument("--cpu-time", action="store_true", help="not with --vllm")
    parser.add_argument("--vllm", help="address of another server, as http://127.0.0.1:8000")
    parser.add_argument("--vllm-model", default="smollm2-135m")
    parser.add_argument("--gguf", action="append", default=[], help="for llama.cpp")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="its own")
    parser.add_argument("--flash-attention", action="store_true", help="and an f16 cache")
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
    [arguments.prompts] = arguments.prompts
    systems = systems_for(backbone, arguments)
    runs: dict[str, list[Run]] = {name: [] for name in systems}
    for _ in range(arguments.repeats):
        for name, run in systems.items():
            runs[name].append(run())
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(
        f"{arguments.model}, {backbone.dtype}, {where}, {torch.get_num_threads()} threads"
        f"{', CPU seconds' if arguments.cpu_time else ''}, {arguments.at_once} requests at once, "
        f"{arguments.requests} in all, "
        f"{arguments.new_tokens} new tokens each, P={arguments.virtual_tokens}, "
        f"median of {arguments.repeats}\n\n"
        "| system | tokens/s | to bare | first token, s | to bare |\n|---|---|---|---|---|"
    )
    # A machine's speed drifts: each run is compared with the bare model's of its own round.
    for name, found in runs.items():
        pairs = list(zip(found, runs["bare"], strict=True))
        speed = statistics.median(run.speed for run in found)
        first = statistics.median(run.first for run in found)
        faster = statistics.median(run.speed / bare.speed for run, bare in pairs)
        later = statistics.median(run.first / bare.first for run, bare in pairs)
        print(f"| {name} | {speed:.1f} | {faster:.2f} | {first:.3f} | {later:.2f} |")


if __name__ == "__main__":
    main()
