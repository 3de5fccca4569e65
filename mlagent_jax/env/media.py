"""Image and zip files as bytes, for the prepare.py of tasks that hold them."""

# Pillow's stubs leave some argument types open.
# pyright: standard

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Array = npt.NDArray[Any]

# The earliest date that zip files know: the same content gives the same bytes.
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)


def png_bytes(image: Array) -> bytes:
    """Returns a PNG file of a (height, width) or (height, width, 3) uint8 image."""
    return _image_bytes(image, "PNG")


def jpeg_bytes(image: Array, quality: int = 90) -> bytes:
    """Returns a JPEG file of a (height, width) or (height, width, 3) uint8 image."""
    return _image_bytes(image, "JPEG", quality=quality)


def zip_bytes(files: Mapping[str, bytes | Path]) -> bytes:
    """Returns a zip of files, name -> content or file to read, in sorted order."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            content = files[name]
            data = content if isinstance(content, bytes) else content.read_bytes()
            # Images are compressed already.
            archive.writestr(zipfile.ZipInfo(name, _ZIP_DATE), data)
    return buffer.getvalue()


def _image_bytes(image: Array, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image, dtype=np.uint8)).save(buffer, kind, **options)
    return buffer.getvalue()
