"""Arrays as PNG and JPEG, and as data URIs, with nothing but zlib and SimpleITK."""

from __future__ import annotations

import base64
import struct
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

Colour = tuple[int, int, int, int]


def jpeg(picture: np.ndarray, quality: int = 78) -> bytes:
    """A JPEG of (height, width) grey or (height, width, 3) colours, uint8; quality 1 to 100."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(picture), isVector=picture.ndim == 3)
    with tempfile.TemporaryDirectory() as folder:  # ITK writes files only
        path = Path(folder) / "picture.jpg"
        sitk.WriteImage(image, str(path), useCompression=True, compressionLevel=quality)
        return path.read_bytes()


def palette_png(picture: np.ndarray, palette: Sequence[Colour]) -> bytes:
    """A PNG of (height, width) uint8 indices into a palette of (red, green, blue, opacity), 0 to 255."""
    height, width = picture.shape
    colours = np.asarray(palette, np.uint8)
    rows = np.zeros((height, width + 1), np.uint8)  # each row begins with 0: no filter
    rows[:, 1:] = picture
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", colours[:, :3].tobytes()),
        (b"tRNS", colours[:, 3].tobytes()),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def data_uri(picture: bytes) -> str:
    """A PNG or JPEG as a data URI."""
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
