"""What does not start, and says why."""

from pathlib import Path

import pytest
import served
import vllm.plugins

from foreword.errors import DependencyError
from foreword.vllm_plugin import versions


def test_vllm_does_not_start_at_another_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "foreword")
    monkeypatch.setattr(vllm.plugins, "plugins_loaded", False)
    monkeypatch.setattr(versions, "TESTED", ("0.31",))
    with pytest.raises(DependencyError, match=r"vLLM 0\.32.* is outside the tested range, 0\.31"):
        vllm.plugins.load_general_plugins()


def test_an_engine_whose_layers_have_a_window_does_not_start(tmp_path: Path) -> None:
    directory = served.save(served.build("mistral"), tmp_path / "model")
    with (
        pytest.raises(AssertionError),
        served.serving(directory, tmp_path / "store", tmp_path / "log"),
    ):
        pass
    assert (
        "mistral has layers with a window or a recurrent state: not shown"
        in (tmp_path / "log").read_text()
    )
