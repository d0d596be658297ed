"""Where a model goes is checked before any of it is read, and what is given counts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone
from foreword.errors import ForewordError
from foreword.loading import checkpoint


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("model")
    model = tiny_models.build("llama", dtype=torch.float32, vocab_size=263)
    model.to(torch.float16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an accelerator that is not there": ({"device": "cuda:63"}, "got 'cuda:63'"),
    "no device": ({"device": "foo"}, "device: expected 'auto', 'cpu' or an accelerator"),
    "None": ({"device": None}, "device: expected 'auto', 'cpu' or an accelerator"),
    "no numbers": ({"device": "meta"}, "device='meta'"),
    "mapped to disk": ({"device_map": {"": "disk"}}, "device_map: layers on 'disk'"),
    "mapped to meta": ({"device_map": "meta"}, "device_map: layers on 'meta'"),
    "two places": ({"device": "cpu", "device_map": {"": "cpu"}}, "both say where it goes"),
    "two dtypes": ({"dtype": "float32", "torch_dtype": "float64"}, "two names of one thing"),
}


@pytest.mark.parametrize(("options", "part"), WRONG.values(), ids=WRONG)
def test_a_wrong_place_is_refused_before_anything_is_read(
    options: dict[str, Any], part: str, directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "load", lambda *_: pytest.fail("it was read"))
    with pytest.raises(ForewordError) as caught:
        Backbone.load(directory, **options)
    assert part in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize("model", [5, None, [], tiny_models.shared("llama")], ids=type)
def test_what_is_no_name_of_a_model(model: Any) -> None:
    with pytest.raises(ForewordError, match="model: expected a name, a directory") as caught:
        Backbone.load(model)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"torch_dtype": torch.float64}, torch.float64),
        ({"torch_dtype": "float16"}, torch.float16),
        ({"device_map": None}, torch.float32),
        ({"device_map": {"": "cpu"}, "device": "auto", "dtype": "float64"}, torch.float64),
    ],
)
def test_what_is_given_counts(directory: str, options: dict[str, Any], expected: Any) -> None:
    loaded = Backbone.load(directory, **({"device": "cpu"} | options))
    assert loaded.dtype == expected and loaded.device.type == "cpu"


def test_layers_in_no_memory_are_refused_once_they_are_found(
    directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load: Callable[..., Any] = checkpoint.load

    def partly(*given: Any) -> Any:
        model, *others = load(*given)
        model.model.layers[1].to("meta")
        return model, *others

    monkeypatch.setattr(checkpoint, "load", partly)
    with pytest.raises(ForewordError, match=r"device_map leaves model\.layers\.1.* on no device"):
        Backbone.load(directory, device_map="auto")
