"""Small pictures that a trial gives: checked, and written as PNG for evidence and pages.

A picture is an array of bytes, (H, W) in grey or (H, W, 3) in colour, and counts its H * W or 3 * H * W bytes. PNG is
written here, row by row without a filter (RFC 2083), so that the same picture is the same file everywhere.
"""

from __future__ import annotations

import base64
import re
import struct
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from assay.errors import InvalidInput

if TYPE_CHECKING:
    import numpy as np

__all__ = ["LARGEST_PICTURES", "check_pictures", "data_uri", "drawn", "png", "png_of_uri"]

LARGEST_PICTURES = 2**18
"""Bytes that all pictures of one trial may have together: 256 x 256 in colour and as much again in grey."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_URI = "data:image/png;base64,"


def check_pictures(pictures: Mapping[str, Any]) -> None:
    """Refuse what is no small picture.

    Args:
        pictures: Arrays by name: uint8 (H, W) or (H, W, 3).

    Raises:
        InvalidInput: If one is of another type or shape, or all together have more than `LARGEST_PICTURES` bytes.
    """
    for name, picture in pictures.items():
        shape, kind = getattr(picture, "shape", None), str(getattr(picture, "dtype", type(picture).__name__))
        coloured = shape is not None and len(shape) == 3 and shape[2] == 3
        if kind != "uint8" or shape is None or not (len(shape) == 2 or coloured) or 0 in shape:
            raise InvalidInput(
                f"picture {name!r} is {kind} of shape {shape}; expected uint8 of (H, W) or (H, W, 3): "
                "scale it to 0...255 and convert it"
            )
    total = sum(int(picture.nbytes) for picture in pictures.values())
    if total > LARGEST_PICTURES:
        raise InvalidInput(
            f"{len(pictures)} pictures have {total} bytes, a trial may give {LARGEST_PICTURES}; "
            "make them smaller or fewer"
        )


def png(picture: np.ndarray) -> bytes:
    """Return a picture as PNG.

    Args:
        picture: uint8 (H, W) or (H, W, 3).

    Example:
        >>> import numpy as np
        >>> png(np.zeros((2, 3), dtype=np.uint8))[1:4]
        b'PNG'
    """
    height, width = picture.shape[:2]
    colour_type = 2 if picture.ndim == 3 else 0
    rows = b"".join(b"\0" + picture[i].tobytes() for i in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return _SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def data_uri(image: bytes) -> str:
    """Return a PNG as text that a page can show without a file of its own."""
    return _URI + base64.b64encode(image).decode("ascii")


def png_of_uri(uri: str) -> bytes:
    """Return the PNG that `data_uri` wrote.

    Raises:
        InvalidInput: If the text is no such address.
    """
    coded = uri.removeprefix(_URI)
    if coded == uri or not re.fullmatch(r"[A-Za-z0-9+/]*={0,2}", coded) or len(coded) % 4:
        raise InvalidInput(f"expected a picture as '{_URI}...', not {uri[:40]!r}")
    return base64.b64decode(coded)


def drawn(figure: Any, dots_per_inch: int = 60) -> np.ndarray:
    """Return a matplotlib figure, such as a probe's `figure()`, as a picture.

    Args:
        figure: The figure.
        dots_per_inch: Pixels per inch of the figure's size.

    Returns:
        uint8 (H, W, 3).
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas, before = FigureCanvasAgg(figure), figure.dpi
    figure.dpi = dots_per_inch
    canvas.draw()
    picture = np.array(canvas.buffer_rgba())[:, :, :3]
    figure.dpi = before
    return picture
