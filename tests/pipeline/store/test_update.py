"""A store follows its photos: what changed is extracted again, what vanished goes, other photos are refused."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.extract import run
from pipeline.files import temporary_files
from pipeline.inputs.finding import find_captions
from pipeline.store import update
from pipeline.store.format import FEATURES
from pipeline.store.inspect import inspect_store
from pipeline.store.reader import Store, open_store
from tests.faults import EVERY, QuickDetector, at_step, contents, forked, in_clean_process, small_config
from tests.photos import write_photos
from tests.stores import assert_same
from tests.world import scan


class CountingDetector(QuickDetector):
    """Counts the photos that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.photos = 0

    def _regions(self, image):  # type: ignore[no-untyped-def]
        self.photos += 1
        return super()._regions(image)


def extract(photos: Path, store: Path, **changes: object) -> int:
    """Extracts, and gives the number of photos that the detector saw."""
    detector = CountingDetector()
    run(small_config(photos, store, **changes), extractor=detector, progress=False)
    return detector.photos


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten photos, of which one cannot be decoded, and their store of three shards (4, 4, 2)."""
    write_photos(tmp_path / "photos", 10)
    (tmp_path / "photos/005.jpg").write_bytes(b"no photo")
    assert extract(tmp_path / "photos", tmp_path / "store") == 9
    return tmp_path / "photos"


def replace_photo(path: Path, by: Path) -> None:
    """Another photo of the same name, and even the same time."""
    times = path.stat()
    shutil.copy(by, path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def without_times(store: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(store).items() if name != "images.jsonl"}


def test_a_changed_photo_is_extracted_again_and_said(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(tmp_path / "store")
    replace_photo(photos / "001.jpg", photos / "008.jpg")
    assert extract(photos, tmp_path / "store") == 4  # its shard
    assert "store: 1 changed photo\n" in capsys.readouterr().err
    extract(photos, tmp_path / "fresh")
    assert contents(tmp_path / "store") == contents(tmp_path / "fresh") != before
    assert extract(photos, tmp_path / "store") == 0
    assert capsys.readouterr().err == ""


def test_a_photo_that_could_not_be_decoded_and_is_replaced(photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "001.jpg", photos / "005.jpg")
    assert extract(photos, tmp_path / "store") == 4
    assert "005.jpg" in open_store(tmp_path / "store")


@pytest.mark.parametrize(("link", "goal"), [("photos/a.jpg", "a.jpg"), ("photos/2024", ""), ("photos", "")])
def test_a_link_to_another_photo_of_the_same_size_and_time_is_extracted_again(
    link: str, goal: str, tmp_path: Path
) -> None:
    """Be it the photo, a folder of photos, or the root."""
    write_photos(tmp_path / "files", 2, names="{}.jpg", shapes=[(48, 64)])
    for number in "01":
        (tmp_path / "files" / number).mkdir()
        file = (tmp_path / f"files/{number}.jpg").rename(tmp_path / f"files/{number}/a.jpg")
        file.write_bytes(file.read_bytes().ljust(5000, b"\0"))
        os.utime(file, (1e9, 1e9))
    (tmp_path / link).parent.mkdir(exist_ok=True)
    for number, seen in ((0, 1), (1, 1), (1, 0)):
        (tmp_path / link).unlink(missing_ok=True)
        (tmp_path / link).symlink_to(tmp_path / f"files/{number}" / goal)
        assert extract(tmp_path / "photos", tmp_path / "store") == seen
        assert extract(tmp_path / "photos", tmp_path / "store") == 0


def test_frames_of_one_size_and_time_are_compared_when_they_are_renumbered(tmp_path: Path) -> None:
    photos = tmp_path / "clip"
    write_photos(photos, 6, names="{:03}.bmp", shapes=[(48, 64)])
    for path in photos.iterdir():
        os.utime(path, (10**9, 10**9))
    assert extract(photos, tmp_path / "store") == 6
    assert extract(photos, tmp_path / "store") == 0
    (photos / "000.bmp").unlink()
    for number in range(1, 6):
        (photos / f"{number:03}.bmp").rename(photos / f"{number - 1:03}.bmp")
    assert extract(photos, tmp_path / "store") == 5
    extract(photos, tmp_path / "fresh")
    assert_same(open_store(tmp_path / "store"), open_store(tmp_path / "fresh"))


def test_touched_and_copied_photos_are_not_extracted_again(photos: Path, tmp_path: Path) -> None:
    before = without_times(tmp_path / "store")
    for path in photos.iterdir():
        os.utime(path, ns=(1, 1))
    assert extract(photos, tmp_path / "store") == 0
    assert without_times(tmp_path / "store") == before


def test_the_bytes_of_shards_and_marks_do_not_depend_on_times(photos: Path, tmp_path: Path) -> None:
    os.utime(photos / "001.jpg", ns=(1, 1))
    extract(photos, tmp_path / "again")
    assert without_times(tmp_path / "again") == without_times(tmp_path / "store")


def test_vanished_photos_are_dropped_without_a_detector(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    before = contents(store)
    for name in ("001.jpg", "005.jpg", "009.jpg"):
        (photos / name).unlink()
    assert extract(photos, store) == 0
    assert "store: 3 vanished photos" in capsys.readouterr().err
    assert list(open_store(store)) == [f"{n:03}.jpg" for n in (0, 2, 3, 4, 6, 7, 8)]
    assert not (store / "failures.jsonl").read_bytes()
    assert inspect_store(store, progress=False).ok
    (store / "shard-00000.json").unlink()
    after = contents(store)
    assert extract(photos, store) == 3
    assert contents(store)["shard-00000.safetensors"] == after["shard-00000.safetensors"]  # dropping is extracting less
    assert before["shard-00000.safetensors"] != after["shard-00000.safetensors"]


def test_of_the_last_shard_and_of_a_shard_that_is_empty_then(photos: Path, tmp_path: Path) -> None:
    for name in ("007.jpg", "008.jpg", "009.jpg"):
        (photos / name).unlink()
    assert extract(photos, tmp_path / "store") == 0
    extract(photos, tmp_path / "fresh")
    assert contents(tmp_path / "store") == contents(tmp_path / "fresh")


def test_changed_vanished_and_new_at_once(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replace_photo(photos / "004.jpg", photos / "000.jpg")
    (photos / "009.jpg").unlink()
    write_photos(photos, 2, names="new{}.jpg")
    assert extract(photos, tmp_path / "store") == 3 + 2
    assert "store: 1 changed, 1 vanished, 2 new photos" in capsys.readouterr().err
    assert len(open_store(tmp_path / "store")) == 10


def test_a_limit_drops_nothing(photos: Path, tmp_path: Path) -> None:
    before = contents(tmp_path / "store")
    assert extract(photos, tmp_path / "store", limit=2) == 0
    assert contents(tmp_path / "store") == before


@pytest.mark.parametrize("size", [None, 0, 100])
def test_a_deleted_shard_file_is_noticed_and_made_again(photos: Path, tmp_path: Path, size: int | None) -> None:
    before = contents(tmp_path / "store")
    path = tmp_path / "store/shard-00001.safetensors"
    if size is None:
        path.unlink()
    else:
        os.truncate(path, size)
    assert extract(photos, tmp_path / "store") == 3
    assert contents(tmp_path / "store") == before


def two_years(tmp_path: Path) -> tuple[Path, Path]:
    for year, first in (("2019", 0), ("2020", 2)):
        write_photos(tmp_path / year / "photos", 4, names=year + "_{}.jpg")
        for index in range(4):
            (tmp_path / f"{year}/photos/{year}_{index}.jpg").rename(tmp_path / f"{year}/photos/{first + index}.jpg")
    shutil.copy(tmp_path / "2019/photos/2.jpg", tmp_path / "2020/photos/2.jpg")
    return tmp_path / "2019/photos", tmp_path / "2020/photos"


@pytest.mark.parametrize("is_there", [True, False])
def test_another_folder_of_the_same_name_is_refused(tmp_path: Path, is_there: bool) -> None:
    first, second = two_years(tmp_path)
    extract(first, tmp_path / "store")
    before = contents(tmp_path / "store")
    if not is_there:
        shutil.rmtree(first)
    with pytest.raises(
        PipelineError, match=r"store: holds the photos of .*2019/photos; of its 4 photos 1 are in"
    ) as caught:
        extract(second, tmp_path / "store")
    assert caught.value.remedy == "choose another folder with --output"
    assert contents(tmp_path / "store") == before


def test_the_command_refuses_another_folder_of_the_same_name(
    tmp_path: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_years(tmp_path)
    monkeypatch.chdir(tmp_path)
    command = ["--weights", str(small_weights), "--device", "cpu", "--num-regions", "4", "--workers", "0"]
    assert scan("extract", "--images", "2019/photos", *command).exit_code == 0
    result = scan("extract", "--images", "2020/photos", *command)
    assert result.exit_code == 2
    assert "choose another folder with --output" in result.output.splitlines()[-1]
    assert scan("extract", "--images", "2020/photos", *command, "--output", "features/2020").exit_code == 0
    assert {path.name for path in FEATURES.iterdir()} == {"photos", "2020"}


def test_a_copy_of_the_photos_with_more_is_accepted(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "copy/photos")
    write_photos(tmp_path / "copy/photos", 1, names="new{}.jpg")
    assert extract(tmp_path / "copy/photos", tmp_path / "store") == 1
    store = open_store(tmp_path / "store")
    assert store.image_path(store.row("new0.jpg")) == tmp_path / "copy/photos/new0.jpg"


def test_a_project_that_moved_as_a_whole(photos: Path, tmp_path: Path) -> None:
    """Its photos are found at once; an extraction goes on, also when some changed meanwhile."""
    project = tmp_path / "project"
    project.mkdir()
    for name in ("photos", "store"):
        (tmp_path / name).rename(project / name)
    before = without_times(project / "store")
    store = open_store(project / "store")
    assert [store.image_path(row) for row in range(9)] == [project / "photos" / name for name in store]
    replace_photo(project / "photos/009.jpg", project / "photos/000.jpg")
    assert extract(project / "photos", project / "store") == 2
    after = without_times(project / "store")
    assert {name for name in after if after[name] != before[name]} == {
        "manifest.json",  # says where the photos are now
        "shard-00002.json",
        "shard-00002.safetensors",
    }


def test_a_copy_of_a_project_has_its_own_photos_and_captions(photos: Path, tmp_path: Path) -> None:
    """The old one is still there."""
    project = tmp_path / "project"
    shutil.copytree(photos, project / "photos")
    extract(project / "photos", project / "features/photos")
    names = sorted(path.name for path in (project / "photos").iterdir())
    (project / "captions.tsv").write_text(f"{names[0]}\tA dog\n")
    shutil.copytree(project, tmp_path / "copy")
    store = open_store(tmp_path / "copy/features/photos")
    assert store.image_path(0) == tmp_path / "copy/photos" / names[0]
    assert find_captions(store) == [tmp_path / "copy/captions.tsv"]
    # A store that was copied alone, to where others' photos have the same names
    write_photos(tmp_path / "other/photos", len(names), shapes=[(30, 30)])
    shutil.copytree(project / "features", tmp_path / "other/features")
    store = open_store(tmp_path / "other/features/photos")
    assert store.image_path(0) == project / "photos" / names[0]


def test_photos_that_moved_alone(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    photos.rename(tmp_path / "other/photos")
    (tmp_path / "other/photos/003.jpg").unlink()
    assert extract(tmp_path / "other/photos", tmp_path / "store") == 0
    store = open_store(tmp_path / "store")
    assert len(store) == 8
    assert store.image_path(0) == tmp_path / "other/photos/000.jpg"


def test_a_disk_that_is_not_mounted_takes_no_features_away(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update, "MANY", 5)
    before = contents(tmp_path / "store")
    for index in range(6):
        (photos / f"{index:03}.jpg").rename(tmp_path / f"{index}")
    with pytest.raises(
        PipelineError, match=r"6 of its 10 photos are gone from .*photos; put them back, choose another"
    ):
        extract(photos, tmp_path / "store")
    assert contents(tmp_path / "store") == before


def test_photos_of_several_folders(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        write_photos(folder, 3)
    detector = CountingDetector()
    run(small_config(folders, tmp_path / "store"), extractor=detector, progress=False)
    (folders[0] / "001.jpg").unlink()
    replace_photo(folders[1] / "002.jpg", folders[1] / "001.jpg")
    detector = CountingDetector()
    store: Store = run(small_config(folders, tmp_path / "store"), extractor=detector, progress=False)
    assert detector.photos == 2  # of the second shard
    assert list(store) == ["a/000.jpg", "a/002.jpg", "b/000.jpg", "b/001.jpg", "b/002.jpg"]


def update_killed_at_steps(folder: Path, every: int) -> tuple[int, list[str]]:
    """Runs in a clean process: a store whose photos changed, its update killed at many steps and begun again."""
    photos, store = folder / "photos", folder / "store"

    def extract_quickly() -> None:
        run(small_config(photos, store), extractor=QuickDetector(), progress=False)

    shutil.copytree(store, folder / "before")
    replace_photo(photos / "004.jpg", photos / "000.jpg")
    for name in ("002.jpg", "008.jpg", "009.jpg"):  # one of a shard, and all of another
        (photos / name).unlink()
    write_photos(photos, 1, names="new{}.jpg")
    assert forked(extract_quickly) == 0
    wanted, wrong = contents(store), []
    for step in range(1, 1000, every):
        shutil.rmtree(store)
        shutil.copytree(folder / "before", store)

        def run_until_killed(step: int = step) -> None:
            with at_step(store, step, lambda: os._exit(9)):
                extract_quickly()

        if forked(run_until_killed) == 0:
            return step, wrong
        if damaged := inspect_store(store, progress=False).damaged:
            wrong.append(f"step {step}: {damaged}")
        if forked(extract_quickly, log=folder / "log") != 0:
            wrong.append(f"step {step}: does not continue: {(folder / 'log').read_text()[-500:]}")
        elif contents(store) != wanted or temporary_files(store):
            wrong.append(f"step {step}: other bytes")
    raise AssertionError("a small update took a thousand steps")


@EVERY
def test_an_update_killed_between_any_two_file_operations(photos: Path, tmp_path: Path, every: int) -> None:
    end, wrong = in_clean_process(update_killed_at_steps, tmp_path, every)
    assert wrong == []
    assert end > 51


CHANGES: dict[str, Callable[[Path], object]] = {
    "a changed photo": lambda photos: replace_photo(photos / "001.jpg", photos / "008.jpg"),
    "a vanished photo": lambda photos: (photos / "001.jpg").unlink(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_without_a_plan_a_repair_and_an_extraction_follow_as_well(
    photos: Path, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    (tmp_path / "store/images.jsonl").unlink()
    change(photos)
    assert scan("inspect", str(tmp_path / "store"), "--repair").exit_code == 0
    extract(photos, tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert ("001.jpg" in store) == (photos / "001.jpg").exists()


def test_a_copy_with_a_photo_that_cannot_be_read(photos: Path, tmp_path: Path) -> None:
    (photos / "broken.jpg").symlink_to(tmp_path / "nowhere")
    extract(photos, tmp_path / "store")
    shutil.copytree(photos, tmp_path / "copy/photos", symlinks=True)
    assert extract(tmp_path / "copy/photos", tmp_path / "store") == 0
