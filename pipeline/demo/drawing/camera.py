"""The camera: from units to pixels and back.

The ground is z = 0, x goes to the right, y away from the camera, which stands above the origin and looks along y and down.
Pixels are (x, y) from the top left corner.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Camera:
    """A pinhole above the origin."""

    width: int  # pixels
    height: int
    focal: float  # pixels
    pitch: float  # degrees below the horizontal
    above: float  # units over the ground

    @cached_property
    def matrix(self) -> np.ndarray:
        """(3, 4) from (x, y, z, 1) in units to (x, y, 1) in pixels, times the depth."""
        cos, sin = math.cos(math.radians(self.pitch)), math.sin(math.radians(self.pitch))
        inner = np.array([[self.focal, 0, self.width / 2], [0, self.focal, self.height / 2], [0, 0, 1]])
        axes = np.array([[1, 0, 0], [0, -sin, -cos], [0, cos, -sin]])  # right, down, forward
        return inner @ np.column_stack([axes, axes @ [0, 0, -self.above]])

    def project(self, points: np.ndarray) -> np.ndarray:
        """(3, n) points in units -> (3, n): x, y in pixels, and pixels per unit there."""
        x, y, depth = self.matrix[:, :3] @ points + self.matrix[:, 3:]
        return np.stack([x, y, np.full_like(x, self.focal)]) / np.maximum(depth, 1e-3)

    def at(self, x: float, y: float) -> tuple[float, float, float]:
        """`project` for one point of the ground."""
        column, row, scale = self.project(np.array([[x], [y], [0.0]]))[:, 0].tolist()
        return column, row, scale

    def ground_at(self, x: float, y: float) -> tuple[float, float]:
        """The point (x, y) of the ground, in units, that a pixel below the horizon shows."""
        right, forward, depth = np.linalg.solve(self.ground, [x, y, 1.0]).tolist()
        return right / depth, forward / depth

    @property
    def ground(self) -> np.ndarray:
        """(3, 3) homography from (x, y) of the ground in units to pixels."""
        return self.matrix[:, [0, 1, 3]]

    def wall(self, distance: float) -> np.ndarray:
        """(3, 3) homography from (x, -z) in units of a wall at y = distance to pixels."""
        across, away, up, origin = self.matrix.T
        return np.column_stack([across, -up, distance * away + origin])

    @property
    def horizon(self) -> float:
        """Its row, in pixels; above the frame where it is negative."""
        return self.height / 2 - self.focal * math.tan(math.radians(self.pitch))

    def scale_at(self, row: float) -> float:
        """Pixels per unit where the ground is seen at a row: they grow evenly from 0 at the horizon."""
        return (row - self.horizon) * math.cos(math.radians(self.pitch)) / self.above

    def row_of_scale(self, scale: float) -> float:
        """The row at which the ground has so many pixels per unit."""
        return self.horizon + scale * self.above / math.cos(math.radians(self.pitch))
