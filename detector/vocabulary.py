"""The names of Visual Genome's objects and attributes, shipped in `detector/names/`."""

from importlib import resources

import numpy as np

from detector.config import DetectorConfig


def default_names(config: DetectorConfig) -> tuple[list[str], list[str]]:
    """Object and attribute names: Visual Genome's where the sizes fit, else numbers. The first synonym names a line."""
    found = []
    for kind, count in {"object": config.num_objects, "attribute": config.num_attributes}.items():
        lines = (resources.files("detector") / "names" / f"{kind}s.txt").read_text().splitlines()
        names = [line.split(",")[0].strip() for line in lines]
        found.append(names if len(names) == count else [f"{kind} {index}" for index in range(count)])
    return found[0], found[1]


def multi_hot(ids: np.ndarray, count: int) -> np.ndarray:
    """Lists of ids as rows of a table: (G, A) padded with -1 -> (G, count) bool."""
    table = np.zeros((len(ids), count), dtype=bool)
    rows, columns = np.nonzero(ids >= 0)
    table[rows, ids[rows, columns]] = True
    return table
