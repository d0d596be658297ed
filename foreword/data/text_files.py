"""Text files: a file's bytes as text, decompressed within a limit and decoded as UTF-8.

In: a path. Out: its text, never empty. What a file is, is told by its first bytes where its name
does not say or says another thing. Knows neither JSON nor CSV.
"""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import IO, Any

from foreword.compat.error_lines import typed_line
from foreword.data.sources import import_extra
from foreword.errors import DataError

TEXT_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
COMPRESSIONS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}

# A compressed file is refused where it comes to more: of text, a quarter of MAX_RATIO is rare.
MAX_RATIO = 250  # times its own size, beyond the first FREE_BYTES
FREE_BYTES = 16 << 20
MAX_BYTES = 8 << 30
_CHUNK_BYTES = 1 << 20

_BZIP2 = tuple(b"BZh%d" % level + rest for level in range(1, 10) for rest in (b"1AY&SY", b"\x17rE"))
_COMPRESSED = {
    "gzip": (b"\x1f\x8b",),
    "bzip2": _BZIP2,
    "xz": (b"\xfd7zXZ\0",),
    "zstd": (b"\x28\xb5\x2f\xfd",),
}
_OTHER_KINDS = {
    b"PAR1": "a Parquet file: name it .parquet",
    b"ARROW1": "an Arrow file: name it .arrow",
    b"PK\x03\x04": "a ZIP archive or an Excel workbook: unpack it, or save the sheet as .csv",
    b"\xd0\xcf\x11\xe0": "an Excel workbook: save the sheet as .csv",
    b"%PDF": "a PDF: its text is needed as rows",
    b"version https://git-lfs": "a pointer of Git LFS in the file's place: run git lfs pull",
}
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # begins as that of UTF-16 does
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def ending_of(path: Path) -> str:
    """Return what a file's name says of its kind: its ending, in small letters, without that of a
    compression around text (`.jsonl` of `rows.jsonl.gz`).
    """
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    if len(endings) == 2 and endings[1] in COMPRESSIONS:
        return endings[0] if endings[0] in TEXT_ENDINGS else "".join(endings)
    return endings[-1] if endings else ""


def read_text(path: Path) -> str:
    """Return the text of a file, which may be compressed.

    Raises:
        DataError: it cannot be read, is no text, is not UTF-8, is empty, or is compressed and
            comes to more than the limits.
        DependencyError: a .zst file, without the extra that reads it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    text = _decoded(_decompressed(data, path).removeprefix(codecs.BOM_UTF8), path)
    if not text.strip():
        raise DataError(f"{path}: expected rows, found an empty file: add at least one")
    return text


def other_kind(head: bytes) -> str | None:
    """Return what a file is that begins so, and what to do; None where it may be text."""
    kinds = (said for magic, said in _OTHER_KINDS.items() if head.startswith(magic))
    return next(kinds, None)


def _decoded(data: bytes, path: Path) -> str:
    if found := other_kind(data[:32]):
        raise DataError(f"{path}: expected text, found {found}")
    for mark, name in _MARKS:
        if data.startswith(mark):
            raise DataError(f"{path}: expected UTF-8, found {name}: save as UTF-8")
    try:
        text = data.decode()
        at = data.find(b"\0")
        reason = "a NUL byte, as in UTF-16 or in a file that is no text"
    except UnicodeDecodeError as error:
        at, reason = error.start, f"byte 0x{data[error.start]:02x}"
    if at < 0:
        return text
    line = data.count(b"\n", 0, at) + 1
    raise DataError(f"{path}:{line}: expected UTF-8, found {reason}: save as UTF-8") from None


# Compression --------------------------------------------------------------------------------------


def _decompressed(data: bytes, path: Path) -> bytes:
    """Return bytes as they are, or decompressed where they are compressed."""
    named = COMPRESSIONS.get(path.suffix.lower())
    found = next((kind for kind, magic in _COMPRESSED.items() if data.startswith(magic)), None)
    if named and data and found != named:
        raise DataError(
            f"{path}: expected a {named} file, as its name says, found "
            f"{f'a {found} file' if found else 'another kind of file'}: rename it"
        )
    if found is None:
        return data
    try:
        with _stream(found, data) as stream:
            return _read_within(stream, len(data), path)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(
            f"{path}: a damaged {found} file, {typed_line(error)}: write it again"
        ) from error


def _stream(kind: str, data: bytes) -> Any:
    file = io.BytesIO(data)
    if kind == "gzip":
        return gzip.open(file)
    if kind == "bzip2":
        return bz2.open(file)
    if kind == "xz":
        return lzma.open(file)
    return import_extra("pyarrow").CompressedInputStream(file, "zstd")


def _read_within(stream: IO[bytes], size: int, path: Path) -> bytes:
    """Read a stream to its end, or to the limit for a compressed file of that size."""
    limit = min(max(FREE_BYTES, MAX_RATIO * size), MAX_BYTES)
    chunks, num_read = [], 0
    while chunk := stream.read(_CHUNK_BYTES):
        num_read += len(chunk)
        if num_read > limit:
            raise DataError(
                f"{path}: decompressed, its {size:,} bytes come to more than {limit:,}, the limit "
                f"({MAX_RATIO} times its size, at most {MAX_BYTES:,}): decompress it yourself if "
                "you trust it"
            )
        chunks.append(chunk)
    return b"".join(chunks)
