"""Answer rows with engines in this process, without HTTP, and print the ids: one family's trial.

    python one_engine.py DIRECTORY...

Each directory holds `model`, `store` and `rows.json`. Every row is answered behind every prompt of
the store, and behind none; the engines follow each other, for starting Python takes longest.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer import ensure_kv_transfer_shutdown
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

from foreword import SoftPrompt
from foreword.prompt.store import Entry, Store
from foreword.vllm_plugin import CONNECTOR, placeholders, signing

NUM_NEW = 10


def asked(entry: Entry, prompt: SoftPrompt, ids: list[int], options: Any) -> tuple[Any, Any]:
    """Return what the engine is given for a row behind a prompt, and its settings."""
    salt = signing.salt(prompt.content_hash)
    if prompt.form == "embeddings":
        row = placeholders.mixed(ids, prompt.embeddings, 0)
        given = {
            "prompt_embeds": row.embeddings, "prompt_token_ids": row.ids,
            "prompt_is_token_ids": row.is_real, "cache_salt": salt,
        }  # fmt: skip
        return given, SamplingParams(**options)
    order = {"entry": str(entry), "content": prompt.content_hash}
    order = signing.sealed(order | {"num_virtual": prompt.num_virtual_tokens})
    row_ids = placeholders.with_placeholders(ids, prompt.num_virtual_tokens, 0)
    extra = {"kv_transfer_params": {"foreword": order}}
    given = {"prompt_token_ids": row_ids, "cache_salt": salt}
    return given, SamplingParams(**options, extra_args=extra)


def answers(engine: LLM, store: Store, rows: list[list[int]]) -> dict[str, list[list[int]]]:
    """Return the new ids by name, then by row."""
    options = {"temperature": 0, "max_tokens": NUM_NEW, "ignore_eos": True}
    pairs, names = [], []
    for ids in rows:
        pairs.append(({"prompt_token_ids": ids}, SamplingParams(**options)))
        names.append("base")
        for name in store.names():
            entry = store.resolve(name)
            pairs.append(asked(entry, SoftPrompt.load(entry.path), ids, options))
            names.append(name)
    given, settings = zip(*pairs, strict=True)
    outputs = engine.generate(list(given), list(settings), use_tqdm=False)
    found: dict[str, list[list[int]]] = {}
    for name, output in zip(names, outputs, strict=True):
        found.setdefault(name, []).append(list(output.outputs[0].token_ids))
    return found


def trial(directory: Path) -> dict[str, list[list[int]]]:
    """Start an engine, ask it, and end it."""
    order = KVTransferConfig(
        kv_connector=CONNECTOR,
        kv_role="kv_both",
        kv_connector_extra_config={"prompts": str(directory / "store")},
    )
    engine = LLM(
        str(directory / "model"), dtype="float32", enable_prompt_embeds=True, max_model_len=256,
        max_num_seqs=8, block_size=32, enforce_eager=True, kv_transfer_config=order,
    )  # fmt: skip
    rows = json.loads((directory / "rows.json").read_text())
    found = answers(engine, Store(directory / "store"), rows)
    engine.llm_engine.engine_core.shutdown()
    del engine
    ensure_kv_transfer_shutdown()
    cleanup_dist_env_and_memory()
    return found


if __name__ == "__main__":
    os.environ |= {"VLLM_PLUGINS": "foreword", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    signing.ensure_secret()
    for word in sys.argv[1:]:
        print("FOUND" + json.dumps([word, trial(Path(word))]), flush=True)
