"""A folder in which the README's first commands have been typed, once for all tests."""

import shutil
from pathlib import Path

import pytest

from pipeline.search import Search, open_search
from tests.world import SMALL_TRAINING, lay_out_coco, scan


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, small_weights: Path) -> Path:
    """A folder in which the first two commands have been typed."""
    folder = tmp_path_factory.mktemp("world")
    lay_out_coco(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SCAN_PIPELINE_WEIGHTS", str(small_weights))
        extracted = scan(
            "extract", "--images", "coco/train2014", "--num-regions", "6", "--workers", "0", "--device", "cpu"
        )
        assert extracted.exit_code == 0, extracted.output
        assert "features/train2014: 20 photos, 6 regions of 64 numbers each" in extracted.output
        assert "next:\n  scan-pipeline train" in extracted.output
        trained = scan("train", "--device", "cpu", *SMALL_TRAINING)
        assert trained.exit_code == 0, trained.output
        assert "captions: coco/annotations/captions_train2014.json" in trained.output.replace(
            f"{folder.resolve()}/", ""
        )
        assert "holding out 5 of 20 train images" in trained.output
        assert "; for example COCO_train2014_0000000000" in trained.output
        assert "runs/t2i_mean: best dev rsum" in trained.output
    return folder


@pytest.fixture(scope="session")
def first_world(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the world before any test, whose order would matter otherwise: they add runs, evaluations and indexes to it."""
    return Path(shutil.copytree(world, tmp_path_factory.mktemp("first") / "world"))


@pytest.fixture
def inside(world: Path, first_world: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(world)
    monkeypatch.setenv("SCAN_PIPELINE_WEIGHTS", str(small_weights))
    return world


@pytest.fixture
def own_world(inside: Path, first_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The world in a folder of its own, to be changed."""
    for name in ("runs", "features", "coco"):
        shutil.copytree(first_world / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def opened(inside: Path) -> Search:
    """A search over the world's photos."""
    return open_search(report=lambda line: None)
