"""What the detector says of one image. NumPy only, so that stores can be read without torch."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Regions:
    """The K regions kept of one image, best first."""

    boxes: np.ndarray  # (K, 4) float32 XYXY, absolute pixels of the decoded (EXIF-upright) image
    features: np.ndarray  # (K, D) float32 or float16
    object_ids: np.ndarray  # (K,) int32, index into the object names
    object_scores: np.ndarray  # (K,) float32
    attribute_ids: np.ndarray  # (K,) int32, index into the attribute names
    attribute_scores: np.ndarray  # (K,) float32
    image_size: tuple[int, int]  # (height, width) in pixels

    def __len__(self) -> int:
        return len(self.boxes)
