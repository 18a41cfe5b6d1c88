"""The camera: from units to pixels and back.

The ground is z = 0, x goes to the right, y away from the camera, which stands above the origin and looks along y and down.
Pixels are (x, y) from the top left corner.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Camera:
    """A pinhole above the origin."""

    width: int  # pixels
    height: int
    focal: float  # pixels
    pitch: float  # degrees below the horizontal
    above: float  # units over the ground

    def project(self, points: np.ndarray) -> np.ndarray:
        """(3, n) points in units -> (3, n): x, y in pixels, and pixels per unit there."""
        cos, sin = self._cos_sin
        x, y, z = points[0], points[1], points[2] - self.above
        scale = self.focal / np.maximum(y * cos - z * sin, 1e-3)
        return np.stack([self.width / 2 + scale * x, self.height / 2 - scale * (y * sin + z * cos), scale])

    def at(self, x: float, y: float) -> tuple[float, float, float]:
        """`project` for one point of the ground."""
        column, row, scale = self.project(np.array([[x], [y], [0.0]]))[:, 0].tolist()
        return column, row, scale

    def ground_at(self, x: float, y: float) -> tuple[float, float]:
        """The point (x, y) of the ground, in units, that a pixel below the horizon shows."""
        cos, sin = self._cos_sin
        right, up = (x - self.width / 2) / self.focal, (self.height / 2 - y) / self.focal
        reach = self.above / (sin - up * cos)
        return right * reach, (cos + up * sin) * reach

    @property
    def horizon(self) -> float:
        """Its row, in pixels; above the frame where it is negative."""
        return self.height / 2 - self.focal * math.tan(math.radians(self.pitch))

    def scale_at(self, row: float) -> float:
        """Pixels per unit where the ground is seen at a row."""
        x, y = self.ground_at(self.width / 2, row)
        return self.at(x, y)[2]

    def row_of_scale(self, scale: float) -> float:
        """The row at which the ground has so many pixels per unit: they grow evenly from 0 at the horizon."""
        bottom = self.scale_at(self.height)
        return self.horizon + (self.height - self.horizon) * scale / bottom

    def ground_plane(self, top: int) -> np.ndarray:
        """(3, 3) homography from pixels, counted from row `top` on, to (x, y) of the ground in units."""
        cos, sin = self._cos_sin
        f, cx, cy, above = self.focal, self.width / 2, self.height / 2 - top, self.above
        return np.array(
            [
                [above / f, 0, -cx * above / f],
                [0, -sin * above / f, (cos + sin * cy / f) * above],
                [0, cos / f, sin - cos * cy / f],
            ]
        )

    def wall_plane(self, distance: float) -> np.ndarray:
        """(3, 3) homography from pixels to (x, -z) in units of a wall at y = distance."""
        cos, sin = self._cos_sin
        f, cx, cy = self.focal, self.width / 2, self.height / 2
        straight = np.array([0, -sin / f, cos + sin * cy / f])
        upward = np.array([0, -cos / f, cos * cy / f - sin])
        across = np.array([1 / f, 0, -cx / f]) * distance
        return np.stack([across, -(self.above * straight + distance * upward), straight])

    @property
    def _cos_sin(self) -> tuple[float, float]:
        return math.cos(math.radians(self.pitch)), math.sin(math.radians(self.pitch))
