"""What the detector says of one image. NumPy only, so that stores can be read without torch."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Regions:
    """The K regions kept of one image, best first."""

    boxes: np.ndarray  # (K, 4) float32 XYXY, absolute pixels of the decoded (EXIF-upright) image; see pixel_boxes
    features: np.ndarray  # (K, D) float32 or float16
    object_ids: np.ndarray  # (K,) int32, index into the object names
    object_scores: np.ndarray  # (K,) float32
    attribute_ids: np.ndarray  # (K,) int32, index into the attribute names
    attribute_scores: np.ndarray  # (K,) float32
    image_size: tuple[int, int]  # (height, width) in pixels; (0, 0): unknown, and boxes as imported

    def __len__(self) -> int:
        return len(self.boxes)

    def pixel_boxes(self, height: int, width: int) -> np.ndarray:
        """Boxes in pixels of the image at a given size, which may be a thumbnail's: (K, 4) float32 XYXY.

        Where `image_size` is (0, 0) the image was not known when the boxes were stored: they are taken for fractions of it.
        """
        own_height, own_width = self.image_size if self.image_size != (0, 0) else (1, 1)
        scale = np.array([width / own_width, height / own_height] * 2, np.float32)
        return np.asarray(self.boxes, np.float32) * scale
