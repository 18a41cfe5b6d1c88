"""Photos as pages and pictures need them: read, made smaller, encoded."""

import base64

import cv2
import numpy as np

from pipeline.errors import UnreadableImage
from pipeline.inputs.photos import read_image

QUALITY = 88  # of JPEG
NARROWEST, WIDEST = 0.4, 3.5  # width by height of a gallery's cells


def photo_of(path: str) -> np.ndarray | None:
    """The photo at a path, (H, W, 3) BGR; None where there is none any more."""
    try:
        return read_image(path) if path else None
    except UnreadableImage:  # gone, or damaged since
        return None


def resized(photo: np.ndarray, width: float, height: float) -> np.ndarray:
    """A photo (H, W, 3) in another size, each side at least one pixel."""
    size = max(1, round(width)), max(1, round(height))
    smaller = size[0] < photo.shape[1]
    return cv2.resize(photo, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)


def shape_of_cell(ratio: float) -> float:
    """Width by height of the cell that a photo gets in a gallery: its own, except that strips are fitted into less."""
    return min(max(ratio, NARROWEST), WIDEST)


def shrunk(photo: np.ndarray, longest_side: int) -> np.ndarray:
    """A photo (H, W, 3), its longest side no longer than that."""
    height, width = photo.shape[:2]
    scale = longest_side / max(height, width)
    return resized(photo, width * scale, height * scale) if scale < 1 else photo


def jpeg(photo: np.ndarray) -> bytes:
    """A photo (H, W, 3) BGR as a JPEG file."""
    return cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def data_uri(photo: np.ndarray, longest_side: int) -> str:
    """A photo (H, W, 3) BGR inside a page, no larger than needed."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(shrunk(photo, longest_side))).decode()
