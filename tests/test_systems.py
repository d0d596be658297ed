"""The systems that the project was made for: each example runs on its architecture in miniature."""

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, SoftPrompt
from foreword.errors import InputError, UnsupportedError

FOLDER = Path(__file__).parents[1] / "examples" / "systems"
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.stem not in ("system", "tiny"))


def run(path: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [path.name, "tiny", *options])
    runpy.run_path(str(path), run_name="__main__")


def test_each_system_has_its_example() -> None:
    assert [path.stem for path in SCRIPTS] == [
        "autoglm_phone", "glm_4_6v", "glm_asr_nano", "glm_tts", "hunyuan_ocr", "kimi_k2_thinking",
        "llama_3_1", "spark_formalizer",
    ]  # fmt: skip


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_training_lowers_the_loss_and_cached_is_uncached(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(path, monkeypatch, "--output", str(tmp_path))
    said = capsys.readouterr().out
    found = re.search(r"loss ([\d.]+) -> ([\d.]+)", said)
    assert found and float(found[2]) < 0.8 * float(found[1])
    assert "the same" in said or "sound tokens" in said
    assert SoftPrompt.load(tmp_path).num_virtual_tokens == 16


def test_a_sound_model_speaks_between_twice_and_twenty_times_the_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(FOLDER / "glm_tts.py", monkeypatch)
    found = re.search(r"(\d+) sound tokens: (.*)", capsys.readouterr().out)
    assert found and 2 * len("good") <= int(found[1]) <= 20 * len("good")
    assert not re.sub(r"<\|(speech_\d+|end_of_audio)\|>", "", found[2])


def test_repetition_aware_sampling_is_one_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    sampler = runpy.run_path(str(FOLDER / "glm_tts.py"))["RepetitionAware"](top_p=0.6, window=4)
    scores = torch.tensor([[0.5, 0.3, 0.2]]).log()
    plain = sampler(torch.tensor([[7, 7, 7, 7]]) % 3, scores).exp()  # token 1 is frequent
    nucleus = torch.tensor([0.5, 0.3]) / 0.8
    again = nucleus[1] * torch.tensor([0.5, 0.3, 0.2])
    expected = torch.tensor([nucleus[0], 0.0, 0.0]) + again
    torch.testing.assert_close(plain[0], expected)


def checkpoint(directory: Path, family: str = "kimi_k2", **changes: Any) -> Path:
    """Write a checkpoint whose configuration says other things of itself."""
    model = tiny_models.build(family, dtype=torch.float32, vocab_size=len(tiny_tokenizer()))
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return directory


CODE = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}


def test_a_type_of_its_own_is_loaded_as_the_class_that_it_names(tmp_path: Path) -> None:
    backbone = Backbone.load(str(checkpoint(tmp_path, model_type="kimi_k2", auto_map=CODE)))
    assert isinstance(backbone.model, transformers.DeepseekV3ForCausalLM)
    assert backbone.capabilities.is_tested


def test_a_class_that_transformers_lacks_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    named = checkpoint(tmp_path, architectures=["SparkModel"], model_type="spark", auto_map=CODE)
    with pytest.raises(UnsupportedError, match="no model of type 'spark' \\(SparkModel\\)"):
        Backbone.load(str(named))


def test_a_tokenizer_that_cannot_be_loaded_may_be_given(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path, family="llama")
    for path in directory.glob("token*"):
        path.unlink()
    with pytest.raises(InputError, match="transformers cannot load it"):
        Backbone.load(str(directory))
    tokenizer = tiny_tokenizer()
    assert Backbone.load(str(directory), tokenizer=tokenizer).tokenizer is tokenizer
