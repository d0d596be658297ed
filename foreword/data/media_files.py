"""Media files: images and sounds of bytes that nobody vouches for, with little work for each.

In: a file's bytes, or an open file. Out: a picture, or samples. Decoders cannot be interrupted, so
what would take them long is refused before they begin, by what the file says of itself: its format,
pixels, passes over them, pieces, samples. Problems are `DataError`s that repeat nothing of the
file. Knows no messages.
"""

import io
import re
import struct
import wave
from collections.abc import Iterator, Sequence
from typing import Any

from foreword.errors import DataError, DependencyError

FORMATS = {
    "PNG": b"\x89PNG\r\n\x1a\n",
    "JPEG": b"\xff\xd8\xff",
    "GIF": b"GIF8",
    "WEBP": b"RIFF",
    "BMP": b"BM",
}  # and how files of each begin
SOUNDS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3", "AIFF")
MAX_PIXELS = 178_956_970  # twice what Pillow warns of
MAX_RATIO = 200  # of an image's sides: processors enlarge the shorter one
MAX_SCANS = 100  # of a progressive JPEG, each of which goes over all pixels; usual are about 10
MAX_PIECES = 1000  # segments or chunks of a file, beside one for each 256 bytes of it
MAX_COMPRESSED = 100  # chunks of a PNG that are no pixels and each become up to a megabyte
MAX_EXIF = 1 << 16  # bytes: the entries of longer notes can be many times as long as all of them
MAX_BETWEEN = 1 << 16  # bytes between the segments of a JPEG, each looked at alone
MAX_SAMPLES = 1 << 27  # of all channels


def read_image(
    content: bytes,
    formats: Sequence[str],
    max_pixels: int = MAX_PIXELS,
    room: str = "pixels are read",
) -> Any:
    """Return an upright RGB picture.

    Args:
        content: of a file.
        formats: names of `FORMATS` that are taken.
        max_pixels: width times height.
        room: what is said behind `max_pixels`.

    Raises:
        DataError: more work than is done for an image, or a part that is not a picture.
        DependencyError: Pillow is not installed. Exception: whatever decoders raise at damage.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise DependencyError("images need an extra: pip install 'foreword[images]'") from error
    if not any(content.startswith(FORMATS[name]) for name in formats):
        raise ValueError(f"expected {', '.join(formats)}")
    if content.startswith(FORMATS["JPEG"]):
        _check_jpeg(content)
    elif content.startswith(FORMATS["PNG"]):
        _check_png(content)
    too_many = DataError(f"at most {max_pixels} {room}; send smaller images")
    try:
        image = Image.open(io.BytesIO(content), formats=list(formats))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise too_many from None
    with image:
        if image.width * image.height > max_pixels:
            raise too_many
        if max(image.size) > MAX_RATIO * min(image.size):
            raise DataError(
                f"{image.width} x {image.height} pixels: a processor cannot take an image with "
                f"one side more than {MAX_RATIO} times as long as the other; cut it"
            )
        # The JPEG of a camera may have others behind it, which are views of the same picture.
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise _several()
        image.load()
        notes = image.info.get("exif") or image.info.get("Raw profile type exif") or b""
        if len(notes) > (2 * MAX_EXIF if isinstance(notes, str) else MAX_EXIF):  # or as hex digits
            raise _long_notes()
        return _rgb(ImageOps.exif_transpose(image))


def _rgb(image: Any) -> Any:
    """Return a picture as RGB; Pillow itself cuts grey values of 16 bits off at 255."""
    is_deep = image.mode == "I" or image.mode.startswith("I;16")
    return (image.point(lambda value: value * (1 / 256)) if is_deep else image).convert("RGB")


def _several() -> DataError:
    return DataError("an image with several frames: give each frame as an image")


def _long_notes() -> DataError:
    return DataError(f"an image with more than {MAX_EXIF} bytes of Exif: save it without them")


def _check_jpeg(content: bytes) -> None:
    """Refuse a JPEG that would be decoded over and over, or in very many pieces."""
    num_scans, num_exif, num_between = 0, 0, 0
    most = MAX_PIECES + len(content) // 256
    for number, (marker, start, end) in enumerate(_segments(content)):
        num_scans += marker == 0xDA
        num_exif += end - start if marker == 0xE1 and content[start : start + 4] == b"Exif" else 0
        num_between += end - start if marker is None and not num_scans else 0
        if num_scans > MAX_SCANS:
            raise DataError(
                f"a JPEG of more than {MAX_SCANS} scans, each over all of its pixels: save it again"
            )
        if num_exif > MAX_EXIF:
            raise _long_notes()
        if number > most or num_between > MAX_BETWEEN:
            raise DataError(f"a JPEG in more than {most} segments, or with gaps: save it again")
        if marker is not None and (marker in _UNKNOWN or (marker == _END and not num_scans)):
            raise DataError("a JPEG with segments that no decoder knows: save it again")


def _segments(content: bytes) -> Iterator[tuple[int | None, int, int]]:
    """Yield a JPEG's markers up to its end, and where the content of each begins and ends.

    What lies between two segments, pixels or nothing of use, is one more of them, without a marker.
    """
    place, marker = 2, 0
    while marker != _END and (found := _MARKER.search(content, place)) is not None:
        if found.start() > place:
            yield None, place, found.start()
        marker, start = content[found.end() - 1], found.end()
        size = 0 if marker in _ALONE else int.from_bytes(content[start : start + 2])
        yield marker, min(start + 2, start + size), start + size
        place = start + size


_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # none of those inside of pixels
_END = 0xD9
_ALONE = (0x01, 0xD8, _END)  # markers without a length
_UNKNOWN = frozenset([*range(0x02, 0xC0), 0xC8, *range(0xF0, 0xFE)])


def _check_png(content: bytes) -> None:
    """Refuse a PNG in very many pieces, with much beside its pixels, or with several frames."""
    place, number, num_compressed = 8, 0, 0
    most = MAX_PIECES + len(content) // 256
    while place + 8 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, place)
        if kind == b"IEND":
            return
        if kind == b"acTL" and content[place + 8 : place + 12] != b"\x00\x00\x00\x01":
            raise _several()
        number += 1
        num_compressed += kind in (b"zTXt", b"iTXt", b"iCCP")
        if number > most or num_compressed > MAX_COMPRESSED:
            raise DataError(
                f"a PNG in more than {most} chunks, or with more than {MAX_COMPRESSED} that are "
                "compressed beside its pixels: save it again"
            )
        place += 12 + size


def read_wave(file: Any) -> tuple[Any, int] | None:
    """Return the samples `[n, channels]` of an open .wav of 16 bits, from -1 to 1, and their rate
    in Hz; None of another width.

    Raises:
        DataError: too many samples or pieces, or fewer than the file says. wave.Error, EOFError,
            RuntimeError: no plain .wav.
    """
    import numpy

    _check_riff(file)
    with wave.open(file) as reader:
        num_channels, width, rate, num_frames, *_ = reader.getparams()
        if width != 2:
            return None
        _check_samples(num_frames, num_channels)
        content = reader.readframes(num_frames)
    num_found = len(content) // (2 * num_channels)
    if num_found < num_frames:
        raise DataError(f"a .wav that ends after {num_found} of its {num_frames} samples")
    samples = numpy.frombuffer(content, dtype="<i2")
    return samples.reshape(-1, num_channels) / 32768.0, rate


def read_sound(file: Any, sampling_rate: int) -> Any:
    """Return the samples `[n, channels]` of an open file; a plain .wav needs no package.

    Raises:
        DataError: another rate, too many samples, or no sound.
        DependencyError: no package that reads it.
    """
    try:
        found = read_wave(file)
    except (wave.Error, EOFError, RuntimeError):  # the last for pieces longer than the file
        found = None
    if found is not None:
        check_rate(found[1], sampling_rate)
        return found[0]
    try:
        import soundfile
    except ImportError as error:
        raise DependencyError(
            "sounds other than .wav of 16 bits need an extra: pip install 'foreword[audio]'"
        ) from error
    file.seek(0)
    try:
        with soundfile.SoundFile(file) as reader:
            if reader.format not in SOUNDS:
                raise DataError(f"expected a sound as {', '.join(SOUNDS)}, found {reader.format}")
            check_rate(reader.samplerate, sampling_rate)
            _check_samples(reader.frames, reader.channels)
            return reader.read(reader.frames, always_2d=True)
    except (RuntimeError, TypeError) as error:
        raise DataError(f"not a readable sound ({error})") from error


def check_rate(found: int, expected: int) -> None:
    """Refuse a sound of another sampling rate, in Hz; none is resampled."""
    if found != expected:
        raise DataError(f"expected a sound of {expected} Hz, found {found}: resample it")


def _check_samples(num_frames: int, num_channels: int) -> None:
    """Refuse a sound by what its file says: a few bytes can be hours of silence."""
    if num_frames * num_channels > MAX_SAMPLES:
        raise DataError(
            f"{num_frames} samples of {num_channels} channels: at most {MAX_SAMPLES} are read; "
            "cut the sound"
        )


def _check_riff(file: Any) -> None:
    """Refuse a .wav in very many pieces before its samples; leave the file at its start."""
    file.seek(12)
    for _ in range(MAX_PIECES):
        head = file.read(8)
        if len(head) < 8 or head[:4] == b"data":
            break
        size = int.from_bytes(head[4:], "little")
        file.seek(size + size % 2, io.SEEK_CUR)
    else:
        raise DataError(f"a .wav in more than {MAX_PIECES} pieces: save it again")
    file.seek(0)
