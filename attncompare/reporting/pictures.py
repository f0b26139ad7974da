"""Pictures as data: URIs: without loss where they are small, else as JPEG or, where a page must hold many, as WebP."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attncompare.reporting.levels import as_text, gray_png, png_uri

LOSSLESS = 128
"""Photos with a longer side than this lose a little."""
WEBP = 70
"""Quality of WebP. For `saliency`, the hardest of maps, of EfficientNet-Lite0 on 12 photos at 224 pixels the colors drawn
are then off by 5 of 255 in the mean and 26 at the 99th percentile (absolute difference per color channel)."""


def photo(picture: NDArray[np.uint8], exact: bool) -> str:
    """A picture (H,W,3): PNG up to 128 pixels a side, else JPEG of quality 92 or, where it need not be exact, WebP."""
    if max(picture.shape) <= LOSSLESS:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG", optimize=True)
        return png_uri(buffer.getvalue())
    if not exact:
        return webp(picture)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=92, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + as_text(buffer.getvalue())


def gray(picture: NDArray[np.uint8], exact: bool) -> str:
    """A gray picture (h,w): PNG, or WebP where it need not be exact."""
    return png_uri(gray_png(picture)) if exact else webp(picture)


def webp(picture: NDArray[np.uint8] | NDArray[np.float32]) -> str:
    """A picture (H,W,3) or a gray one (h,w), from 0 to 255, as WebP with loss."""
    whole = np.rint(picture).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(whole).convert("RGB").save(buffer, "WEBP", quality=WEBP, method=6)
    return "data:image/webp;base64," + as_text(buffer.getvalue())
