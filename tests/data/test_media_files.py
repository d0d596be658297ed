"""Files that would take a decoder long, or much memory, are refused before it begins."""

import io
import struct
import wave
import zlib
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile
from PIL import Image, JpegImagePlugin, PngImagePlugin

from foreword.data import media_files, media_parts
from foreword.data.media_files import read_image, read_sound, read_wave
from foreword.errors import DataError

ALL = tuple(media_files.FORMATS)


def saved(kind: str, size: tuple[int, int] = (16, 16), **options: Any) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, (120, 60, 30)).save(content, kind, **options)
    return content.getvalue()


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def jpeg_with(*parts: bytes) -> bytes:
    whole = saved("JPEG")
    return whole[:2] + b"".join(parts) + whole[2:]


def scans(number: int) -> bytes:
    """Return a progressive JPEG of so many scans: the last of them again and again."""
    whole = saved("JPEG", progressive=True)
    start, end = whole.rfind(b"\xff\xda"), whole.rfind(b"\xff\xd9")
    more = number - whole.count(b"\xff\xda")
    return whole[:end] + whole[start:end] * more + whole[end:]


def chunk(name: bytes, content: bytes) -> bytes:
    body = name + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png_with(*parts: bytes) -> bytes:
    whole = saved("PNG")
    return whole[:33] + b"".join(parts) + whole[33:]


def exif(num_entries: int, num_bytes: int) -> bytes:
    """Return notes whose entries all hold the same bytes: many times as long once they are read."""
    entry = struct.pack("<HII", 7, num_bytes, 8)
    entries = b"".join(struct.pack("<H", 1000 + index) + entry for index in range(num_entries))
    notes = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", num_entries) + entries
    return notes + bytes(num_bytes)


HOSTILE = {
    "scans": (scans(101), "100 scans"),
    "many scans": (scans(30_000), "100 scans"),
    "segments": (jpeg_with(segment(0xFE, b"") * 100_000), "segments"),
    "gaps": (jpeg_with(segment(0xFE, b""), bytes(100_000)), "gaps"),
    "runs of fill bytes": (jpeg_with(b"\xff" * 100_000), "gaps"),
    "notes of a JPEG": (
        jpeg_with(*[segment(0xE1, b"Exif\0\0" + exif(2000, 30_000)[:60_000])] * 3), "Exif"
    ),
    "notes behind an unknown segment": (
        jpeg_with(segment(0xF0, segment(0xE1, b"Exif\0\0" + bytes(9)))), "no decoder knows"
    ),
    "notes behind an end": (jpeg_with(b"\xff\xd9", segment(0xE1, b"Exif\0\0")), "no decoder knows"),
    "chunks": (png_with(chunk(b"tEXt", b"a\0b") * 30_000), "chunks"),
    "empty pixels": (png_with(chunk(b"IDAT", b"") * 30_000), "chunks"),
    "compressed texts": (
        png_with(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 19))) * 101), "compressed"
    ),
    "profiles": (
        png_with(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 19))) * 101), "compressed"
    ),
    "notes of a PNG": (png_with(chunk(b"eXIf", exif(9000, 200_000))), "Exif"),
    "notes of a PNG as text": (
        png_with(chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(
            b"\nexif\n9\n" + exif(9000, 200_000).hex().encode()))), "Exif"
    ),
    "a long side": (saved("PNG", (1000, 4)), "processor cannot"),
    "a high side": (saved("JPEG", (2, 500)), "processor cannot"),
    "pixels": (saved("PNG", (2000, 2000)), "at most 1000000 pixels"),
    "pixels of a BMP": (saved("BMP", (1100, 1000)), "at most 1000000 pixels"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_would_take_long_is_refused_before_it_is_decoded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, reason = HOSTILE[name]
    calls: list[str] = []
    monkeypatch.setattr(Image.Image, "convert", lambda *_, **__: calls.append("convert"))
    monkeypatch.setattr(Image.Exif, "load", lambda *_: calls.append("notes"))
    if "PNG" not in name:  # a PNG's notes are measured once it is decoded
        for plugin in (JpegImagePlugin.JpegImageFile, PngImagePlugin.PngImageFile):
            monkeypatch.setattr(plugin, "load", lambda *_: calls.append("load"))
    with pytest.raises(DataError, match=reason):
        read_image(content, ALL, 1_000_000)
    assert not calls


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_image_of_several_frames_is_refused(kind: str) -> None:
    content = io.BytesIO()
    first, second = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
    first.save(content, kind, save_all=True, append_images=[second])
    with pytest.raises(DataError, match="several frames"):
        read_image(content.getvalue(), ALL)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_usual_images_are_read(kind: str) -> None:
    found = read_image(saved(kind), ALL)
    assert (found.size, found.mode) == ((16, 16), "RGB")


@pytest.mark.parametrize(
    "content",
    [
        scans(100),
        saved("JPEG", progressive=True, quality=95),
        saved("JPEG", exif=Image.Exif().tobytes(), icc_profile=bytes(200_000), comment=b"hello"),
        saved("JPEG", (64, 64), restart_marker_blocks=1),
        jpeg_with(b"\xff\xff\xff", segment(0xE5, b"\xff\xda" * 300)),
        png_with(chunk(b"tEXt", b"a\0b") * 300, chunk(b"zTXt", b"a\0\0" + zlib.compress(b"b"))),
        saved("PNG", (200, 1)),
    ],
)
def test_unusual_ones_are_read_too(content: bytes) -> None:
    assert read_image(content, ALL).mode == "RGB"


def test_another_view_behind_a_picture_is_left_out() -> None:
    content = io.BytesIO()
    first = Image.new("RGB", (8, 8), "red")
    first.save(content, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")])
    assert read_image(content.getvalue(), ALL).getpixel((0, 0))[0] > 200


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "JPEG2000"])
def test_formats_are_those_that_are_named(kind: str) -> None:
    with pytest.raises(DataError, match="not a readable image .expected PNG, JPEG"):
        media_parts._image(io.BytesIO(saved(kind)))


def test_a_row_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(scans(101))
    with pytest.raises(DataError, match=r"a\.jpg: a JPEG of more than 100 scans"):
        media_parts._image(path)
    with pytest.raises(DataError, match="expected base64"):
        media_parts._source({"type": "image", "base64": "?"})


@pytest.mark.parametrize(
    ("grey", "expected"), [(0, 0), (255, 0), (256, 1), (0x8000, 128), (65535, 255)]
)
def test_grey_values_of_16_bits_become_those_of_8(grey: int, expected: int) -> None:
    content = io.BytesIO()
    Image.fromarray(numpy.full((4, 4), grey, "uint16")).save(content, "PNG")
    picture = read_image(content.getvalue(), ALL)
    assert picture.mode == "RGB" and picture.getpixel((1, 1)) == (expected,) * 3


# Sounds -------------------------------------------------------------------------------------------


def wav(samples: bytes, channels: int = 1, width: int = 2) -> io.BytesIO:
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setparams((channels, width, 16000, 0, "NONE", ""))
        file.writeframes(samples)
    content.seek(0)
    return content


def flac(num: int, rate: int = 16000, channels: int = 1) -> io.BytesIO:
    content = io.BytesIO()
    soundfile.write(content, numpy.zeros((num, channels), "int16"), rate, format="FLAC")
    content.seek(0)
    return content


def test_a_wave_in_very_many_pieces_is_refused() -> None:
    def wav_of(num_pieces: int) -> io.BytesIO:
        whole = wav(bytes(80)).getvalue()
        body = whole[8:12] + (b"LIST" + bytes(4)) * num_pieces + whole[12:]
        return io.BytesIO(b"RIFF" + struct.pack("<I", len(body)) + body)

    with pytest.raises(DataError, match="pieces"):
        read_wave(wav_of(50_000))
    found = read_wave(wav_of(50))
    assert found is not None and found[0].shape == (40, 1)


def test_a_sound_of_very_many_samples_is_refused_undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: Any, **__: Any) -> Any:
        raise AssertionError("decoded")

    monkeypatch.setattr(media_files, "MAX_SAMPLES", 9999)
    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    with pytest.raises(DataError, match="5000 samples of 2 channels: at most 9999"):
        read_sound(flac(5000, channels=2), 16000)
    with pytest.raises(DataError, match="expected a sound of 16000 Hz, found 8000"):
        read_sound(flac(100, 8000), 16000)
    with pytest.raises(DataError, match="at most 9999"):
        read_sound(wav(bytes(20_000)), 16000)


@pytest.mark.parametrize("num_bytes", [1, 2, 79])
def test_a_wave_that_ends_before_its_samples_do_is_refused(num_bytes: int) -> None:
    with pytest.raises(DataError, match="ends after .* of its 40 samples"):
        read_wave(io.BytesIO(wav(bytes(80)).getvalue()[:-num_bytes]))


def test_a_piece_that_is_longer_than_its_file_makes_no_sound() -> None:
    whole = wav(bytes(80)).getvalue()
    with pytest.raises(DataError, match="not a readable sound"):
        read_sound(io.BytesIO(whole[:12] + b"JUNK\xff\xff\xff\xff" + whole[12:]), 16000)


def test_sounds_are_read_as_they_are() -> None:
    assert read_sound(flac(100), 16000).shape == (100, 1)
    assert read_sound(wav(bytes(80), channels=2), 16000).shape == (20, 2)
    assert read_sound(wav(bytes(80), width=1), 16000).shape == (80, 1)
    assert read_wave(wav(bytes(80), width=1)) is None
