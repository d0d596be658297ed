"""Answer rows with an engine in this process, without HTTP, and print the ids: one family's trial.

    python one_engine.py MODEL STORE ROWS.json NUM_NEW

Every row is answered behind every prompt of the store, and behind none.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.config import KVTransferConfig

from foreword import SoftPrompt
from foreword.store import Entry, Store
from foreword.vllm_plugin import CONNECTOR, seal, splice


def asked(entry: Entry, prompt: SoftPrompt, ids: list[int], options: Any) -> tuple[Any, Any]:
    """Return what the engine is given for a row behind a prompt, and its settings."""
    salt = seal.salt(prompt.content_hash)
    if prompt.form == "embeddings":
        row = splice.mixed(ids, prompt.embeddings, 0)
        given = {
            "prompt_embeds": row.embeddings, "prompt_token_ids": row.ids,
            "prompt_is_token_ids": row.is_real, "cache_salt": salt,
        }  # fmt: skip
        return given, SamplingParams(**options)
    order = {"entry": str(entry), "content": prompt.content_hash}
    order = seal.sealed(order | {"num_virtual": prompt.num_virtual_tokens})
    row_ids = splice.with_placeholders(ids, prompt.num_virtual_tokens, 0)
    extra = {"kv_transfer_params": {"foreword": order}}
    given = {"prompt_token_ids": row_ids, "cache_salt": salt}
    return given, SamplingParams(**options, extra_args=extra)


def main(model: str, directory: str, rows: list[list[int]], num_new: int) -> None:
    """Print the new ids by name, then by row."""
    os.environ |= {"VLLM_PLUGINS": "foreword", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    os.environ |= {"FOREWORD_PROMPTS": directory}
    seal.ensure_secret()
    engine = LLM(
        model, dtype="float32", enable_prompt_embeds=True, max_model_len=256, max_num_seqs=8,
        block_size=32, enforce_eager=True,
        kv_transfer_config=KVTransferConfig(kv_connector=CONNECTOR, kv_role="kv_both"),
    )  # fmt: skip
    options = {"temperature": 0, "max_tokens": num_new, "ignore_eos": True}
    pairs, names = [], []
    store = Store(directory)
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
    print("FOUND" + json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(Path(sys.argv[3]).read_text()), int(sys.argv[4]))
