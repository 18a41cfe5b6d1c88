"""inspect --repair: whatever was damaged, the same extract command ends with the bytes of an undisturbed run."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.extract import run
from pipeline.interchange.convert import SHARD_SIZE
from pipeline.store.inspect import inspect_store
from pipeline.store.marks import seal
from pipeline.store.reader import Store, open_store
from pipeline.store.repair import repair_store
from tests.faults import QuickDetector, contents, small_config
from tests.photos import write_photos
from tests.stores import import_any
from tests.world import scan

REST = 40  # images of an imported store's last shard
IMPORTED = SHARD_SIZE + REST


def extract(folder: Path) -> Store:
    """Every folder of photos in a folder, into its store."""
    photos = sorted(folder.glob("photos*"))
    return run(small_config(photos, folder / "store"), extractor=QuickDetector(), progress=False)


def small_world(folder: Path) -> Path:
    """Ten photos of which one is damaged, and their store of three shards."""
    write_photos(folder / "photos", 10)
    (folder / "photos/005.jpg").write_bytes(b"no photo")
    extract(folder)
    return folder / "store"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return small_world(tmp_path)


def cut(path: Path, keep: int = -1) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def copy_shard(store: Path, source: int, target: int) -> None:
    for suffix in ("json", "safetensors"):
        shutil.copy(store / f"shard-{source:05}.{suffix}", store / f"shard-{target:05}.{suffix}")


def foreign_shard(store: Path) -> None:
    """A shard of the same photos, made with another detector."""
    other = small_config(store.parent / "photos", store.parent / "other")
    run(other, extractor=QuickDetector("1" * 64), progress=False)
    for path in (store.parent / "other").glob("shard-00001.*"):
        shutil.copy(path, store / path.name)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "tensors cut": lambda store: cut(store / "shard-00001.safetensors"),
    "tensors empty": lambda store: cut(store / "shard-00001.safetensors", 0),
    "tensors flipped": lambda store: flip(store / "shard-00001.safetensors", -3),
    "tensors' header flipped": lambda store: flip(store / "shard-00001.safetensors", 3),
    "tensors gone": lambda store: (store / "shard-00001.safetensors").unlink(),
    "mark cut": lambda store: cut(store / "shard-00000.json", -20),
    "mark empty": lambda store: cut(store / "shard-00000.json", 0),
    "an id in a mark changed": lambda store: change(store / "shard-00000.json", '"002.jpg"', '"0x2.jpg"'),
    "a reason in a mark changed": lambda store: change(store / "shard-00001.json", "not an", "not on"),
    "a mark in another's place": lambda store: copy_shard(store, 0, 1),
    "a shard copied to a new number": lambda store: copy_shard(store, 1, 3),
    "a shard of another detector": foreign_shard,
    "manifest cut": lambda store: cut(store / "manifest.json", 40),
    "manifest empty": lambda store: cut(store / "manifest.json", 0),
    "manifest gone": lambda store: (store / "manifest.json").unlink(),
    "manifest's settings changed": lambda store: change(store / "manifest.json", '"caffe"', '"kaffe"'),
    "plan cut": lambda store: cut(store / "images.jsonl", -9),
    "plan cut at a line": lambda store: cut(store / "images.jsonl", store.joinpath("images.jsonl").read_bytes().rfind(b"\n{") + 1),
    "plan gone": lambda store: (store / "images.jsonl").unlink(),
    "a path in the plan changed": lambda store: change(store / "images.jsonl", '"path": "003', '"path": "0o3'),
    "a path in the plan leads out": lambda store: change(store / "images.jsonl", '"path": "003', '"path": "../003'),
    "an image in the plan twice": lambda store: change(store / "images.jsonl", '"image_id": "003', '"image_id": "002'),
    "the plan names no such folder": lambda store: change(store / "images.jsonl", '"root": 0', '"root": 7'),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_mended_and_continued_it_is_as_if_nothing_had_happened(store: Path, damage: Callable[[Path], object]) -> None:
    whole = contents(store)
    damage(store)
    damaged = contents(store)
    report = inspect_store(store, progress=False)
    assert not report.ok
    assert "DAMAGED" in str(report)
    assert f"repair it with: scan-pipeline inspect {store} --repair" in str(report)
    assert contents(store) == damaged  # looking changes nothing
    mended = repair_store(store, progress=False)
    assert mended.repairs or mended.manifest is None  # nothing to move where it is gone
    assert mended.to_redo == (not mended.ok)
    assert not mended.damaged
    set_aside = [path for path in (store / "damaged").glob("*") if path.read_bytes() not in damaged.values()]
    assert not set_aside  # as it was found
    found = extract(store.parent)
    assert contents(store) == whole
    assert len(found) == 9
    assert inspect_store(store, progress=False).ok


def test_everything_at_once(store: Path) -> None:
    whole = contents(store)
    for name in ("tensors flipped", "an id in a mark changed", "plan gone"):
        DAMAGES[name](store)
    (store / "failures.jsonl").write_text("{")
    repair_store(store, progress=False)
    extract(store.parent)
    assert contents(store) == whole


def test_photos_of_several_folders_are_planned_from_where_they_are(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos_a", 5)
    write_photos(tmp_path / "photos_b", 5)
    for name in ("photos_a/001.jpg", "photos_b/001.jpg", "photos_b/004.jpg"):
        (tmp_path / name).write_bytes(b"no photo")
    whole = contents(extract(tmp_path).path)
    (tmp_path / "store/images.jsonl").unlink()
    assert repair_store(tmp_path / "store", progress=False).ok
    extract(tmp_path)  # adds sizes and times of the photos
    assert contents(tmp_path / "store") == whole
    for name in ("images.jsonl", "manifest.json"):  # two rounds: the manifest says where the failed photos are
        (tmp_path / "store" / name).unlink()
    report = repair_store(tmp_path / "store", progress=False)
    assert "type the extract command that made this store again" in str(report)
    with pytest.raises(
        PipelineError, match=r"images\.jsonl: does not plan the images of shard 0; repair it with: scan"
    ):
        extract(tmp_path)
    repair_store(tmp_path / "store", progress=False)
    extract(tmp_path)
    assert contents(tmp_path / "store") == whole


@pytest.mark.parametrize("name", ["failures.jsonl", "manifest.json"])
def test_what_follows_from_the_marks_is_written_again(store: Path, name: str) -> None:
    whole = contents(store)
    if name == "failures.jsonl":
        (store / name).write_text("nonsense")
    else:
        change(store / name, '"images": 9', '"images": 8')
    report = inspect_store(store, progress=False)
    assert report.ok  # as after a kill: the marks count
    assert f"note      {name} differs from the commit marks" in str(report)
    assert repair_store(store, progress=False).repairs == [f"{name}: written again"]
    assert contents(store) == whole


def test_temporary_files_of_the_dead_are_removed(store: Path) -> None:
    from pipeline import files

    dead, old, other = (store / f".shard-00001.json{owner}.tmp" for owner in (
        f"{files._owner()}999999999", ".elsewhere.1", ".elsewhere.2"))  # fmt: skip
    alive = store / f".shard-00002.json{files._owner()}{os.getpid()}.tmp"
    for path in (dead, old, other, alive):
        path.touch()
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    report = inspect_store(store, progress=False)
    assert report.ok
    assert "4 temporary files" in str(report)
    assert repair_store(store, progress=False).repairs == ["2 temporary files of killed processes: removed"]
    assert not dead.exists()
    assert not old.exists()
    assert other.exists()  # of another machine, which may be at work
    assert alive.exists()


def test_a_store_that_was_killed_is_not_damaged(store: Path) -> None:
    (store / "shard-00001.json").unlink()
    report = inspect_store(store, progress=False)
    assert report.ok
    assert "4 of 10 photos to extract: run extract again" in str(report)
    assert "1 shards without a commit mark, which do not count (shard-00001.safetensors)" in str(report)


def test_a_lost_manifest_is_not_written_for_other_features(store: Path) -> None:
    (store / "manifest.json").unlink()
    settings = small_config(store.parent / "photos", store)
    with pytest.raises(
        PipelineError, match=r"lost its manifest\.json, and shard-00000\.json was made with other settin"
    ):
        run(settings, extractor=QuickDetector("1" * 64), progress=False)
    assert not (store / "manifest.json").exists()
    assert len(extract(store.parent)) == 9


def test_a_shard_of_another_detector_is_not_read(store: Path) -> None:
    foreign_shard(store)
    with pytest.raises(
        PipelineError, match=r"shard-00001\.json: made with other settings than its store; repair it with"
    ):
        open_store(store)


def test_a_plan_that_leaves_photos_out_is_refused(store: Path) -> None:
    (store / "images.jsonl").unlink()
    write_photos(store.parent / "photos", 1, names="0000.jpg")  # would shift every photo by one
    with pytest.raises(
        PipelineError, match=r"images\.jsonl: does not plan the images of shard 0; repair it with: scan"
    ):
        extract(store.parent)
    repair_store(store, progress=False)
    assert sorted(extract(store.parent)) == sorted(["0000.jpg", *(f"{n:03}.jpg" for n in range(10) if n != 5)])


def test_repairing_twice_keeps_what_was_set_aside(store: Path) -> None:
    for content in (b"first", b"second"):
        (store / "shard-00001.safetensors").write_bytes(content)
        repair_store(store, progress=False)
        extract(store.parent)
    kept = {path.name: path.read_bytes() for path in (store / "damaged").glob("*.safetensors*")}
    assert kept == {"shard-00001.safetensors": b"first", "shard-00001.safetensors.1": b"second"}


def imported(folder: Path) -> Path:
    """A store that was imported: two shards, the second not full."""
    np.save(folder / "x_ims.npy", np.random.default_rng(0).normal(size=(IMPORTED, 2, 3)).astype(np.float32))
    (folder / "x_caps.txt").write_text("a dog\n" * (5 * IMPORTED))
    return import_any(folder, split="x", output=str(folder / "imported")).path


@pytest.mark.parametrize("gone", [False, True])
def test_imported_stores_keep_what_is_whole_and_say_how_to_get_the_rest(tmp_path: Path, gone: bool) -> None:
    store = imported(tmp_path)
    whole = contents(store)
    for path in store.glob("shard-00001.*") if gone else [store / "shard-00000.safetensors"]:
        path.unlink() if gone else flip(path, -1)
    assert not inspect_store(store, progress=False).ok
    report = repair_store(store, progress=False)
    assert not report.ok
    assert "next: type the import-features command that made this store again" in str(report)
    assert len(open_store(store)) == (SHARD_SIZE if gone else REST)
    assert not open_store(store).manifest["complete"]
    assert "not complete: type the import-features command that made this store again" in str(
        inspect_store(store, progress=False)
    )
    imported(tmp_path)
    assert contents(store) == whole


def test_images_in_two_shards_of_an_imported_store(tmp_path: Path) -> None:
    store = imported(tmp_path)
    copy_shard(store, 1, 2)
    mark = json.loads((store / "shard-00002.json").read_text())
    mark["mark_sha256"] = seal("shard-00002.json", mark)
    (store / "shard-00002.json").write_text(json.dumps(mark))
    report = repair_store(store, progress=False)
    assert f"duplicate image ids: {REST} are in shard-00001.json as well" in str(report)
    assert len(open_store(store)) == IMPORTED


def test_the_command_and_its_exit_codes(store: Path) -> None:
    assert scan("inspect", str(store)).exit_code == 0
    assert scan("inspect", str(store), "--repair").exit_code == 0
    cut(store / "shard-00001.safetensors")
    said = scan("inspect", str(store))
    assert (said.exit_code, "DAMAGED" in said.output) == (1, True)
    said = scan("inspect", str(store), "--repair")
    assert said.exit_code == 1
    assert "repaired  shard-00001: moved to" in said.output
    assert "next: type the extract command that made this store again" in said.output
    said = scan("inspect", str(store))
    assert (said.exit_code, "4 of 10 photos to extract" in said.output) == (0, True)
    said = scan("inspect", str(store.parent / "photos"), "--repair")
    assert (said.exit_code, "not a feature store" in said.output) == (2, True)


@pytest.mark.parametrize("name", ["manifest.json", "images.jsonl", "shard-00001.json", "shard-00001.safetensors"])
def test_files_that_may_not_be_read_are_not_damaged(store: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`access` in place of `chmod`, which does not hold the superuser, who runs tests in containers."""
    before, may = contents(store), os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != name and may(path, mode))
    message = rf"{name}: no permission to read it; run as its owner, or: chmod a\+r .*{name}"
    for command in (open_store, inspect_store, repair_store):
        with pytest.raises(PipelineError, match=message):
            command(store)
    assert contents(store) == before
