"""Disks that are full or read-only, folders that change, runs that meet, names that nobody expected."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.extract import run
from pipeline.inputs import decode
from pipeline.inputs.sources import list_photos
from pipeline.store.inspect import inspect_store
from pipeline.store.plan import read_plan
from pipeline.store.reader import Store, open_store
from pipeline.store.repair import repair_store
from pipeline.store.update import update_plan
from tests.faults import QuickDetector, at_step, contents, in_clean_process, small_config
from tests.photos import write_photos
from tests.world import scan

REPOSITORY = Path(__file__).resolve().parents[3]
CONTINUE = "run the same command again to continue"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_photos(tmp_path / "photos", 10)
    return tmp_path / "photos"


def extract(
    photos: Path, name: str = "store", between: Callable[[], object] = lambda: None, **changes: object
) -> Store:
    settings = small_config(photos, photos.parent / name, **changes)
    return run(settings, extractor=QuickDetector(between=between), progress=False)


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Callable[[str], None]]:
    """A small file system of its own, where this user may mount one; gives what mounts it again with other options."""
    folder.mkdir()

    def mount(options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True, capture_output=True)

    try:
        mount(*options)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a tmpfs here ({error})")
    try:
        yield lambda changed: mount(f"remount,{changed}")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(("code", "remedy"), [
    (errno.ENOSPC, f"No space left on device; free some space and {CONTINUE}"),
    (errno.EROFS, "Read-only file system; expected a folder that can be written to; make it one, or name another"),
    (errno.EIO, f"Input/output error; check the disk and {CONTINUE}"),
])  # fmt: skip
def test_a_disk_that_fails_at_any_step(photos: Path, code: int, remedy: str) -> None:
    whole = contents(extract(photos, "whole").path)
    store = photos.parent / "store"

    def fail() -> None:
        raise OSError(code, os.strerror(code))

    def attempt(step: int) -> tuple[int, str]:
        with at_step(store, step, fail) as steps:
            try:
                extract(photos)
            except PipelineError as error:
                return steps.count, str(error)
        return steps.count, ""

    for step in range(1, 1000, 1 if code == errno.ENOSPC else 7):
        count, error = attempt(step)
        if count < step:
            break
        assert not error or (
            error.startswith(str(store)) and error.endswith(remedy)
        )  # some are cleaning up: not needed
        if (store / "manifest.json").is_file():
            assert inspect_store(store, progress=False).ok
        assert contents(extract(photos).path) == whole, f"failed at step {step}"
        assert not list(store.glob(".*.tmp"))
        for path in store.iterdir():
            path.unlink()
        store.rmdir()
    assert step > 70


def test_a_full_disk_ends_in_one_line_and_more_space_continues(
    photos: Path, tmp_path: Path, small_weights: Path
) -> None:
    command = ["extract", "--images", str(photos), "--weights", str(small_weights), "--device", "cpu"]
    command += ["--num-regions", "36", "--workers", "0", "--dtype", "float32", "shard_size=2"]
    assert scan(*command, "--output", str(tmp_path / "other/whole")).exit_code == 0
    with mounted(tmp_path / "disk", "size=80k") as remount:
        said = scan(*command, "--output", str(tmp_path / "disk/store"))
        assert said.exit_code == 2
        error = said.output.splitlines()[-1]
        assert error.startswith(f"error: {tmp_path / 'disk/store'}")
        assert error.endswith(f"No space left on device; free some space and {CONTINUE}")
        assert 0 < len(open_store(tmp_path / "disk/store")) < 10
        remount("size=4m")
        assert scan(*command, "--output", str(tmp_path / "disk/store")).exit_code == 0
        assert contents(tmp_path / "disk/store") == contents(tmp_path / "other/whole")


def test_shared_memory_that_runs_out_stops_nothing(photos: Path) -> None:
    """A limit to the size of files holds for shared memory as well, which is full in the same way."""
    code = """
import resource, sys
import numpy as np
from detector.preprocess import InputSettings
from pipeline.inputs import decode
from pipeline.inputs.sources import list_photos

decode._room_to_share = lambda: True
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
roots, settings = [sys.argv[1]], InputSettings(600, 1000, (0.0, 0.0, 0.0))
alone, shared = (
    [photo.image.pixels for photo in decode.decode_photos(list_photos(roots), roots, settings, workers=workers, ahead=4)]
    for workers in (0, 2)
)
print(len(shared), min(pixels.nbytes for pixels in shared) > 100_000, all(map(np.array_equal, alone, shared)))
"""
    command = [sys.executable, "-c", code, str(photos)]
    said = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=120)
    assert said.stdout.split() == ["10", "True", "True"], said.stderr


def test_a_read_only_output_ends_in_one_line(photos: Path, tmp_path: Path) -> None:
    whole = contents(extract(photos, "whole").path)
    with mounted(tmp_path / "disk", "size=4m") as remount:
        remount("ro")
        for name in ("disk", "disk/store"):
            with pytest.raises(PipelineError, match="Read-only file system; expected a folder that can be written to"):
                extract(photos, name)
        remount("rw")
        extract(photos, "disk")
        (tmp_path / "disk/shard-00001.json").unlink()
        remount("ro")
        with pytest.raises(PipelineError, match="Read-only file system"):
            extract(photos, "disk")
        assert inspect_store(tmp_path / "disk", progress=False).ok  # looking writes nothing
        assert len(open_store(tmp_path / "disk")) == 6
        remount("rw")
        assert contents(extract(photos, "disk").path) == whole


def test_an_output_that_is_a_file(photos: Path) -> None:
    (photos.parent / "store").touch()
    with pytest.raises(
        PipelineError, match="File exists; expected a folder that can be written to; make it one, or name another"
    ):
        extract(photos)


def two_at_once(photos: Path) -> list[int]:
    """Runs in a clean process: both take every shard."""
    import pipeline.extract  # noqa: F401 (before the fork)

    pids = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                extract(photos, between=lambda: time.sleep(0.002))
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    return [os.waitpid(pid, 0)[1] for pid in pids]


def test_two_runs_into_one_folder(photos: Path) -> None:
    whole = contents(extract(photos, "whole").path)
    assert in_clean_process(two_at_once, photos) == [0, 0]
    assert contents(photos.parent / "store") == whole
    assert not list((photos.parent / "store").glob(".*.tmp"))


def test_a_run_with_other_settings_comes_too_late(photos: Path) -> None:
    def other_run() -> None:
        settings = small_config(photos, photos.parent / "store")
        with pytest.raises(PipelineError, match=r"made with other settings \(extraction\.weights_sha256"):
            run(settings, extractor=QuickDetector("1" * 64), progress=False)

    assert len(extract(photos, between=other_run)) == 10


def test_a_store_that_was_replaced_meanwhile_is_left_alone(photos: Path) -> None:
    """Somebody deletes the folder of a run at work, and begins another run there."""
    replaced = []

    def replace() -> None:
        if not replaced:
            for path in (photos.parent / "store").iterdir():
                path.unlink()
            replaced.append(True)
            settings = small_config(photos, photos.parent / "store", dtype="float32")
            run(settings, extractor=QuickDetector("1" * 64), progress=False)
            replaced.append(contents(photos.parent / "store"))

    with pytest.raises(PipelineError, match="has become another store meanwhile"):
        extract(photos, between=replace)
    assert contents(photos.parent / "store") == replaced[1]


def test_photos_that_change_while_they_are_read(photos: Path) -> None:
    """One goes, one is cut, one is replaced and two come, after the plan was made and before they were read."""
    changed = []

    def change() -> None:
        if not changed:
            changed.append(True)
            (photos / "006.jpg").unlink()
            (photos / "007.jpg").write_bytes((photos / "007.jpg").read_bytes()[:-200])
            (photos / "008.jpg").write_bytes((photos / "001.jpg").read_bytes())
            write_photos(photos, 2, names="new{}.jpg")

    store = extract(photos, between=change)
    failures = {row["image_id"]: row["reason"] for shard in store.shards for row in shard.failures}
    assert failures == {"006.jpg": "cannot be read: No such file or directory", "007.jpg": "truncated"}
    assert len(store) == 8
    assert store["008.jpg"].image_size == store["001.jpg"].image_size  # as it was when it was read
    again = extract(photos)
    assert sorted([*again, "006.jpg", "007.jpg"]) == sorted(
        [f"{n:03}.jpg" for n in range(10)] + ["new0.jpg", "new1.jpg"]
    )
    assert [row["image_id"] for shard in again.shards for row in shard.failures] == ["007.jpg"]  # 006 is gone
    assert inspect_store(again.path, progress=False).ok


def test_photos_of_another_folder_while_the_first_are_read(photos: Path, tmp_path: Path) -> None:
    """Nothing is committed yet that tells one folder from the other: the second has the store, and the first says so."""
    write_photos(tmp_path / "other/photos", 10, shapes=[(30, 50)])
    store = []

    def second_run() -> None:
        if not store:
            settings = small_config(tmp_path / "other/photos", photos.parent / "store")
            store.append(None)
            store[0] = contents(run(settings, extractor=QuickDetector(), progress=False).path)

    with pytest.raises(PipelineError, match=r"has become another store meanwhile \(of the photos in .*other/photos"):
        extract(photos, between=second_run)
    assert contents(photos.parent / "store") == store[0]


@pytest.mark.parametrize("dies", [True, False], ids=["which dies after its plan", "which goes on"])
def test_a_photo_replaced_between_two_runs_of_one_store(photos: Path, dies: bool) -> None:
    """The first has read the photo and not written it, when the second comes and finds it changed."""
    settings = small_config(photos, photos.parent / "store")
    begun = []

    def second_run() -> None:
        if begun:
            return
        begun.append(True)
        (photos / "001.jpg").write_bytes((photos / "005.jpg").read_bytes())
        if dies:
            update_plan(photos.parent / "store", list_photos([photos]), 4, roots=[photos])
        else:
            run(settings, extractor=QuickDetector(), progress=False)

    extract(photos, between=second_run)
    last = extract(photos)
    assert contents(last.path) == contents(extract(photos, "fresh").path)
    assert inspect_store(last.path, progress=False).ok


def test_ctrl_c_while_decoding_processes_begin(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the main process's business: a worker that has not even begun neither ends nor prints a traceback."""
    whole = contents(extract(photos, "whole").path)
    monkeypatch.setattr(decode, "_quiet_worker", lambda _: os.kill(os.getpid(), signal.SIGINT))
    assert contents(extract(photos, workers=2).path) == whole
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_listing_while_photos_come_and_go(photos: Path) -> None:
    """Every photo that stays is listed, once."""
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            for index in range(50):
                (photos / f"x{index}.jpg").touch()
            for index in range(50):
                (photos / f"x{index}.jpg").unlink()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(50):
            found = [photo.image_id for photo in list_photos([photos])]
            assert [name for name in found if name[0] != "x"] == [f"{n:03}.jpg" for n in range(10)]
            assert len(set(found)) == len(found)
    finally:
        stop.set()
        thread.join()


NAMES = [
    "two words.jpg", "line\nbreak.jpg", "tab\t.jpg", "quote\"'.jpg", "back\\slash.jpg", "-rf.jpg", "%s{0}$HOME.jpg",
    "été.jpg", "e\u0301te\u0301.jpg", "犬と木.JPG", "🐕.jpeg", "\u202egpj.exe.jpg", "x" * 251 + ".jpg",
    os.fsdecode(b"not utf-8 \xff\xfe.jpg"), os.fsdecode(b"\xe9t\xe9/latin.jpg"), " /space.jpg", "a:b?*|<>.png",
]  # fmt: skip


def test_names_that_nobody_expected(tmp_path: Path, small_weights: Path) -> None:
    write_photos(tmp_path / "photos", len(NAMES), names="{}.jpg")
    for index, name in enumerate(NAMES):
        (tmp_path / "photos" / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"photos/{index}.jpg").rename(tmp_path / "photos" / name)
    (tmp_path / "photos" / os.fsdecode(b"bad \xff\n.jpg")).write_bytes(b"no photo")
    command = ["extract", "--images", str(tmp_path / "photos"), "--weights", str(small_weights), "--device", "cpu"]
    command += ["--num-regions", "4", "--workers", "2", "--output", str(tmp_path / "store")]
    said = scan(*command)
    assert said.exit_code == 0, said.output
    store = open_store(tmp_path / "store")
    assert sorted(store) == sorted(NAMES)
    assert all(store.image_path(row) == tmp_path / "photos" / store.image_ids[row] for row in range(len(store)))
    assert [row["image_id"] for shard in store.shards for row in shard.failures] == ["bad \udcff\n.jpg"]
    assert {photo.image_id for shard in read_plan(store.path) for photo in shard.photos} == {*NAMES, "bad \udcff\n.jpg"}
    before = contents(store.path)
    assert scan(*command).exit_code == 0
    assert contents(store.path) == before
    (store.path / "images.jsonl").unlink()
    assert scan("inspect", str(store.path), "--repair").exit_code == 0
    assert scan(*command).exit_code == 0  # adds sizes and times of the photos to the plan
    assert contents(store.path) == before


@pytest.mark.slow
def test_a_hundred_thousand_tiny_files(tmp_path: Path) -> None:
    """Listed, planned, extracted and opened in seconds; what is quadratic would take hours."""
    for folder in range(10):
        write_photos(tmp_path / f"photos/{folder}", 1, names="0.jpg")
        for index in range(1, 10_000):
            os.link(tmp_path / f"photos/{folder}/0.jpg", tmp_path / f"photos/{folder}/{index}.jpg")
    began, took = time.perf_counter(), {}

    def lap(name: str) -> None:
        took[name] = round(time.perf_counter() - began - sum(took.values()), 1)

    photos = list_photos([tmp_path / "photos"])
    assert len(photos) == 100_000
    lap("listed")
    store = extract(tmp_path / "photos", shard_size=64, batch_size=64)
    assert len(store) == 100_000
    lap("extracted")
    assert extract(tmp_path / "photos").manifest["counts"]["images"] == 100_000
    lap("found complete")
    assert len(open_store(store.path)) == 100_000
    lap("opened")
    (store.path / "images.jsonl").unlink()
    assert repair_store(store.path, progress=False).ok
    lap("repaired")
    print(took)
    assert max(took["listed"], took["found complete"], took["opened"]) < 60, took
