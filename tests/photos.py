"""Photos for tests: coloured blobs on noise, different for every seed."""

from pathlib import Path

import cv2
import numpy as np

SHAPES = [(48, 64), (64, 48), (48, 64), (40, 90)]  # height, width


def write_photos(folder: Path, count: int, *, names: str = "{:03}.jpg", shapes: list[tuple[int, int]] = SHAPES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        height, width = shapes[index % len(shapes)]
        coarse = np.random.default_rng(index).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / names.format(index)), cv2.resize(coarse, (width, height)))
