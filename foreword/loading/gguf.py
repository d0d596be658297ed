"""GGUF conversion: a GGUF file as a float32 checkpoint with the model's own tokenizer.

In: a file. Out: a directory that transformers loads like any other, or a refusal where the result
would not be the same model: an unknown pre-tokenizer, rotary scaling that transformers drops,
missing weights. Knows no model names and no cache folder.
"""

import io
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from foreword.errors import InputError, UnsupportedError
from foreword.loading.gguf_header import (
    ORIGINAL,
    Header,
    read_header,
    refuse_inexact,
    refuse_other_model,
)
from foreword.loading.gguf_tokenizer import (
    check_tokenizer_known,
    load_tokenizer,
    unsupported_family,
)

ProgressCallback = Callable[[str], None]


def convert(gguf_path: Path, scratch: Path, progress: ProgressCallback | None) -> Path:
    """Convert a GGUF file into a new directory under `scratch`, and return it."""
    tell(progress, f"converting {gguf_path.name} to a float32 checkpoint")
    # transformers also reads what lies beside a GGUF file, so it gets a folder of its own
    alone = scratch / "alone" / gguf_path.name
    alone.parent.mkdir()
    _copy(gguf_path, alone)
    header = read_header(alone, gguf_path)
    check_tokenizer_known(header)
    refuse_inexact(header)
    import transformers  # noqa: F401  # here, as its log handler keeps the stderr that it finds

    made = scratch / "model"
    with redirect_stderr(io.StringIO()):  # transformers' progress bars cannot be switched off
        model = _load_model(alone, header)
        tokenizer = load_tokenizer(alone, header)
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        _refuse_inexact_reload(tokenizer, made, header)
    for weights in made.glob("*.safetensors"):
        shutil.copymode(made / "config.json", weights)  # safetensors writes for the owner only
    return made


def stamp_of(path: Path) -> list[int]:
    """Return numbers that change with every write to a file; the change time cannot be set back."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _copy(path: Path, target: Path) -> None:
    """Copy a GGUF file, which is read by mapping it: one that shrinks then ends the process."""
    try:
        stamp = stamp_of(path)
        shutil.copyfile(path, target)
        is_same = stamp_of(path) == stamp
    except FileNotFoundError:
        raise InputError(f"model file {path} does not exist") from None
    except (IsADirectoryError, PermissionError, shutil.SpecialFileError) as error:
        raise InputError(f"{path} is not a GGUF file that can be read ({error})") from error
    if not is_same:
        raise InputError(f"model file {path} changed while it was converted; try again")


def _load_model(gguf: Path, header: Header) -> Any:
    """Load the weights, dense in float32, as a model that can be saved."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    with unsupported_family(header):
        model, loading = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
        )
    if missing := sorted(loading["missing_keys"]):
        raise UnsupportedError(
            f"{header.path} leaves {len(missing)} weights of its {header.family!r} model unset, "
            f"{missing[0]} for one; {ORIGINAL}"
        )
    refuse_other_model(header, model)
    # The weights are dense, but the flags of a quantised model would forbid saving and training.
    model.hf_quantizer = None
    model.config.__dict__.pop("quantization_config", None)
    model.config.__dict__.pop("_model_name_or_path", None)  # the GGUF's title: not a name
    bos, eos, pad = (header.of_tokenizer(f"{name}_token_id") for name in ("bos", "eos", "padding"))
    eot = header.of_tokenizer("eot_token_id")  # ends a turn, where that is not the end of the text
    model.generation_config = GenerationConfig(
        bos_token_id=bos,
        eos_token_id=eos if eot in (None, eos) else [eos, eot],
        pad_token_id=eos if pad is None else pad,
    )
    return model


def _refuse_inexact_reload(tokenizer: Any, directory: Path, header: Header) -> None:
    """Refuse a tokenizer that transformers saves or loads as another one."""
    from transformers import AutoTokenizer

    probe = "Steps:\n\n1. a  12, it's 3.14\n\t\u00e9 e\u0301 \u65e5\u672c \U0001f642  end "
    again = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    if again(probe)["input_ids"] != tokenizer(probe)["input_ids"]:
        raise UnsupportedError(
            f"{header.path}: transformers loads the tokenizer of this {header.family!r} model "
            f"differently from how it was saved; {ORIGINAL}"
        )


def tell(progress: ProgressCallback | None, line: str) -> None:
    if progress is not None:
        progress(line)
