"""Opening a data file: decompression, and one clear message for everything that it is not."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Final

from steering_pts.errors import DataError

BinaryFile = BufferedReader | gzip.GzipFile
_GZIP: Final = b"\x1f\x8b"
_PARQUET: Final = b"PAR1"
# What text never begins with, or what is known not to be the data although it is text.
_OTHER_CONTENT: Final = (
    (b"\xff\xfe", "UTF-16 text; save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text; save it as UTF-8"),
    (_PARQUET, "a Parquet file; name it .parquet, or pass --format parquet"),
    (b"ARROW1", "an Arrow file; save it as Parquet"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet; unpack it, or save it as CSV"),
    (b"BZh", "compressed with bzip2; unpack it, or use gzip"),
    (b"\xfd7zXZ", "compressed with xz; unpack it, or use gzip"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it, or use gzip"),
    (b"SQLite format 3", "an SQLite database"),
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the file that it stands for; fetch that with git lfs pull",
    ),
    (b"<!DOCTYPE", "a web page"),
    (b"<html", "a web page"),
)


@contextmanager
def open_text(path: Path) -> Iterator[BinaryFile]:
    """The bytes of a text file, unpacked where they are compressed with gzip; read them inside the `with`.

    Raises:
        DataError: it can't be read to the end, or its first bytes are not those of UTF-8 text.
    """
    with _translated(path), path.open("rb") as file:
        if file.peek(2)[:2] == _GZIP:
            with gzip.GzipFile(fileobj=file) as unpacked:
                _check_content(path, unpacked.peek(64))
                yield unpacked
            return
        if path.suffix == ".gz" and file.peek(1):
            raise DataError(str(path), ["its name ends in .gz, but it is not compressed with gzip"])
        _check_content(path, file.peek(64))
        yield file


def check_parquet(path: Path) -> None:
    """Makes sure that a file looks like Parquet.

    Raises:
        DataError: it can't be read, or it is something else.
    """
    with _translated(path), path.open("rb") as file:
        head = file.read(4)
    if not head:
        raise DataError(str(path), ["it is empty; it must be a Parquet file"])
    if head != _PARQUET:
        raise DataError(str(path), [f"it is not a Parquet file: it begins with {head!r}"])


def _check_content(path: Path, head: bytes) -> None:
    for magic, meaning in _OTHER_CONTENT:
        if head.startswith(magic):
            raise DataError(str(path), [f"it is {meaning}"])
    if b"\x00" in head[:4]:
        raise DataError(str(path), ["it is not UTF-8 text (perhaps UTF-16); save it as UTF-8"])


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise DataError(str(path), ["there is no such file"]) from None
    except EOFError:
        raise DataError(str(path), ["it is cut off: the compressed data end too early"]) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(str(path), [f"it is damaged: {error}"]) from error
    except OSError as error:
        raise DataError(str(path), [f"it can't be read: {error.strerror}"]) from error
