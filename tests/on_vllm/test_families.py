"""Both forms on every family that the plugin serves, in an engine without HTTP."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import served

from foreword import Backbone
from foreword.store import Store
from foreword.vllm_plugin.refusals import SHOWN

NUM_NEW = 10
CHANGES: dict[str, dict[str, Any]] = {"mistral": {"sliding_window": None}}


@pytest.mark.parametrize("family", SHOWN)
def test_a_family_answers_as_the_oracle(tmp_path: Path, family: str) -> None:
    model = served.build(family, **CHANGES.get(family, {}))
    directory = served.save(model, tmp_path / "model")
    backbone = Backbone(model, served.TOKENIZER, name="tiny")
    store = Store(tmp_path / "store")
    prompts: dict[str, Any] = {"base": None}
    for form, length in itertools.product(("embeddings", "key_values"), (20, 32)):
        name = f"{form[:3]}{length}"
        prompts[name] = served.add(
            store, name, served.prompt(backbone, form, length, length), tmp_path
        )
    rows = [served.ids_of(9), served.ids_of(40)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    script = Path(__file__).parent / "one_engine.py"
    words = str(directory), str(store.directory), str(tmp_path / "rows.json"), str(NUM_NEW)
    done = subprocess.run(
        [sys.executable, str(script), *words],
        env=served.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [one for one in done.stdout.splitlines() if one.startswith("FOUND")]
    found = json.loads(line.removeprefix("FOUND"))
    for name, one in prompts.items():
        assert found[name] == [served.expected(model, one, ids, NUM_NEW) for ids in rows], name
