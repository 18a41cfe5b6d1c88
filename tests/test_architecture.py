"""The dependency rule and the promises about imports, checked in fresh interpreters and on the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
FORBIDDEN = {"detector": {"pipeline", "matcher"}, "matcher": {"pipeline", "detector", "detectron2"}}


def imported_packages(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} is a relative import, which this rule cannot see"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_the_stages_know_nothing_of_each_other(package: str) -> None:
    files = sorted((REPOSITORY / package).rglob("*.py"))
    assert files
    found = {f"{path.name}: {name}" for path in files for name in imported_packages(path) & FORBIDDEN[package]}
    assert not found


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import pipeline, pipeline.cli", {"torch", "cv2", "detectron2", "transformers", "omegaconf"}),
        ("from detector import Regions", {"torch", "detectron2"}),
        ("import pipeline.shards", {"torch", "detectron2", "transformers"}),
        ("import matcher.model, matcher.fit", {"detectron2", "transformers", "cv2"}),
    ],
)
def test_imports_stay_light(statement: str, absent: set[str]) -> None:
    code = f"import sys; {statement}; print(sorted({absent!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert result.stdout.strip() == "[]"
