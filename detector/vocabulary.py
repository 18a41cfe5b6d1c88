"""The names of Visual Genome's objects and attributes, shipped in `detector/names/`."""

from importlib import resources

from detector.config import DetectorConfig


def default_names(config: DetectorConfig) -> tuple[list[str], list[str]]:
    """Object and attribute names: Visual Genome's where the sizes fit, else numbers. The first synonym names a line."""
    found = []
    for kind, count in {"object": config.num_objects, "attribute": config.num_attributes}.items():
        lines = (resources.files("detector") / "names" / f"{kind}s.txt").read_text().splitlines()
        names = [line.split(",")[0].strip() for line in lines]
        found.append(names if len(names) == count else [f"{kind} {index}" for index in range(count)])
    return found[0], found[1]
