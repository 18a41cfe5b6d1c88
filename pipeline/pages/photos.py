"""Photos as pages and pictures need them: read, made smaller, encoded."""

import base64

import cv2
import numpy as np

from pipeline.errors import UnreadableImage
from pipeline.inputs.photos import read_image, shrunk

QUALITY = 88  # of JPEG
NARROWEST, WIDEST = 0.4, 3.5  # width by height of a gallery's cells


def photo_of(path: str) -> np.ndarray | None:
    """The photo at a path, (H, W, 3) BGR; None where there is none any more."""
    try:
        return read_image(path) if path else None
    except UnreadableImage:  # gone, or damaged since
        return None


def shape_of_cell(ratio: float) -> float:
    """Width by height of the cell that a photo gets in a gallery: its own, except that strips are fitted into less."""
    return min(max(ratio, NARROWEST), WIDEST)


def jpeg(photo: np.ndarray) -> bytes:
    """A photo (H, W, 3) BGR as a JPEG file."""
    return cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def data_uri(photo: np.ndarray, longest_side: int) -> str:
    """A photo (H, W, 3) BGR inside a page, no larger than needed."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(shrunk(photo, longest_side))).decode()
