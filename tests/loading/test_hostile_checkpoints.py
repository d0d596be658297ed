"""Checkpoints with code in them: none of it runs, also where a terminal would answer yes."""

import builtins
import io
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_media
import tiny_models
import tiny_processors
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_tokenizer import tiny_tokenizer
from transformers import dynamic_module_utils

from foreword import Backbone, SoftPrompt
from foreword.compat.transformers_api import code_refused
from foreword.doctor.stock_peft import peft_findings
from foreword.errors import ForewordError, InputError, UnsupportedError
from foreword.loading import processor
from foreword.model import base_model
from foreword.verification.twin import make_twin

AUTO = {
    "AutoConfig": "evil.Evil",
    "AutoModel": "evil.Evil",
    "AutoModelForCausalLM": "evil.Evil",
    "AutoModelForMultimodalLM": "evil.Evil",
    "AutoTokenizer": ["evil.Evil", "evil.Evil"],
    "AutoProcessor": "evil.Evil",
    "AutoImageProcessor": "evil.Evil",
    "AutoFeatureExtractor": "evil.Evil",
    "AutoVideoProcessor": "evil.Evil",
}


class Runs:
    """Whether a checkpoint's code ran, and what the terminal was asked."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker
        self.questions: list[str] = []

    @property
    def code(self) -> str:
        return f"open({str(self.marker)!r}, 'w').close()\nclass Evil: pass\n"

    def check(self) -> None:
        assert not self.questions, "a terminal would have been asked"
        assert not self.marker.exists(), "code of the checkpoint ran"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    found = Runs(tmp_path / "it-ran")

    def answer(question: str = "") -> str:
        found.questions.append(question)
        return "y"

    monkeypatch.setattr(builtins, "input", answer)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 50))
    return found


def plant(directory: Path, runs: Runs) -> None:
    """Put code wherever a checkpoint may have some."""
    for folder in (directory, directory / "custom_generate"):
        folder.mkdir(exist_ok=True, parents=True)
        for name in ("evil.py", "generate.py", "modeling_llama.py", "__init__.py"):
            (folder / name).write_text(runs.code)


@pytest.fixture
def llama(tmp_path: Path, runs: Runs) -> Path:
    directory = tmp_path / "model"
    tiny_models.build("llama", dtype=torch.float32, vocab_size=263).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    plant(directory, runs)
    return directory


def edit(path: Path, **changes: Any) -> None:
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**found, **changes}))


def tokenizer_of_its_own(directory: Path) -> None:
    edit(directory / "tokenizer_config.json", auto_map=AUTO, tokenizer_class="EvilTokenizer")
    edit(directory / "config.json", model_type="llama", tokenizer_class=None)


def tokenizer_elsewhere(directory: Path) -> None:
    """Name code in a repository, as "REPOSITORY--MODULE.CLASS"."""
    named = {"AutoTokenizer": [None, f"{directory}--evil.Evil"]}
    edit(directory / "tokenizer_config.json", auto_map=named, tokenizer_class="EvilTokenizer")


def tokenizer_in_a_folder(directory: Path) -> None:
    """Have transformers' own class load another tokenizer, to which it passes no arguments on."""
    for name in ("question_encoder_tokenizer", "generator_tokenizer"):
        shutil.copytree(directory, directory.parent / name)
        shutil.move(directory.parent / name, directory / name)
        tokenizer_of_its_own(directory / name)
    edit(directory / "tokenizer_config.json", tokenizer_class="RagTokenizer")
    part = {"model_type": "llama"}
    edit(directory / "config.json", question_encoder=part, generator=part)


def code_of_every_kind(directory: Path) -> None:
    """Name code in every file beside what transformers knows, which it then does not need."""
    for name in ("config", "tokenizer_config", "generation_config", "processor_config"):
        edit(directory / f"{name}.json", auto_map=AUTO)
    edit(directory / "preprocessor_config.json", auto_map=AUTO)


def type_of_its_own(directory: Path) -> None:
    edit(directory / "config.json", auto_map=AUTO, model_type="evil", architectures=["Evil"])


def class_of_its_own(directory: Path) -> None:
    """Name code for the one class that transformers lacks of a type that it knows."""
    edit(directory / "config.json", auto_map=AUTO, model_type="vit", architectures=["Evil"])


class _Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return open, (str(self.marker), "w")


def pickled_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    payload = _Payload(directory.parent / "it-ran")
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps({"lm_head.weight": payload}))


def pickled_weights_of_torch(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    payload = _Payload(directory.parent / "it-ran")
    torch.save({"lm_head.weight": payload}, directory / "pytorch_model.bin")


def pickled_adapter(directory: Path) -> None:
    """Put a LoRA beside the model, which transformers loads with it."""
    config = {"peft_type": "LORA", "target_modules": ["q_proj"], "r": 1}
    edit(directory / "adapter_config.json", base_model_name_or_path=str(directory), **config)
    payload = _Payload(directory.parent / "it-ran")
    torch.save({"x": payload}, directory / "adapter_model.bin")


def chat_template(directory: Path) -> None:
    attack = (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}"
        "{% for c in cycler.__init__.__globals__.os.popen('touch it-ran') %}{% endfor %}"
    )
    (directory / "chat_template.jinja").write_text(attack)


MEMBERS = (
    tokenizer_of_its_own,
    tokenizer_elsewhere,
    tokenizer_in_a_folder,
    code_of_every_kind,
    type_of_its_own,
    class_of_its_own,
    pickled_weights,
    pickled_weights_of_torch,
    pickled_adapter,
    chat_template,
)


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.__name__)
@pytest.mark.parametrize("way", ["backbone", "plugin"])
@pytest.mark.filterwarnings("ignore")
def test_no_code_of_a_checkpoint_runs(
    way: str, member: Callable[[Path], None], llama: Path, runs: Runs
) -> None:
    member(llama)
    try:
        if way == "backbone":
            Backbone.load(str(llama), device="cpu")
        else:
            base_model.fingerprint_of(str(llama))
    except Exception as error:
        # The plugin's caller takes whatever a checkpoint makes transformers raise.
        assert way == "plugin" or (isinstance(error, ForewordError) and "\n" not in str(error))
    runs.check()


@pytest.mark.parametrize("member", [tokenizer_of_its_own, tokenizer_elsewhere])
def test_what_needs_code_of_its_own_is_refused_with_what_to_do(
    member: Callable[[Path], None], llama: Path, runs: Runs
) -> None:
    member(llama)
    with pytest.raises(UnsupportedError, match="its tokenizer is code out of the model's dir") as e:
        Backbone.load(str(llama), device="cpu")
    assert "trust_remote_code=True to Backbone.load" in str(e.value)
    assert Backbone.load(str(llama), device="cpu", tokenizer=tiny_tokenizer()).tokenizer
    runs.check()


def test_only_the_caller_can_trust_a_checkpoints_code(llama: Path, runs: Runs) -> None:
    tokenizer_of_its_own(llama)
    with pytest.raises(UnsupportedError):
        Backbone.load(str(llama), device="cpu", trust_remote_code=None)
    runs.check()
    with pytest.raises(ForewordError):  # what it holds is no tokenizer
        Backbone.load(str(llama), device="cpu", trust_remote_code=True)
    assert runs.marker.exists() and not runs.questions


def test_pickled_weights_are_refused_in_one_line(llama: Path, runs: Runs) -> None:
    pickled_weights_of_torch(llama)
    with pytest.raises(InputError, match="pickle that is damaged or holds more than tensors"):
        Backbone.load(str(llama), device="cpu")
    runs.check()


def test_weights_cut_short_are_refused_in_one_line(llama: Path) -> None:
    path = llama / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="transformers cannot load it"):
        Backbone.load(str(llama), device="cpu")


@pytest.mark.parametrize("names_its_class", [True, False])
def test_no_code_of_a_processor_runs(names_its_class: bool, tmp_path: Path, runs: Runs) -> None:
    """Where no file names its class, transformers' own does not pass the refusal on."""
    made = tiny_processors.processor("qwen2_audio")
    made.save_pretrained(tmp_path / "model")
    plant(tmp_path / "model", runs)
    for path in (tmp_path / "model").glob("*.json"):
        if path.stem in ("processor_config", "tokenizer_config", "preprocessor_config"):
            changes = {} if names_its_class else {"processor_class": None}
            edit(path, auto_map=AUTO, **changes)
    edit(tmp_path / "model" / "tokenizer_config.json", tokenizer_class="EvilTokenizer")
    parts = json.loads((tmp_path / "model" / "processor_config.json").read_text())
    extractor = parts.get("feature_extractor") or {}
    kind = {"auto_map": AUTO, "feature_extractor_type": "Evil"}
    edit(tmp_path / "model" / "processor_config.json", feature_extractor=extractor | kind)
    edit(tmp_path / "model" / "preprocessor_config.json", **kind)
    config = tiny_media.build("qwen2_audio", vocabulary=made.tokenizer).config
    config.save_pretrained(tmp_path / "model")
    with pytest.warns(UserWarning, match="code out of the model's directory"):
        assert processor.load(str(tmp_path / "model"), config, None) is None
    runs.check()


def test_a_processor_of_another_class_than_its_types_is_found(tmp_path: Path) -> None:
    made = tiny_processors.processor("qwen2_audio")
    made.save_pretrained(tmp_path)
    config = tiny_media.build("glmasr").config  # whose own class is another
    assert type(processor.load(str(tmp_path), config, None)) is type(made)


def test_no_code_beside_an_adapter_runs(tmp_path: Path, llama: Path, runs: Runs) -> None:
    tokenizer_of_its_own(llama)
    backbone = Backbone(tiny_models.build("llama", dtype=torch.float32), name="tiny")
    SoftPrompt.from_embeddings(torch.randn(4, backbone.capabilities.hidden_size)).save(tmp_path)
    edit(
        tmp_path / "adapter_config.json",
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="x",
        tokenizer_name_or_path=str(llama),
        tokenizer_kwargs={"trust_remote_code": True},
        inference_mode=False,
    )
    peft_findings(backbone, tmp_path, num_new=2)
    runs.check()


def test_no_code_of_a_part_runs_while_a_twin_is_built(llama: Path, runs: Runs) -> None:
    """A configuration's part may name code for a class that transformers lacks of it."""
    made = tiny_media.build("glm4v").config
    config = transformers.LlavaConfig(text_config=made.text_config)
    config.vision_config = transformers.RagConfig(
        question_encoder={"model_type": "llama"}, generator={"model_type": "llama"}
    )
    config.vision_config.auto_map = {"AutoModel": f"{llama}--evil.Evil"}
    with pytest.raises(ValueError, match="trust_remote_code"):
        make_twin(transformers.LlavaForConditionalGeneration, config)
    runs.check()


def test_asking_is_as_before_after_a_load(llama: Path) -> None:
    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    with pytest.raises(ValueError), code_refused():
        raise ValueError
    assert dynamic_module_utils.TIME_OUT_REMOTE_CODE == before > 0


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"num_attention_heads": 0}, "transformers cannot load it"),
        ({"vocab_size": "x"}, "Validation error for field 'vocab_size': TypeError: Field"),
        ({"quantization_config": {"quant_method": "awq"}}, "transformers cannot load it"),
        ({"pad_token_id": 999_999}, "transformers cannot load it"),
        ({"_attn_implementation": "flash_attention_2"}, "transformers cannot load it"),
    ],
)
def test_whatever_transformers_raises_is_one_line(
    changes: dict[str, Any], part: str, llama: Path
) -> None:
    edit(llama / "config.json", **changes)
    with pytest.raises(InputError, match=part) as error:
        Backbone.load(str(llama), device="cpu")
    assert "\n" not in str(error.value)


def test_a_directory_without_a_configuration_is_named(llama: Path) -> None:
    (llama / "config.json").unlink()
    with pytest.raises(InputError, match=r"no config\.json"):
        Backbone.load(str(llama), device="cpu")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"num_hidden_layers": 4}, r"has no model\.layers\.3\..* \(9 such weights\)"),
        ({"attention_bias": True}, r"has no model\.layers\.0\.self_attn\.k_proj\.bias"),
        ({"vocab_size": 300}, r"has lm_head\.weight of shape \[263, 32\], and .* says \[300, 32\]"),
    ],
)
def test_weights_that_a_checkpoint_lacks_are_not_made_up(
    changes: dict[str, Any], part: str, llama: Path
) -> None:
    edit(llama / "config.json", **changes)
    with pytest.raises(InputError, match=part):
        Backbone.load(str(llama), device="cpu")


def test_a_head_that_a_checkpoint_lacks_is_not_made_up(llama: Path) -> None:
    tensors = load_file(llama / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, llama / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"has no lm_head\.weight; transformers would draw"):
        Backbone.load(str(llama), device="cpu")


@pytest.mark.parametrize("file", ["/dev/zero", "../other/model.safetensors", "zero"])
def test_an_index_of_weights_leads_to_files_of_its_own_directory(file: str, llama: Path) -> None:
    names = load_file(llama / "model.safetensors")
    (llama / "model.safetensors").unlink()
    (llama / "zero").symlink_to("/dev/zero")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, file)}
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="no file of weights in the model's own directory"):
        Backbone.load(str(llama), device="cpu")
