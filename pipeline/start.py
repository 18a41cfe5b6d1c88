"""Where the `scan-pipeline` command begins: before anything is imported that another project's package could stand for."""

import importlib.util
import sys
from pathlib import Path

PACKAGES = ("configs", "detector", "matcher")  # with pipeline: top-level names that other projects may have, too


def main() -> None:
    """Run the command line, or say which package is another project's."""
    here = Path(__file__).resolve().parents[1]
    for name in PACKAGES:
        found = importlib.util.find_spec(name)
        place = Path(found.origin or "").resolve() if found else None
        if place != here / name / "__init__.py":
            what = f"is not this project's but {place}" if place else "is missing"
            print(
                f"error: the package {name} {what}; install scan-pipeline in an environment of its own", file=sys.stderr
            )
            raise SystemExit(2)
    from pipeline.cli import main as command

    command()
