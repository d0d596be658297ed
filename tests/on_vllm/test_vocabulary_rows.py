"""A checkpoint with prompts in its vocabulary, on vLLM without foreword's plugin."""

import json
import os
import subprocess
import sys
from pathlib import Path

import oracle
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, EncodingConfig, SoftPrompt
from foreword.chat import encode
from foreword.export import checkpoint

NUM_NEW = 8
TEXTS = ("say a", "what is the longer of both?")
# The package is not among what this process can import.
ANSWER = """
import json, sys
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    assert "foreword" not in sys.modules
    engine = LLM(sys.argv[1], dtype="float32", max_model_len=128, enforce_eager=True)
    settings = SamplingParams(temperature=0, max_tokens=int(sys.argv[3]), ignore_eos=True)
    found = {}
    for name in ("home", "other", "base"):
        asked = [[{"role": "user", "content": text}] for text in json.loads(sys.argv[2])]
        answers = engine.chat(asked, settings, chat_template_kwargs={"prompt": name})
        found[name] = [list(one.outputs[0].token_ids) for one in answers]
    print("FOUND", json.dumps(found))
"""


def test_plain_vllm_answers_as_the_oracle(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_models.build(
        "llama", dtype=torch.float32, vocab_size=len(tokenizer), eos_token_id=2, head_dim=32
    )
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    backbone = Backbone.load(str(tmp_path / "base"))
    facts = {"base": {"fingerprint": backbone.fingerprint()}}
    prompts = {
        name: SoftPrompt.from_embeddings(tiny_models.embeddings(model, 5, seed), facts=facts)
        for seed, name in enumerate(("home", "other"))
    }
    checkpoint.export(prompts, str(tmp_path / "base"), tmp_path / "out")
    script = tmp_path / "answer.py"
    script.write_text(ANSWER)
    variables = {**os.environ, "VLLM_PLUGINS": "", "VLLM_CPU_KVCACHE_SPACE": "1"}
    arguments = [str(tmp_path / "out"), json.dumps(TEXTS), str(NUM_NEW)]
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(one for one in done.stdout.splitlines() if one.startswith("FOUND "))
    found = json.loads(line.removeprefix("FOUND "))
    for name in ("home", "other", "base"):
        for text, ids in zip(TEXTS, found[name], strict=True):
            row = encode(backbone, [{"role": "user", "content": text}], EncodingConfig.saved({}))[0]
            prompt = prompts.get(name)
            assert ids == oracle.greedy(backbone.model, prompt, torch.tensor(row), NUM_NEW)
