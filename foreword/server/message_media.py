"""Media of messages: the images and sounds that a client sends, decoded in memory.

In: a client's messages, whose images are data URLs and whose sounds are base64. Out: messages as
`data.media_parts` takes them. No address is fetched and no path is opened.
What exceeds a limit is refused before it is decoded; images are PNG or JPEG and sounds plain .wav,
so that few decoders see untrusted bytes. An error never repeats what the client sent.
"""

import base64
import io
from collections.abc import Sequence
from typing import Any

from foreword.backbone import Backbone
from foreword.config import ServeConfig
from foreword.data import media_files
from foreword.errors import DataError, DependencyError, InputError

Message = dict[str, Any]
KINDS = {"image_url": "image", "input_audio": "audio"}
FORMATS = {"data:image/png;base64": "PNG", "data:image/jpeg;base64": "JPEG"}


def load(messages: Sequence[Message], backbone: Backbone, config: ServeConfig) -> list[Message]:
    """Return messages whose images and sounds are in memory.

    Raises:
        InputError: names the part that cannot be taken, and why.
    """
    found = [
        (f"messages.{i}.content.{j}", part)
        for i, message in enumerate(messages)
        if isinstance(message.get("content"), list)
        for j, part in enumerate(message["content"])
        if part["type"] != "text"
    ]
    for where, part in found:
        _check_kind(where, part, backbone)
    if len(found) > config.max_media:
        raise InputError(
            f"{len(found)} images and sounds: at most {config.max_media} to one request; send fewer"
        )
    room = config.image_pixels
    loaded: dict[int, dict[str, Any]] = {}
    for where, part in found:
        if part["type"] == "image_url":
            image = _image(where, part["image_url"]["url"], room)
            room -= image.width * image.height
            loaded[id(part)] = {"type": "image", "image": image}
        else:
            loaded[id(part)] = {"type": "audio", "audio": _sound(where, part["input_audio"])}
    return [
        message | {"content": [loaded.get(id(part), part) for part in message["content"]]}
        if isinstance(message.get("content"), list)
        else message
        for message in messages
    ]


def _check_kind(where: str, part: dict[str, Any], backbone: Backbone) -> None:
    kind = KINDS[part["type"]]
    known = [modality.name for modality in backbone.capabilities.modalities]
    if kind not in known:
        reads = " and ".join(["text", *known])
        raise InputError(f"{where}: the model reads no {kind}, only {reads}; leave it out")
    if backbone.processor is None:
        raise InputError(
            f"{where}: the model is served without a processor, and so reads only text; "
            "leave it out"
        )


def _image(where: str, url: str, room: int) -> Any:
    """Return the RGB picture of a data URL that has at most `room` pixels."""
    head, comma, data = url.partition(",")
    if not comma or head not in FORMATS:
        raise InputError(
            f"{where}: expected an image as {' or '.join(f'{one},DATA' for one in FORMATS)}; "
            "nothing is fetched and no file is read"
        )
    name, content = FORMATS[head], _bytes(where, data)
    try:
        return media_files.read_image(content, [name], room, "more pixels are read in this request")
    except DependencyError:
        raise InputError(f"{where}: this server reads no images: Pillow is not installed") from None
    except DataError as error:
        raise InputError(f"{where}: {error}") from None
    except Exception as error:  # decoders raise anything on damaged bytes
        raise InputError(f"{where}: not a readable {name} image ({type(error).__name__})") from None


def _sound(where: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the samples `[n]` of a .wav of 16 bits, channels averaged, and their rate in Hz."""
    content = io.BytesIO(_bytes(where, given["data"]))
    try:
        found = media_files.read_wave(content)
    except DataError as error:
        raise InputError(f"{where}: {error}") from None
    except Exception as error:
        raise InputError(f"{where}: not a readable .wav ({type(error).__name__})") from None
    if found is None:
        raise InputError(f"{where}: expected a .wav of 16 bits, found one of another width")
    samples, rate = found
    if not len(samples):
        raise InputError(f"{where}: the .wav holds no samples")
    return {"array": samples.mean(axis=1), "sampling_rate": rate}


def _bytes(where: str, data: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except ValueError:
        raise InputError(f"{where}: expected base64, found something else") from None
