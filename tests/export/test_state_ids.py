"""Ids of llama.cpp states: two prompts of one folder never have the same, and no text begins so."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone
from foreword.errors import InputError
from foreword.export import chat_templates, state_ids

TOKENIZER = tiny_tokenizer()  # three control tokens


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    model = tiny_models.build("llama", dtype=torch.float32, vocab_size=len(TOKENIZER))
    return Backbone(model, TOKENIZER, name="tiny")


def hash_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def write(path: Path, ids: Any, content_hash: str) -> None:
    path.write_bytes(b"state")
    facts = {"format": state_ids.FORMAT, "ids": ids, "content_hash": content_hash,
             "base": {"sha256": "0"}}  # fmt: skip
    Path(f"{path}.json").write_text(json.dumps(facts), encoding="utf-8")


@pytest.mark.parametrize(("num_virtual", "num_prompts"), [(3, 6), (5, 12), (32, 8)])
def test_prompts_of_one_folder_have_ids_of_their_own(
    num_virtual: int, num_prompts: int, backbone: Backbone, tmp_path: Path
) -> None:
    known: list[list[int]] = []
    for number in range(num_prompts):
        path = tmp_path / f"{number}.bin"
        ids = state_ids.choose(backbone, hash_of(number), num_virtual, path)
        assert len(ids) == num_virtual and set(ids) <= {0, 1, 2}
        assert ids not in known
        known.append(ids)
        write(path, ids, hash_of(number))
        state_ids.check_alone(path, state_ids.read_facts(path))
        assert state_ids.choose(backbone, hash_of(number), num_virtual, path) == ids


def test_ids_that_begin_another_prompts_are_not_taken(backbone: Backbone, tmp_path: Path) -> None:
    long = state_ids.choose(backbone, hash_of(1), 9, tmp_path / "long.bin")
    write(tmp_path / "long.bin", long, hash_of(1))
    for number in range(2, 6):
        short = state_ids.choose(backbone, hash_of(number), 3, tmp_path / "short.bin")
        assert short != long[:3]


def test_too_few_orders_are_refused(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 virtual tokens have no order of the base's 3 control"):
        for number in range(4):
            ids = state_ids.choose(backbone, hash_of(number), 1, tmp_path / f"{number}.bin")
            write(tmp_path / f"{number}.bin", ids, hash_of(number))


def test_no_text_of_the_base_begins_with_them(backbone: Backbone, tmp_path: Path) -> None:
    begun = {TOKENIZER(text).input_ids[0] for text in chat_templates.base_texts(backbone)}
    assert begun & {0, 1, 2}
    for number in range(20):
        ids = state_ids.choose(backbone, hash_of(number), 4, tmp_path / "a.bin")
        assert ids[0] not in begun | {TOKENIZER.bos_token_id}


def test_the_same_ids_beside_each_other_are_refused_where_they_are_restored(
    tmp_path: Path,
) -> None:
    write(tmp_path / "a.bin", [0, 1, 2], "a")
    write(tmp_path / "b.bin", [0, 1], "b")
    write(tmp_path / "same.bin", [0, 1, 2], "a")
    (tmp_path / "deep.bin").write_text("")
    (tmp_path / "deep.bin.json").write_text("[" * 200_000, encoding="utf-8")
    with pytest.raises(InputError, match=r"a.bin and .*b.bin are states of two prompts"):
        state_ids.check_alone(tmp_path / "a.bin", state_ids.read_facts(tmp_path / "a.bin"))
    (tmp_path / "b.bin").unlink()
    state_ids.check_alone(tmp_path / "a.bin", state_ids.read_facts(tmp_path / "a.bin"))


@pytest.mark.parametrize(
    "text", ["[" * 200_000, "{", "[]", "5", '{"ids": 5, "base": {"sha256": "0"}}', '{"ids": [1]}',
             '{"ids": [true], "base": {"sha256": "0"}}', '{"ids": {"1": 2}, "base": []}'],
)  # fmt: skip
def test_a_sidecar_that_is_none_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.bin.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="a.bin.json: ") as caught:
        state_ids.read_facts(tmp_path / "a.bin")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600
