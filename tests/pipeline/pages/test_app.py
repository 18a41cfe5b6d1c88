"""The page of the app, without a browser: tests/pipeline/pages/test_browser.py has what a browser shows."""

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from pipeline.pages.app import page_of
from pipeline.runs import SHIPPED
from pipeline.service.config import ServeConfig
from pipeline.service.http import Server
from pipeline.service.local import LocalService
from pipeline.service.metrics import Metrics
from tests.photos import write_photos
from tests.world import scan


def client(**options: Any) -> TestClient:
    metrics = Metrics()
    service = LocalService(ServeConfig(device="cpu", watch=0, **options), metrics, say=lambda _: None)
    return TestClient(Server(service, metrics, page=page_of(service)).app())


def test_upload_is_offered_only_where_a_detector_serves_it(
    inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = client(run="runs/t2i_mean").get("/")
    page = answer.text
    assert answer.headers["cache-control"] == "no-store"  # it says what is served now
    assert 'id="upload"' in page
    assert "starter" not in page
    monkeypatch.delenv("SCAN_PIPELINE_WEIGHTS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    without = client(run="runs/t2i_mean")
    assert 'id="upload"' not in without.get("/").text
    assert without.post("/v1/captions", content=b"x").status_code == 400


def test_it_says_that_the_starter_made_the_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photos = str(SHIPPED / "photos")
    scan("extract", "--images", photos, "--limit", "2", "--weights", "starter", "--workers", "0", "--device", "cpu")
    page = client().get("/").text
    assert "2 photos in features/photos" in page
    assert "run starter · Features by the starter: windows at fixed places, not objects" in page
    assert 'id="upload"' not in page  # no captions come with the run


def test_captions_beside_the_photos_serve_a_run_without_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the starter is; a store whose photos have none is named, on the command line as well."""
    monkeypatch.chdir(tmp_path)
    for folder in ("album", "more"):
        write_photos(tmp_path / folder, 2)
        options = ["--weights", "starter", "--workers", "0", "--device", "cpu"]
        assert scan("extract", "--images", folder, *options).exit_code == 0
    (tmp_path / "album/captions.tsv").write_text("000.jpg\ta dog by a tree\n001.jpg\ta boat\n")
    served = client(features=("features/album", "features/more"))
    assert 'id="upload"' in served.get("/").text
    found = served.post("/v1/captions", content=Path("more/000.jpg").read_bytes()).json()["captions"]
    assert {caption["text"] for caption in found} == {"a dog by a tree", "a boat"}
    said = scan("retrieve", "--image", "more/000.jpg")
    assert said.exit_code == 0, said.output
    assert f"note: starter: the run records no captions; searching {tmp_path}/album/captions.tsv" in said.output
    assert "note: features/more: no captions found for its 2 images" in said.output
    assert 'id="upload"' not in client(features=("features/more",)).get("/").text
    said = scan("retrieve", "--image", "more/000.jpg", "--features", "features/more")
    assert said.exit_code == 2
    assert "starter: the run records no captions; name them with --captions" in said.output
