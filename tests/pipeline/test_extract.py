"""Stage one, from files to store: complete, resumable, and never brought down by a photo."""

import dataclasses
import errno
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from detector import RegionExtractor, Regions
from detector.pending import Pending
from detector.preprocess import PreparedImage
from pipeline import extract
from pipeline.errors import PipelineError, UnreadableImage
from pipeline.extract import run
from pipeline.extraction.detectors import extractor_like
from pipeline.extraction.job import ExtractConfig
from pipeline.inputs import decode
from pipeline.inputs.photos import read_image
from pipeline.inputs.sources import read_photo
from pipeline.store.inspect import inspect_store
from pipeline.store.reader import Store, open_store
from pipeline.store.writer import commit_shard
from tests.photos import write_photos
from tests.world import scan


class Killed(BaseException):
    """Not an Exception: nothing may catch it, as nothing catches a SIGKILL."""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_photos(tmp_path / "photos", 10)
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def extractor(small_weights: Path) -> RegionExtractor:
    return RegionExtractor.from_weights(small_weights, num_regions=4, device="cpu")


def config(photos: Path, **changes: Any) -> ExtractConfig:
    settings = ExtractConfig(
        images=(str(photos),), output=str(photos.parent / "store"), workers=0, batch_size=3, shard_size=4
    )
    return dataclasses.replace(settings, **changes)


def contents(folder: str | Path) -> dict[str, bytes]:
    """Every visible file of a store."""
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("[!.]*"))}


class Fragile:
    """A detector that fails on chosen photos, told by their size, or dies on the n-th call."""

    def __init__(self, extractor: RegionExtractor, *, fails: Sequence[tuple[int, int]] = (), dies_at: int = -1):
        self.inner, self.fails, self.dies_at, self.calls = extractor, fails, dies_at, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def launch(self, images: Sequence[PreparedImage]) -> Pending:
        self.calls += 1
        if self.calls == self.dies_at:
            raise Killed
        if any(image.image_size in self.fails for image in images):
            raise RuntimeError("too hard")
        return self.inner.launch(images)


def extract_all(settings: ExtractConfig, extractor: Any) -> Store:
    return run(settings, extractor=extractor, progress=False)


def test_every_photo_gets_the_regions_that_it_gets_alone(photos: Path, extractor: RegionExtractor) -> None:
    store = extract_all(config(photos, dtype="float32"), extractor)
    assert list(store) == [f"{index:03}.jpg" for index in range(10)]
    for image_id, found in store.items():
        alone = extractor([cv2.imread(str(photos / image_id))])[0]
        np.testing.assert_allclose(found.features, alone.features, atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(found.boxes, alone.boxes, atol=1e-3)
        assert found.image_size == alone.image_size
        assert store.image_path(store.row(image_id)) == photos / image_id
    assert store.manifest["extraction"] == extractor.describe()
    assert inspect_store(store.path, progress=False).ok


@pytest.mark.parametrize("dies_at", [1, 2, 3, 5])
def test_killed_and_continued_ends_with_the_same_bytes(photos: Path, extractor: RegionExtractor, dies_at: int) -> None:
    whole = config(photos, output=str(photos.parent / "whole"))
    extract_all(whole, extractor)
    settings = config(photos)
    with pytest.raises(Killed):
        extract_all(settings, Fragile(extractor, dies_at=dies_at))
    (photos.parent / "store/.shard-00001.safetensors.123.tmp").touch()  # what a killed writer leaves behind
    open_store(settings.output)  # readable at any moment
    extract_all(settings, extractor)
    assert contents(settings.output) == contents(whole.output)


def test_a_complete_store_asks_nothing_of_the_detector(photos: Path, extractor: RegionExtractor) -> None:
    extract_all(config(photos), extractor)
    before = contents(config(photos).output)
    extract_all(config(photos), Fragile(extractor, dies_at=1))
    assert contents(config(photos).output) == before


def test_bad_photos_become_rows_and_the_rest_is_kept(photos: Path, extractor: RegionExtractor) -> None:
    (photos / "001.jpg").write_bytes(b"")
    (photos / "004.jpg").write_bytes((photos / "004.jpg").read_bytes()[:-300])
    (photos / "notes.png").write_text("not a picture")
    (photos / "gone.jpg").symlink_to(photos / "nowhere.jpg")
    store = extract_all(config(photos), Fragile(extractor, fails=[(40, 90)]))  # photos 3 and 7
    assert list(store) == ["000.jpg", "002.jpg", "005.jpg", "006.jpg", "008.jpg", "009.jpg"]
    rows = [json.loads(line) for line in (store.path / "failures.jsonl").read_text().splitlines()]
    assert {row["image_id"]: row["reason"] for row in rows} == {
        "001.jpg": "empty file",
        "003.jpg": "detector: too hard",
        "004.jpg": "truncated",
        "007.jpg": "detector: too hard",
        "gone.jpg": "cannot be read: No such file or directory",
        "notes.png": "not an image (JPEG, PNG, BMP, WEBP, TIFF, GIF, AVIF, HEIF)",
    }
    assert store.manifest["counts"] == {"images": 6, "failures": 6, "shards": 3}


def test_failures_are_tried_again_on_request(
    photos: Path, extractor: RegionExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of photos that are as they were; one that was replaced is extracted again in any case."""
    whole = photos.parent / "whole"
    extract_all(config(photos, output=str(whole)), extractor)

    def of_a_bad_day(place: str) -> bytes:
        if place.endswith("005.jpg"):
            raise UnreadableImage("cannot be read: Input/output error")
        return read_photo(place)

    with monkeypatch.context() as patch:
        patch.setattr(decode, "read_photo", of_a_bad_day)
        assert len(extract_all(config(photos), extractor)) == 9
    assert len(extract_all(config(photos), extractor)) == 9
    assert len(extract_all(config(photos, retry_failures=True), extractor)) == 10
    assert contents(photos.parent / "store") == contents(whole)


def test_photos_added_later_go_into_new_shards(photos: Path, extractor: RegionExtractor) -> None:
    before = contents(extract_all(config(photos), extractor).path)
    write_photos(photos, 3, names="more{}.jpg")
    store = extract_all(config(photos), extractor)
    assert len(store) == 13
    after = contents(store.path)
    assert all(after[name] == content for name, content in before.items() if name.startswith("shard"))


@pytest.mark.parametrize("limit", [1, 4, 6])
def test_limit_takes_the_first_and_can_be_lifted(photos: Path, extractor: RegionExtractor, limit: int) -> None:
    assert len(extract_all(config(photos, limit=limit), extractor)) == limit
    assert len(extract_all(config(photos), extractor)) == 10


def test_other_settings_in_the_same_folder_are_refused(photos: Path, small_weights: Path) -> None:
    settings = config(photos, weights=str(small_weights), num_regions=4, device="cpu")
    run(settings, progress=False)
    for change, message in (
        ({"num_regions": 5}, "num_regions: store 4, asked 5"),
        ({"selection": "maxclass"}, "extraction.selection: store caffe, asked maxclass"),
        ({"dtype": "float32"}, "dtype: store float16, asked float32"),
        ({"detector": {"min_size": 64}}, "extraction.detector.min_size: store 96, asked 64"),
        ({"precision": "bf16"}, "extraction.precision: store float32, asked bf16"),
    ):
        with pytest.raises(PipelineError, match=message):
            run(dataclasses.replace(settings, **change), progress=False)


def test_a_detector_that_never_works_is_not_the_photos_fault(photos: Path, extractor: RegionExtractor) -> None:
    shapes = [(48, 64), (64, 48), (40, 90)]
    with pytest.raises(RuntimeError, match="too hard"):
        extract_all(config(photos), Fragile(extractor, fails=shapes))
    assert len(open_store(config(photos).output)) == 0
    assert len(extract_all(config(photos), extractor)) == 10


def test_photos_that_vanish_with_their_disk_are_not_failures(photos: Path, extractor: RegionExtractor) -> None:
    class Unmounting(Fragile):
        def launch(self, images: Sequence[PreparedImage]) -> Pending:
            found = super().launch(images)
            for path in photos.glob("*.jpg"):
                path.unlink()
            return found

    with pytest.raises(PipelineError, match="its photos are gone; mount it again"):
        extract_all(config(photos), Unmounting(extractor))
    write_photos(photos, 10)
    assert len(extract_all(config(photos), extractor)) == 10


@pytest.mark.parametrize("shared_memory", [True, False])
def test_workers_change_nothing(
    photos: Path, extractor: RegionExtractor, monkeypatch: pytest.MonkeyPatch, shared_memory: bool
) -> None:
    monkeypatch.setattr("pipeline.inputs.decode._room_to_share", lambda: shared_memory)
    extract_all(config(photos, output=str(photos.parent / "alone")), extractor)
    extract_all(config(photos, workers=2), extractor)
    assert contents(photos.parent / "alone") == contents(photos.parent / "store")


def test_a_shard_is_written_while_the_next_is_made(
    photos: Path, extractor: RegionExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    class Announcing(Fragile):
        def launch(self, images: Sequence[PreparedImage]) -> Pending:
            found = super().launch(images)
            if self.calls == 4:  # the first shard is three batches, by shape
                begun.set()
            return found

    def patient(folder: Path, number: int, *arguments: Any, **options: Any) -> None:
        assert number > 0 or begun.wait(60), "the second shard was not begun before the first was written"
        commit_shard(folder, number, *arguments, **options)

    monkeypatch.setattr("pipeline.extraction.local.commit_shard", patient)
    assert len(extract_all(config(photos), Announcing(extractor))) == 10


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_full_disk_is_told_and_nothing_is_lost(
    photos: Path, extractor: RegionExtractor, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    extract_all(config(photos, output=str(photos.parent / "whole")), extractor)

    def full(folder: Path, of: int, *arguments: Any, **options: Any) -> None:
        if of == number:
            raise OSError(errno.ENOSPC, "No space left on device")
        commit_shard(folder, of, *arguments, **options)

    monkeypatch.setattr("pipeline.extraction.local.commit_shard", full)
    with pytest.raises(OSError, match="No space left"):
        extract_all(config(photos), extractor)
    assert len(open_store(config(photos).output)) == 4 * number
    monkeypatch.undo()
    extract_all(config(photos), extractor)
    assert contents(photos.parent / "whole") == contents(photos.parent / "store")


def test_what_was_handed_to_the_writer_is_written_when_the_detector_dies(
    photos: Path, extractor: RegionExtractor
) -> None:
    with pytest.raises(Killed):
        extract_all(config(photos), Fragile(extractor, dies_at=4))  # the first shard is three batches, by shape
    assert list(open_store(config(photos).output)) == ["000.jpg", "001.jpg", "002.jpg", "003.jpg"]


@pytest.mark.parametrize("fails", [[], [(40, 90)], [(48, 64), (40, 90)]])
def test_launching_ahead_as_on_a_gpu_changes_nothing(
    photos: Path, extractor: RegionExtractor, monkeypatch: pytest.MonkeyPatch, fails: list[tuple[int, int]]
) -> None:
    class Launching(Fragile):
        ahead = most_ahead = 0

        def launch(self, images: Sequence[PreparedImage]) -> Pending:
            self.ahead += 1
            self.most_ahead = max(self.ahead, self.most_ahead)
            return Waiting(self, images)

    @dataclasses.dataclass
    class Waiting:
        launching: Launching
        images: Sequence[PreparedImage]

        def done(self) -> bool:
            return False

        def result(self) -> list[Regions]:
            self.launching.ahead -= 1
            return Fragile.launch(self.launching, self.images).result()

    extract_all(config(photos, output=str(photos.parent / "alone"), shard_size=10), Fragile(extractor, fails=fails))
    launching = Launching(extractor, fails=fails)
    extract_all(config(photos, shard_size=10), launching)
    assert (launching.ahead, launching.most_ahead) == (0, 2)
    assert contents(photos.parent / "alone") == contents(photos.parent / "store")


@pytest.mark.parametrize("names", [("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")])
def test_processes_share_the_shards(
    photos: Path, extractor: RegionExtractor, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]
) -> None:
    extract_all(config(photos, output=str(photos.parent / "alone")), extractor)
    counts = []
    for rank in (1, 0):
        monkeypatch.setenv(names[0], str(rank))
        monkeypatch.setenv(names[1], "2")
        counts.append(len(extract_all(config(photos), extractor)))
    assert counts == [4, 10]  # the second of three shards, then the first and the third
    assert contents(photos.parent / "alone") == contents(photos.parent / "store")
    monkeypatch.setenv(names[0], "2")
    with pytest.raises(PipelineError, match="expected a rank below the number of processes"):
        extract_all(config(photos), extractor)


def test_the_default_output_is_named_after_the_last_folder(
    photos: Path, extractor: RegionExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    store = extract_all(ExtractConfig(images=("photos/",), workers=0), extractor)
    assert store.path == Path("features/photos")


def test_one_photo_later_gets_the_same_regions(photos: Path, small_weights: Path) -> None:
    settings = config(photos, weights=str(small_weights), device="cpu", dtype="float32", detector={"min_size": 64})
    store = run(settings, progress=False)
    again = extractor_like(store.extraction, weights=str(small_weights), device=torch.device("cpu"))
    (found,) = again([read_image(photos / "006.jpg")])
    np.testing.assert_allclose(found.features, store["006.jpg"].features, atol=1e-4, rtol=1e-4)
    other = store.extraction | {"weights_sha256": "0" * 64}
    with pytest.raises(PipelineError, match=r"are not those of the run's features \(000000000000…\)"):
        extractor_like(other, weights=str(small_weights), device=torch.device("cpu"))
    with pytest.raises(PipelineError, match="were imported"):
        extractor_like({"imported": "by hand"}, weights=None, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "int8"}, "expected one of float16, float32"),
        ({"precision": "int8"}, "precision 'int8': expected one of float32, bf16, fp16"),
        ({"batch_size": 0}, "batch_size 0: expected at least 1"),
        ({"workers": -1}, "workers -1: expected at least 0"),
    ],
)
def test_settings_are_checked(changes: dict, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        ExtractConfig(**changes)
    with pytest.raises(PipelineError, match="no photos given"):
        extract.run(ExtractConfig())


def test_files_that_are_no_photos_are_counted(
    photos: Path, extractor: RegionExtractor, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.cr2", "b.CR2", "c.mov"):
        (photos / name).touch()
    extract_all(config(photos), extractor)
    said = capsys.readouterr().err
    assert "skipped 3 other files (2 .cr2, 1 .mov); camera raw files have to be converted to JPEG first" in said


def test_next_steps_can_succeed(photos: Path, extractor: RegionExtractor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    nothing = extract_all(config(photos, share="3/9"), extractor)
    assert extract.next_steps(nothing) == [("inspect", nothing.path)]
    store = extract_all(config(photos), extractor)
    assert extract.next_steps(store) == [("inspect", store.path)]  # no captions
    (photos / "captions.tsv").write_text("000.jpg\ta dog\n")
    assert extract.next_steps(store) == [("train",), ("inspect", store.path)]


def test_part_of_a_store_is_said(own_world: Path) -> None:
    options = ["--num-regions", "6", "--workers", "0", "--device", "cpu", "shard_size=4", "--output", "features/part"]
    assert scan("extract", "--images", "coco/train2014", *options, "--limit", "8").exit_code == 0
    assert scan("extract", "--images", "coco/train2014", *options, "share=1/2").exit_code == 0
    asked = scan("retrieve", "--query", "a dog by a tree", "--features", "features/part")
    assert "note: features/part is not complete: searching the 12 photos that it holds so far" in asked.stderr
    judged = scan("evaluate", "--features", "features/part", "--captions", "coco/annotations/captions_train2014.json")
    assert "note: features/part is not complete: these are the 12 images that it holds so far" in judged.output


def test_a_part_without_work_says_so(own_world: Path) -> None:
    options = ["--num-regions", "6", "--workers", "0", "--device", "cpu", "--output", "features/part", "share=3/9"]
    said = scan("extract", "--images", "coco/train2014", *options)
    assert "features/part: nothing to do for this part, the store has 1 shards" in said.stderr


def test_bars_show_no_escape_sequences(tmp_path: Path, small_weights: Path) -> None:
    write_photos(tmp_path / "p\x1b[31mq", 2)
    (tmp_path / "p\x1b[31mq/a.\x1b[32mx").touch()
    options = ["--num-regions", "4", "--workers", "0", "--device", "cpu", "--weights", str(small_weights)]
    said = scan("extract", "--images", str(tmp_path / "p\x1b[31mq"), "--output", str(tmp_path / "p\x1b[2Jq"), *options)
    assert said.exit_code == 0, said.output
    assert r"p\x1b[2Jq" in said.stderr
    assert "\x1b[31m" not in said.output
    assert "\x1b[32m" not in said.output
    assert "\x1b[2J" not in said.output
