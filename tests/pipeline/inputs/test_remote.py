"""Photos behind URLs: an HTTP server with ranges, and an S3-compatible server that is killed midway."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp")

from detector import RegionExtractor
from pipeline.errors import PipelineError
from pipeline.inputs import storage
from pipeline.inputs.decode import _contents
from pipeline.inputs.sources import list_photos, read_photo
from pipeline.store.plan import Photo
from pipeline.store.reader import open_store
from tests.photos import write_photos
from tests.pipeline.inputs.test_sources import (
    COUNT,
    config,
    contents,
    extract,
    failures,
    tensors,
    write_parquet,
    write_tar,
)
from tests.served import S3, Ranges, http_server
from tests.world import SMALL_TRAINING, scan


@pytest.fixture(scope="module")
def extractor(small_weights: Path) -> RegionExtractor:
    return RegionExtractor.from_weights(small_weights, num_regions=4, device="cpu")


@pytest.fixture(autouse=True)
def _impatient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "PAUSES", (0.01, 0.01))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_photos(tmp_path / "photos", COUNT, names="COCO_val2014_{:012}.jpg")
    names = sorted(path.name for path in (tmp_path / "photos").iterdir())
    write_tar(tmp_path / "data/tars/00000.tar", tmp_path / "photos", names[:7])
    write_tar(tmp_path / "data/tars/00001.tar", tmp_path / "photos", names[7:])
    write_parquet(tmp_path / "data/test-00000-of-00001.parquet", tmp_path / "photos", names)
    (tmp_path / "photos").rename(tmp_path / "data/photos")
    (tmp_path / "photos").symlink_to(tmp_path / "data/photos")
    return tmp_path


def test_tars_and_parquet_over_http(place: Path, extractor: RegionExtractor) -> None:
    folder = extract(config(place, "photos"), extractor)
    with http_server(place / "data") as server:
        for name in ("tars/{00000..00001}.tar", "test-00000-of-00001.parquet", "photos"):
            server.fails[0] = 2  # answered after all
            url, output = f"{server.url}/{name}", str(place / "stores/http" / name[:4])
            store = extract(config(place, "photos", images=(url,), output=output, workers=2), extractor)
            assert tensors(store) == tensors(folder)
            assert store.manifest["image_roots"] == [url]
            assert read_photo(store.image_place(5)) == (place / "photos" / list(store)[5]).read_bytes()
            before = contents(store)
            assert contents(extract(config(place, "photos", images=(url,), output=output), extractor)) == before
        ranges = [one for one in server.asked if one.startswith("/tars/00000.tar bytes")]
        assert (
            len(ranges) == 2 + 3
        )  # two that failed; the index, the photos, and the test's own: not one for each photo
        with pytest.raises(PipelineError, match=r"2.tar: missing or forbidden .*check the address"):
            list_photos([f"{server.url}/tars/{{00001..00002}}.tar"])


def test_photos_of_a_url_are_called_as_their_files(place: Path, extractor: RegionExtractor) -> None:
    name = "a b \u00fc#1.jpg"
    photos = place / "data/photos"
    (photos / name).write_bytes(next(photos.iterdir()).read_bytes())
    with http_server(place / "data") as server:
        store = extract(config(place, "photos", images=(f"{server.url}/photos",), output=str(place / "s")), extractor)
        assert len(store) == COUNT + 1
        assert read_photo(store.image_place(store.row(name))) == (photos / name).read_bytes()


def test_a_server_that_tells_no_dates_is_said(
    place: Path, extractor: RegionExtractor, capsys: pytest.CaptureFixture[str]
) -> None:
    with http_server(place / "data") as server:
        for name, said in (("photos", True), ("tars/00000.tar", False)):
            settings = config(place, "photos", images=(f"{server.url}/{name}",), output=str(place / "s" / name))
            extract(settings, extractor)
            note = f"--images: of {COUNT} photos their server tells neither size nor date: changed ones are not noticed"
            assert (note in capsys.readouterr().err) is said


def test_what_is_no_store_of_photos(place: Path) -> None:
    class Complete(Ranges):
        def do_GET(self) -> None:
            del self.headers["Range"]
            super().do_GET()

    with (
        http_server(place / "data", Complete) as server,
        pytest.raises(PipelineError, match="sends complete files where a part is asked for; download it first"),
    ):
        list_photos([f"{server.url}/test-00000-of-00001.parquet"])
    with pytest.raises(PipelineError, match=r"does not answer \(Cannot connect.*\); run the same command again to"):
        list_photos([f"{server.url}/tars/00000.tar"])
    for place_ in ("file:///etc/x.tar", "memory://x.tar", "ftp://x/y"):
        with pytest.raises(PipelineError, match="expected s3://, gs://"):
            list_photos([place_])


def test_photos_that_wait_ask_no_server_that_is_gone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def gone(place: str, **ahead: int) -> bytes:
        asked.append(place)
        time.sleep(0.05)
        raise PipelineError("does not answer")

    monkeypatch.setattr("pipeline.inputs.decode.read_photo", gone)
    photos = [Photo(f"{number}.jpg", f"a.tar::{number}.jpg", 0) for number in range(40)]
    with pytest.raises(PipelineError, match="does not answer"):
        next(_contents(photos, ["s3://bucket"], 30))
    assert len(asked) < 5


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()  # of the server before
    server = S3()
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    server.start()
    yield server
    server.kill()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tars", "test-*.parquet", "photos"])
def test_a_bucket_that_goes_away_midway(place: Path, extractor: RegionExtractor, s3: S3, name: str) -> None:
    """Small blocks, so that the server is asked until the end."""
    folder = extract(config(place, "photos", batch_size=1), extractor)
    s3.upload(place / "data", "bucket")
    settings = config(place, "photos", images=(f"s3://bucket/{name}",), output=str(place / "stores/s3"), batch_size=1)

    class Killer:
        calls = 0

        def __getattr__(self, attribute: str) -> Any:
            return getattr(extractor, attribute)

        def launch(self, images: Any) -> Any:
            self.calls += 1
            if self.calls == 5:
                s3.kill()
            return extractor.launch(images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.inputs.decode.BLOCK", 1)
        patch.setattr("pipeline.inputs.decode.READERS", 1)
        with pytest.raises(PipelineError, match=r"does not answer \(.*\); run the same command again to continue"):
            extract(settings, Killer())
    assert 4 <= len(open_store(settings.output)) < COUNT
    s3.start()
    s3.upload(place / "data", "bucket")
    store = extract(settings, extractor)
    assert tensors(store) == tensors(folder)
    assert failures(store) == {}
    assert read_photo(store.image_place(0)) == (place / "photos" / next(iter(store))).read_bytes()
    if name == "tars":  # typed on the command line, with photos from the bucket
        for command in (
            ["train", "--features", settings.output, *SMALL_TRAINING, "--run", str(place / "runs/one")],
            [
                "retrieve",
                "--features",
                settings.output,
                "--run",
                str(place / "runs/one"),
                "--query",
                "a thing",
                "--html",
                str(place / "found.html"),
            ],
        ):
            said = scan(*command)
            assert said.exit_code == 0, said.output
        assert "data:image/jpeg" in (place / "found.html").read_text()
