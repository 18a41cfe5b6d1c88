"""The dependency rule and the promises about imports, checked in fresh interpreters and on the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "configs": {"pipeline", "detector", "matcher"},
    "detector": {"pipeline", "matcher"},
    "matcher": {"pipeline", "detector", "detectron2"},
}


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


# Imports within pipeline/ only go down this list, so no circle can form. Modules of one layer may import each other.
LAYERS = [
    {"cli", "demo", "start"},
    {
        "app",
        "evaluate",
        "explain",
        "extract",
        "index",
        "push",
        "retrieve",
        "train",
        "train_detector",
        "doctor",
        "starter",
    },  # verbs
    {"pages", "service"},
    {
        "search",
        "ensemble",
        "explanation",
        "photo_lookup",
        "caption_cache",
        "caption_ranking",
        "evaluated_data",
        "judgements",
        "trained_photos",
        "queries",
        "eccv",
        "answer",
        "recall_table",
    },
    {"extraction", "annotations", "interchange", "gallery"},
    {"inputs", "runs", "claim"},
    {"store"},
    {"command_line", "config", "device", "errors", "fields", "files"},
]
MODULES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
    for path in (REPOSITORY / "pipeline").rglob("*.py")
} - {"pipeline"}


def layer_of(module: str) -> int:
    """Layer of a module of pipeline/ ("pipeline.store.reader"), counted from the top."""
    name = module.split(".")[1]
    return next(level for level, names in enumerate(LAYERS) if name in names)


def imported_modules(path: Path) -> set[str]:
    """Modules of pipeline/ that a file imports, also inside functions."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pipeline":
            modules |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return modules & MODULES


def source_of(module: str) -> Path:
    path = REPOSITORY.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


IMPORTS = {module: imported_modules(source_of(module)) - {module} for module in MODULES}


def test_imports_within_pipeline_only_go_down() -> None:
    edges = {(importer, imported) for importer, modules in IMPORTS.items() for imported in modules}
    assert not {f"{up} -> {down}" for up, down in edges if layer_of(down) < layer_of(up)}


def test_no_import_circle() -> None:
    rest = dict(IMPORTS)
    while leaves := [module for module, imports in rest.items() if not imports & rest.keys()]:
        for module in leaves:
            del rest[module]
    assert not rest


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import pipeline, pipeline.cli", {"torch", "cv2", "detectron2", "transformers"}),
        ("from detector import Regions", {"torch", "detectron2"}),
        ("import pipeline.store.reader", {"torch", "detectron2", "transformers"}),
        ("import matcher.matcher, matcher.fit", {"detectron2", "transformers", "cv2"}),
    ],
)
def test_imports_stay_light(statement: str, absent: set[str]) -> None:
    code = f"import sys; {statement}; print(sorted({absent!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert result.stdout.strip() == "[]"
