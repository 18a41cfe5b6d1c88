"""The page of the app, without a browser: tests/pipeline/pages/test_browser.py has what a browser shows."""

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from pipeline.pages.app import page_of
from pipeline.runs import SHIPPED
from pipeline.service.config import ServeConfig
from pipeline.service.http import Server
from pipeline.service.local import LocalService
from pipeline.service.metrics import Metrics
from tests.world import scan


def client(**options: str) -> TestClient:
    metrics = Metrics()
    service = LocalService(ServeConfig(device="cpu", watch=0, **options), metrics, say=lambda _: None)  # type: ignore[arg-type]
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
