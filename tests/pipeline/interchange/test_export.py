"""Stores written in the field's formats: exact round trips, ids that are kept or refused, kills, memory."""

import json
import os
import signal
import subprocess
import sys
import tracemalloc
from importlib import import_module
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.inputs.captions import read_captions
from pipeline.interchange.common import ExportFeaturesConfig
from pipeline.interchange.convert import FORMATS, export_features
from pipeline.store.format import CAPTIONS
from pipeline.store.reader import Store, open_store
from tests.stores import ARRAYS, assert_same, import_any, make_store
from tests.world import scan

REPOSITORY = Path(__file__).resolve().parents[3]
HELD = {
    "original": ("features",),
    "tsv": ("boxes", "features"),
    "tsv10": ARRAYS,
    "npz": ARRAYS,
    "hdf5": ARRAYS,
    "parquet": ARRAYS,
}
IDS = ["COCO_val2014_000000000042.jpg", "132417", "a b/ç 図.jpg", " spaces ", 'say "cheese".png']


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sync", lambda: None)  # of the whole machine


def export(store: Path, target: Path, name: str, **options: str) -> list[str]:
    """Export quietly; returns what was said."""
    said: list[str] = []
    split = {"split": "train"} if name == "original" else {}
    export_features(ExportFeaturesConfig(str(store), name, str(target), **{**split, **options}), report=said.append)
    return said


def back(target: Path, output: Path, name: str, **options: str) -> Store:
    split = {"split": "train"} if name == "original" else {}
    return import_any(target, output=str(output), **split, **options)


def holds(name: str, image_id: str) -> bool:
    """Whether a format can hold an id, said in another way than the code does."""
    if "\0" in image_id:
        return False
    if name == "original":
        return "\n" not in image_id and not image_id.endswith("\r") and not image_id.startswith("\ufeff")
    if name == "npz":
        parts = image_id.split("/")
        return not {"", ".", ".."} & set(parts)
    return True


def test_the_command_knows_every_format() -> None:
    choices = ExportFeaturesConfig.__dataclass_fields__["format"].metadata["choices"]
    assert list(choices) == ["", *FORMATS]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_round_trips_are_exact(tmp_path: Path, name: str, dtype: str) -> None:
    store = make_store(tmp_path / "store", IDS, dtype=dtype)
    said = export(store.path, tmp_path / "out", name)
    kept = {} if name in {"original", "parquet"} else {"dtype": dtype}
    found = back(tmp_path / "out", tmp_path / "back", name, **kept)
    assert_same(found, store, HELD[name], sizes=name != "original")
    assert list(found) == (sorted(IDS) if name == "npz" else IDS)
    assert found.has_boxes == (name != "original")
    assert found.object_names == (store.object_names if "object_ids" in HELD[name] else [])
    assert any("widened" in line for line in said) == (dtype == "float16" and name not in {"original", "parquet"})
    assert any("objects and attributes" in line for line in said) == (name in {"original", "tsv"})
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ids=st.lists(st.text(max_size=6) | st.text("a/.\n\r\t\" '", max_size=4), min_size=1, max_size=5, unique=True),
    num_regions=st.integers(1, 4),
    feature_dim=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_ids_come_back_as_they_were_or_are_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, ids: list[str], num_regions: int, feature_dim: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("trip")
    store = make_store(folder / "store", ids, num_regions=num_regions, feature_dim=feature_dim, seed=seed)
    if not all(holds(name, image_id) for image_id in ids):
        with pytest.raises(PipelineError, match="cannot hold the image id"):
            export(store.path, folder / "out", name)
        assert not (folder / "out").exists()
        return
    export(store.path, folder / "out", name)
    found = back(folder / "out", folder / "back", name)
    assert_same(found, store, HELD[name], sizes=name != "original")
    assert name == "npz" or list(found) == ids


@pytest.mark.parametrize("name", FORMATS)
def test_file_names_that_are_not_utf8_keep_their_bytes(tmp_path: Path, name: str) -> None:
    image_id = os.fsdecode(b"caf\xe9.jpg")
    store = make_store(tmp_path / "store", [image_id])
    export(store.path, tmp_path / "out", name)
    assert list(back(tmp_path / "out", tmp_path / "back", name)) == [image_id]
    strange = make_store(tmp_path / "strange", ["\ud800"])
    with pytest.raises(PipelineError, match=r"cannot hold the image id '\\ud800': it is not valid text"):
        export(strange.path, tmp_path / "out2", name)


@pytest.mark.parametrize("image_id", ["../a", "/etc/a", "a/../../b", "a/..", "a//b", "./a", "a/"])
def test_nothing_is_written_outside_of_the_npz_folder(tmp_path: Path, image_id: str) -> None:
    store = make_store(tmp_path / "store", ["ok", image_id])
    with pytest.raises(PipelineError, match="cannot hold the image id"):
        export(store.path, tmp_path / "deep/out", "npz")
    assert {path.name for path in tmp_path.iterdir()} <= {"store", "deep"}
    assert not (tmp_path / "deep/out").exists()


def test_an_npz_cannot_be_a_file_and_a_folder(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", ["a", "a.npz/b"])
    with pytest.raises(PipelineError, match="'a' would be a file and a folder"):
        export(store.path, tmp_path / "out", "npz")


def test_what_vqa_code_finds_in_the_hdf5(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", IDS)
    export(store.path, tmp_path / "train36.hdf5", "hdf5")
    with h5py.File(tmp_path / "train36.hdf5") as file:
        assert file["image_features"].shape == (5, 3, 5)
        assert file["image_bb"].dtype == file["image_features"].dtype == np.float32
        height, width = store[IDS[1]].image_size
        x1, y1, x2, y2 = store[IDS[1]].boxes[2].astype(np.float64)
        expected = [x1 / width, y1 / height, x2 / width, y2 / height, (x2 - x1) / width, (y2 - y1) / height]
        np.testing.assert_allclose(file["spatial_features"][1, 2], expected, rtol=1e-5)


def test_an_hdf5_of_photos_of_unknown_size_has_no_fractions(tmp_path: Path) -> None:
    """As the published files of VQA code are read, whose boxes are pixels."""
    with h5py.File(tmp_path / "theirs.hdf5", "w") as file:
        file["image_features"], file["image_bb"] = np.ones((1, 2, 4), "f4"), np.full((1, 2, 4), 99, "f4")
        file["image_ids"] = ["a"]
    store = import_any(tmp_path / "theirs.hdf5", output=str(tmp_path / "store"))
    said = export(store.path, tmp_path / "ours.hdf5", "hdf5")
    assert "the size of 1 photos is not known: it is written as 0, and boxes not as fractions of it" in said
    with h5py.File(tmp_path / "ours.hdf5") as file:
        assert "spatial_features" not in file


def test_what_milvlg_code_finds_in_the_npz(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", ["a/b.jpg"])
    export(store.path, tmp_path / "out", "npz")
    with np.load(tmp_path / "out/a/b.jpg.npz") as archive:
        assert set(archive.files) >= {"x", "bbox", "num_bbox", "image_h", "image_w"}
        assert (int(archive["image_h"]), int(archive["image_w"])) == store["a/b.jpg"].image_size
        assert int(archive["num_bbox"]) == 3
        np.testing.assert_array_equal(archive["x"], store["a/b.jpg"].features)


def test_stores_that_know_less(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", IDS, has_boxes=False, object_names=[], attribute_names=[])
    for name in ("npz", "hdf5"):
        export(store.path, tmp_path / name, name)
        found = back(tmp_path / name, tmp_path / f"back_{name}", name)
        assert (found.has_boxes, found.object_names) == (False, [])
        np.testing.assert_array_equal(found[IDS[0]].features, store[IDS[0]].features)
    with pytest.raises(PipelineError, match=r"has no boxes, which .* needs; choose --format original, npz or hdf5"):
        export(store.path, tmp_path / "x.tsv", "tsv")
    with pytest.raises(PipelineError, match=r"has no objects and attributes, which .* needs; choose --format tsv"):
        export(store.path, tmp_path / "x.tsv", "tsv10")
    other = make_store(tmp_path / "other", IDS, object_names=["dog"] * 1600)
    assert (
        "the names of objects and attributes (Visual Genome's are assumed)"
        in export(other.path, tmp_path / "o.tsv", "tsv10")[0]
    )


def with_captions(store: Store, per_image: int = 5) -> list[str]:
    """Captions of a store, in its folder; returns the texts in order."""
    lines = [(image_id, f"caption {n} of {row}") for row, image_id in enumerate(store) for n in range(per_image)]
    (store.path / "captions.tsv").write_text("".join(f"{image_id}\t{text}\n" for image_id, text in lines))
    return [text for _, text in lines]


def test_captions_and_splits_of_the_original_layout(tmp_path: Path) -> None:
    store = make_store(tmp_path / "f30k_val", ["a.jpg", "b.jpg", "c.jpg"])
    texts = with_captions(store, 6)
    said = export_quietly(store.path, tmp_path / "out")  # the split is that of the store's name
    assert (tmp_path / "out/dev_caps.txt").read_text().splitlines() == [
        text for text in texts if "caption 5" not in text
    ]
    assert "3 captions beyond the first 5 of their image are left out" in said
    found = import_any(tmp_path / "out", split="dev", output=str(tmp_path / "back"))
    assert len(read_captions(found.path / CAPTIONS)) == 15
    with pytest.raises(PipelineError, match=r"no split test; it has dev; choose one"):
        export_quietly(store.path, tmp_path / "out", split="test")
    with pytest.raises(PipelineError, match=r"dev_ims\.npy: exists already"):
        export_quietly(store.path, tmp_path / "out", split="dev")


def export_quietly(store: Path, target: Path, **options: str) -> list[str]:
    said: list[str] = []
    export_features(ExportFeaturesConfig(str(store), "original", str(target), **options), report=said.append)
    return said


def test_one_split_of_a_karpathy_file_in_its_order(tmp_path: Path) -> None:
    store = make_store(tmp_path / "coco", ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    images = [
        {"filename": f"{name}.jpg", "split": split, "sentences": [{"raw": f"{name} {n}"} for n in range(5)]}
        for name, split in [("d", "test"), ("a", "train"), ("b", "test")]
    ]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": images}))
    captions = str(tmp_path / "dataset.json")
    export_quietly(store.path, tmp_path / "out", captions=captions, split="testall")
    assert (tmp_path / "out/testall_ids.txt").read_text() == "d.jpg\nb.jpg\n"
    assert (tmp_path / "out/testall_caps.txt").read_text().splitlines()[5] == "b 0"
    np.testing.assert_array_equal(np.load(tmp_path / "out/testall_ims.npy"), store.gather(np.array([3, 1])))
    with pytest.raises(PipelineError, match="no split is given; it has test, train; choose one with --split"):
        export_quietly(store.path, tmp_path / "out", captions=captions)


def test_without_five_captions(tmp_path: Path) -> None:
    store = make_store(tmp_path / "photos", ["a.jpg", "b.jpg"])
    with pytest.raises(PipelineError, match=r"no name for SPLIT_ims\.npy; give one with --split"):
        export_quietly(store.path, tmp_path / "out")
    assert "nothing tells which images are test: all 2 are written" in export_quietly(
        store.path, tmp_path / "all", split="test"
    )
    with_captions(store, 2)
    with pytest.raises(PipelineError, match=r"'a\.jpg' has 2 captions; the original layout needs 5"):
        export_quietly(store.path, tmp_path / "out", split="mine", captions=str(store.path / "captions.tsv"))
    said = export_quietly(store.path, tmp_path / "out", split="mine")
    assert any(line.startswith("without captions: 'a.jpg' has 2") for line in said)
    assert said[-2] == "nothing tells which images are mine: all 2 are written"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"mine_ids.txt", "mine_ims.npy"}
    (tmp_path / "out/other_ids.txt").write_text("somebody's\n")
    with pytest.raises(PipelineError, match=r"other_ids\.txt: exists already"):
        export_quietly(store.path, tmp_path / "out", split="other")
    assert (tmp_path / "out/other_ids.txt").read_text() == "somebody's\n"


DEADLY = """
import os, signal, sys
import pipeline.interchange.common as common
from pipeline.interchange.convert import export_features

def deadly(pairs, **_):
    for number, pair in enumerate(pairs):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        yield pair

common.tqdm = deadly
store, target, name = sys.argv[1:]
export_features(common.ExportFeaturesConfig(store, name, target, split="train" if name == "original" else ""))
"""


@pytest.mark.parametrize("name", [pytest.param("original", marks=pytest.mark.slow), "tsv", "npz", "hdf5"])
def test_killed_midway(tmp_path: Path, name: str) -> None:
    store = make_store(tmp_path / "store", [f"{index}.jpg" for index in range(6)])
    target = tmp_path / "exports/out"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    arguments = [sys.executable, "-c", DEADLY, str(store.path), str(target), name]
    assert subprocess.run(arguments, env=environment, capture_output=True).returncode == -signal.SIGKILL
    finished = {"original": target / "train_ims.npy", "npz": target / "3.jpg.npz"}.get(name, target)
    assert not finished.exists()
    if name == "npz":
        with pytest.raises(PipelineError, match="the export to it did not end; run that again, it continues"):
            back(target, tmp_path / "early", name)
        other = make_store(tmp_path / "other", ["z"])
        with pytest.raises(PipelineError, match="holds part of another export"):
            export(other.path, target, name)
        before = (target / "0.jpg.npz").stat().st_mtime_ns
        (target / "1.jpg.npz").write_bytes(b"")  # as after a power failure
    export(store.path, target, name)
    if name == "npz":
        assert (target / "0.jpg.npz").stat().st_mtime_ns == before  # it continued
    assert_same(
        back(target, tmp_path / "back", name), store, HELD["original" if name == "original" else "tsv"], sizes=False
    )
    assert not list((tmp_path / "exports").rglob(".*"))


FULL_DISK = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from pipeline.cli import main
main(sys.argv[1:])
"""


def test_a_full_disk_is_an_error_and_no_crash(tmp_path: Path) -> None:
    """The HDF5 library would end the process with a segmentation fault."""
    store = make_store(tmp_path / "store", [f"{row}.jpg" for row in range(40)], feature_dim=2048)
    arguments = ["export-features", str(store.path), "--format", "hdf5", "--output", str(tmp_path / "out.h5")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(
        [sys.executable, "-c", FULL_DISK, *arguments], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/out.h5: File too large; check the disk")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("name", ["tsv", "hdf5", "npz"])
def test_what_is_there_is_not_replaced(tmp_path: Path, name: str) -> None:
    store = make_store(tmp_path / "store", IDS)
    target = tmp_path / "out"
    if name == "npz":
        target.mkdir()
        (target / "mine.txt").write_text("mine")
    else:
        target.write_text("mine")
    with pytest.raises(PipelineError, match="out: exists already; delete it, or choose another --output"):
        export(store.path, target, name)
    target = target / "mine.txt" if name == "npz" else target
    assert target.read_text() == "mine"


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_store(tmp_path / "features/photos", IDS)
    said = scan("export-features", "features/photos", "--format", "tsv10", "--output", "photos.tsv")
    assert said.exit_code == 0, said.output
    assert "not held by this format: how the features were made" in said.stderr
    assert said.stdout == (
        "photos.tsv: written from features/photos\nnext:\n  scan-pipeline import-features photos.tsv\n"
    )
    again = scan("export-features", "features/photos", "--format", "tsv10", "--output", "photos.tsv")
    assert (again.exit_code, again.stderr.count("\n")) == (2, 1)
    refused = scan("export-features", "features/photos", "--format", "tsv", "--output", "x.tsv", "--split", "dev")
    assert refused.stderr == "error: --split dev: is for the original format; this is tsv\n"
    nothing = scan("export-features", "features/none", "--format", "tsv", "--output", "x.tsv")
    assert "features/none: not a feature store" in nothing.stderr
    assert "x.tsv" not in os.listdir()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.interchange.convert.SHARD_SIZE", 16)  # 5 MB
    count, shape = 300, (36, 2048)
    with (tmp_path / "train_ims.npy").open("wb") as file:  # 88 MB
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (count, *shape)})
        for _ in range(count):
            file.write(np.ones(shape, "<f4").tobytes())
    windows = np.linspace(0, 1, 36 * 4, dtype=np.float32).reshape(36, 4)
    np.save(tmp_path / "windows.npy", windows)
    import_module("pipeline.inputs.dataset")  # and torch with it: not what is measured
    tracemalloc.start()
    try:
        store = back(tmp_path, tmp_path / "store", "original", boxes=str(tmp_path / "windows.npy"))
        assert tracemalloc.get_traced_memory()[1] < 30e6
        for name in ("tsv", "npz", "hdf5", "original"):
            tracemalloc.reset_peak()
            begun = tracemalloc.get_traced_memory()[0]
            export(store.path, tmp_path / f"out_{name}", name)
            assert tracemalloc.get_traced_memory()[1] - begun < 30e6, name
            if name != "original":
                tracemalloc.reset_peak()
                back(tmp_path / f"out_{name}", tmp_path / f"back_{name}", name)
                assert tracemalloc.get_traced_memory()[1] - begun < 30e6, name
    finally:
        tracemalloc.stop()


@pytest.mark.shared
def test_published_features_come_back_byte_for_byte(shared: Path, tmp_path: Path) -> None:
    published = shared / "data/bottom_up/train2014_obj36.tsv"
    store = import_any(published, output=str(tmp_path / "store"))
    export(store.path, tmp_path / "again.tsv", "tsv10")
    assert (tmp_path / "again.tsv").read_bytes() == published.read_bytes()
    for name in ("npz", "hdf5"):  # through another format and back
        export(store.path, tmp_path / name, name)
        found = back(tmp_path / name, tmp_path / f"back_{name}", name)
        assert_same(found, store)


@pytest.mark.shared
def test_the_original_layout_comes_back_byte_for_byte(shared: Path, tmp_path: Path) -> None:
    published = shared / "data/flickr8k"
    store = import_any(published, split="dev", output=str(tmp_path / "store"))
    export_quietly(store.path, tmp_path / "out", split="dev")
    for name in ("dev_ims.npy", "dev_ids.txt", "dev_caps.txt"):
        assert (tmp_path / "out" / name).read_bytes() == (published / name).read_bytes(), name
    assert open_store(store.path).dtype == np.float16
