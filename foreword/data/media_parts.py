"""Media loading: the images and sounds of messages, in memory for a processor.

In: messages whose parts name a local file, or hold its bytes or its decoded content. Out: the same
messages with images and waveforms in memory. Nothing is fetched over a network. Problems are
`DataError`s that do not name the row: the caller does. Knows no model.
"""

import base64
import io
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foreword.errors import DataError, DependencyError

MEDIA = ("image", "audio")
Message = dict[str, Any]
"""One turn: `role`, and `content` that is text or a list of parts {"type": "text", "text": ...}."""


def has_media(messages: str | Sequence[Message]) -> bool:
    """Return whether a conversation holds images or sounds."""
    return not isinstance(messages, str) and first_media(messages) is not None


def first_media(messages: Sequence[Message]) -> str | None:
    """Return what kind the first image or sound is, or None."""
    kinds = (part.get("type") for message in messages for part in _parts(message))
    return next((str(kind) for kind in kinds if kind in MEDIA), None)


def texts(messages: Sequence[Message]) -> list[str]:
    """Return the texts of a conversation."""
    return [
        str(text)
        for message in messages
        for text in (
            [message["content"]]
            if isinstance(message.get("content"), str)
            else [part.get("text") for part in _parts(message) if part.get("type") == "text"]
        )
    ]


def beside(part: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a part whose path, where it is relative, starts at `folder`."""
    if part.get("type") not in MEDIA:
        return part
    return {
        key: str(folder / _local(value)) if _is_path(key, value, part) else value
        for key, value in part.items()
    }


def load(messages: Sequence[Message], sampling_rate: int | None) -> list[Message]:
    """Return messages whose media is in memory, as processors of transformers take it.

    Args:
        messages: turns; content that is text becomes one part of text.
        sampling_rate: that the processor expects of sounds, in Hz; None where it takes none.

    Raises:
        DataError: a file that is missing or no image or sound; another sampling rate.
        DependencyError: no package that reads it.
    """
    loaded = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        loaded.append(message | {"content": [_load(part, sampling_rate) for part in content or []]})
    return loaded


def _parts(message: Message) -> list[dict[str, Any]]:
    content = message.get("content")
    return content if isinstance(content, list) else []


def _is_path(key: str, value: Any, part: Mapping[str, Any]) -> bool:
    is_named = key in ("path", "url", part["type"]) and isinstance(value, str)
    return is_named and not _is_remote(value)


def _is_remote(value: str) -> bool:
    return "://" in value and not value.startswith("file://")


def _local(value: str) -> str:
    return value.removeprefix("file://")


def _load(part: dict[str, Any], sampling_rate: int | None) -> dict[str, Any]:
    kind = part["type"]
    if kind == "image":
        return {"type": kind, "image": _image(_source(part))}
    if kind == "audio":
        if sampling_rate is None:
            raise DataError("expected no sound: the model reads none")
        return {"type": kind, "audio": _sound(_source(part), sampling_rate)}
    if kind != "text":
        raise DataError(f"expected parts of text, image or audio, found {kind!r}: leave it out")
    return part


def _source(part: Mapping[str, Any]) -> Any:
    """Return what a part holds: a path, bytes, or what was read already."""
    kind = part["type"]
    value = next((part[key] for key in ("path", "url", kind) if part.get(key) is not None), None)
    if isinstance(part.get("base64"), str):
        value = base64.b64decode(part["base64"])
    if isinstance(value, Mapping) and "array" not in value:  # as datasets keeps what is not decoded
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if value is None:
        raise DataError(f"expected a path or bytes in a part of type {kind!r}, found {list(part)}")
    if isinstance(value, str | Path):
        return _file(str(value))
    return io.BytesIO(value) if isinstance(value, bytes) else value


def _file(value: str) -> Path:
    if _is_remote(value):
        raise DataError(f"expected a local file, found {value!r:.80}: download it first")
    path = Path(_local(value))
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    return path


def _image(source: Any) -> Any:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise DependencyError("images need an extra: pip install 'foreword[images]'") from error
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    if not isinstance(source, Path | io.BytesIO):
        raise DataError(f"expected an image, found {type(source).__name__}: give a path or bytes")
    try:
        with Image.open(source) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        where = source if isinstance(source, Path) else "its bytes"
        raise DataError(f"{where}: not a readable image ({error})") from error


def _sound(source: Any, sampling_rate: int) -> Any:
    """Return a wave of one channel, float32 `[samples]`, at the rate that is asked for."""
    import numpy

    if isinstance(source, Path | io.BytesIO):
        samples, found = _read_sound(source)
    elif isinstance(source, Mapping):
        samples, found = numpy.asarray(source["array"]), source.get("sampling_rate", sampling_rate)
    else:
        samples, found = numpy.asarray(source), sampling_rate
    if found != sampling_rate:
        raise DataError(f"expected a sound of {sampling_rate} Hz, found {found}: resample it")
    if samples.ndim not in (1, 2) or not samples.size:
        raise DataError(f"expected a wave of one or more channels, found {list(samples.shape)}")
    if samples.ndim == 2:
        samples = samples.mean(axis=int(samples.shape[0] > samples.shape[1]))
    return samples.astype("float32")


def _read_sound(source: Path | io.BytesIO) -> tuple[Any, int]:
    """Return samples `[n, channels]` and their rate; a plain .wav needs no package."""
    try:
        with wave.open(str(source) if isinstance(source, Path) else source) as file:
            width, rate = file.getsampwidth(), file.getframerate()
            if width == 2:
                import numpy

                data = numpy.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
                return data.reshape(-1, file.getnchannels()) / 32768.0, rate
    except (wave.Error, EOFError):
        pass  # not a plain .wav
    if isinstance(source, io.BytesIO):
        source.seek(0)
    try:
        import soundfile
    except ImportError as error:
        raise DependencyError(
            "sounds other than .wav of 16 bits need an extra: pip install 'foreword[audio]'"
        ) from error
    try:
        samples, rate = soundfile.read(source, always_2d=True)
    except (RuntimeError, TypeError) as error:
        raise DataError(f"not a readable sound ({error})") from error
    return samples, int(rate)
