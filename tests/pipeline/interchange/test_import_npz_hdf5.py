"""Features in MILVLG's .npz files and in the HDF5 of VQA code, as others write them, whole and damaged."""

import json
import os
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.interchange.convert import detect
from pipeline.store.reader import Store
from tests.photos import write_photos
from tests.stores import import_any

K, D = 4, 6


def arrays(seed: int = 0, count: int = K) -> dict[str, Any]:
    """One image as MILVLG's extraction saves it, without its pickled `info`."""
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(count, D)).astype(np.float32),
        "bbox": np.sort(rng.uniform(0, 99, (count, 2, 2)), axis=1).reshape(count, 4).astype(np.float32),
        "num_bbox": count,
        "image_h": 480,
        "image_w": 640,
    }


def write_npz(folder: Path, names: tuple[str, ...] = ("a", "b"), **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        np.savez_compressed(folder / f"{name}.npz", **{**arrays(seed), **changes})
    return folder


def import_quietly(source: Path, **options: Any) -> Store:
    return import_any(source, output=str(source.parent / "store"), **options)


def test_milvlg_files(tmp_path: Path) -> None:
    write_npz(tmp_path / "npz/val", ("one", "two"))
    write_photos(tmp_path / "photos/val", 1, names="two.png")
    said: list[str] = []
    store = import_quietly(tmp_path / "npz", images=str(tmp_path / "photos"), report=said.append)
    assert list(store) == ["val/one", "val/two.png"]  # the suffix is that of the photo
    np.testing.assert_array_equal(store["val/two.png"].features, arrays(1)["x"])
    np.testing.assert_array_equal(store["val/one"].boxes, arrays(0)["bbox"])
    assert store["val/one"].image_size == (480, 640)
    assert store.image_path(1) == tmp_path / "photos/val/two.png"
    assert said == [f"no photo of 1 of the 2 images is in {tmp_path / 'photos'}"]
    assert store.object_names == []


def test_a_pickle_in_an_npz_is_left_out_and_never_read(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    write_npz(tmp_path / "npz", info=np.array({"objects_id": Trap()}, dtype=object))
    said: list[str] = []
    store = import_quietly(tmp_path / "npz", report=said.append)
    assert len(store) == 2
    assert said == ["`info` of the .npz files (objects and attributes) is left out: it is a pickle, which can run code"]
    assert not (tmp_path / "sprung").exists()


def test_transposed_features_and_files_without_boxes(tmp_path: Path) -> None:
    write_npz(tmp_path / "mcan", x=arrays()["x"].T)
    np.testing.assert_array_equal(import_quietly(tmp_path / "mcan")["a"].features, arrays()["x"])
    (tmp_path / "bare").mkdir()
    np.savez(tmp_path / "bare/a.npz", x=arrays()["x"])
    store = import_any(tmp_path / "bare", output=str(tmp_path / "bare_store"))
    assert (store.has_boxes, store["a"].image_size) == (False, (0, 0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_bbox": 3}, r"a\.npz: num_bbox is 3, x holds 4 regions"),
        ({"num_bbox": np.ones(2)}, r"num_bbox of shape \(2,\) and type float64; expected an integer"),
        ({"image_h": -1}, "a photo of 640 x -1 pixels"),
        ({"x": np.full((K, D), np.nan, np.float32)}, r"a\.npz: features that are not finite numbers"),
        ({"x": np.full((K, D), "a")}, "features of shape .* <U1; expected .* numbers"),
        ({"x": np.zeros(3)}, r"features of shape \(3,\); expected"),
        ({"x": np.float32(3)}, r"features of shape \(\); expected"),
        ({"bbox": np.float32(3)}, r"boxes of shape \(\) float32; expected"),
        ({"bbox": np.zeros((K, 5))}, r"boxes of shape \(4, 5\) float64; expected \(4, 4\)"),
        ({"bbox": np.full((K, 4), np.inf)}, "boxes that are not finite numbers"),
        ({"objects_id": np.zeros(K, int)}, "expected all of objects and attributes, or none"),
        ({"x": np.array([None])}, r"a\.npz: not readable as \.npz \(Object arrays cannot be loaded"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_npz(tmp_path / "npz", ("a",), **changes)
    with pytest.raises(PipelineError, match=message):
        import_quietly(tmp_path / "npz")


def test_boxes_of_width_and_height_are_said(tmp_path: Path) -> None:
    write_npz(tmp_path / "right", bbox=np.tile(np.float32([30, 40, 50, 40]), (K, 1)))
    write_npz(tmp_path / "wide", bbox=np.tile(np.float32([30, 40, 20, 10]), (K, 1)))
    said: list[str] = []
    for name in ("right", "wide"):
        import_any(tmp_path / name, output=str(tmp_path / "stores" / name), report=said.append)
    assert said == ["boxes of 2 images end before they begin; they are read as left, top, right, bottom"]


def test_classes_that_visual_genome_does_not_have(tmp_path: Path) -> None:
    ids = {"objects_id": np.array([0, 1, 2, 1600]), "attrs_id": np.arange(K)}
    write_npz(tmp_path / "npz", ("a",), **ids, objects_conf=np.ones(K), attrs_conf=np.ones(K))
    with pytest.raises(PipelineError, match="object_ids 0 to 1600; expected Visual Genome's, 0 to 1599"):
        import_quietly(tmp_path / "npz")


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-30], lambda data: data[:40], lambda data: b"", lambda data: b"x" * 99]
)
def test_damaged_npz_files_are_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    folder = write_npz(tmp_path / "npz")
    (folder / "b.npz").write_bytes(damage((folder / "b.npz").read_bytes()))
    with pytest.raises(PipelineError, match=r"b\.npz: not readable as \.npz \(.*\); make it again, or take it out"):
        import_quietly(folder)


def test_a_single_array_is_no_npz(tmp_path: Path) -> None:
    folder = write_npz(tmp_path / "npz")
    with (folder / "b.npz").open("wb") as file:
        np.save(file, arrays()["x"])
    with pytest.raises(PipelineError, match=r"b\.npz: not readable as \.npz \(File is not a zip file\)"):
        import_quietly(folder)


def write_hdf5(path: Path, count: int = 3, *, ids: Any = ("a", "b", "c"), **changes: Any) -> dict[str, np.ndarray]:
    """As bottom-up-attention-vqa writes it, with or without our ids."""
    rng = np.random.default_rng(0)
    content = {
        "image_features": rng.normal(size=(count, K, D)).astype(np.float32),
        "image_bb": rng.uniform(0, 99, (count, K, 4)).astype(np.float32),
        "spatial_features": rng.uniform(size=(count, K, 6)).astype(np.float32),
    } | changes
    with h5py.File(path, "w") as file:
        for name, array in content.items():
            if array is not None:
                file[name] = array
        if ids is not None:
            file["image_ids"] = list(ids)
    return content


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ids.json", json.dumps([42, 7, "x"])),
        ("imgid2idx.json", json.dumps({"7": 1, "42": 0, "x": 2})),
        ("ids.txt", "42\n7\nx\n"),
        ("ids.txt", "42\r\n7\r\nx"),
        ("ids.txt", "\ufeff42\n7\nx\n"),
        ("ids.json", '\ufeff["42", 7, "x"]'),
    ],
)
def test_hdf5_with_ids_of_their_own_file(tmp_path: Path, name: str, content: str) -> None:
    written = write_hdf5(tmp_path / "train36.hdf5", ids=None)
    (tmp_path / name).write_bytes(content.encode())
    store = import_quietly(tmp_path / "train36.hdf5", ids=str(tmp_path / name))
    assert list(store) == ["42", "7", "x"]
    np.testing.assert_array_equal(store["7"].features, written["image_features"][1])
    np.testing.assert_array_equal(store["7"].boxes, written["image_bb"][1])
    assert store["7"].image_size == (0, 0)


def test_hdf5_without_ids_names_the_ways_to_give_them(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "train36.hdf5", ids=None)
    with pytest.raises(
        PipelineError, match=r"train36\.hdf5: holds no image_ids; name them with --ids FILE: a JSON list"
    ):
        import_quietly(tmp_path / "train36.hdf5")
    (tmp_path / "imgid2idx.pkl").write_bytes(pickle.dumps({42: 0}))
    with pytest.raises(PipelineError, match=r"imgid2idx\.pkl: a pickle can run code and is not read"):
        import_quietly(tmp_path / "train36.hdf5", ids=str(tmp_path / "imgid2idx.pkl"))
    for content, message in {
        '{"7": 0, "8": 0, "9": 1}': "rows are not 0 to 2, once each",
        "[1, 2]": "2 ids for 3 images",
        "[1, [2], 3]": "expected a list of ids",
        "{": "not readable as image ids",
    }.items():
        (tmp_path / "ids.json").write_text(content)
        with pytest.raises(PipelineError, match=r"ids\.json: .*" + message):
            import_quietly(tmp_path / "train36.hdf5", ids=str(tmp_path / "ids.json"))


def test_hdf5_with_10_to_100_regions(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(12, D)).astype(np.float32)
    flat = {"image_features": features, "image_bb": np.ones((12, 4)), "spatial_features": None}
    positions = np.array([[7, 12], [0, 4], [4, 7]], np.int32)
    write_hdf5(tmp_path / "ban.h5", **flat, pos_boxes=positions)
    with pytest.raises(
        PipelineError, match=r"'b' has 4 regions, the first image 5; .* or take the first K with --num-reg"
    ):
        import_quietly(tmp_path / "ban.h5")
    with pytest.raises(PipelineError, match="'c' has 3 regions; --num-regions 4 needs that many of every image"):
        import_any(tmp_path / "ban.h5", output=str(tmp_path / "four"), num_regions=4)
    store = import_any(tmp_path / "ban.h5", output=str(tmp_path / "three"), num_regions=3)
    assert (len(store), store.num_regions) == (3, 3)
    np.testing.assert_array_equal(store["a"].features, features[7:10])
    np.testing.assert_array_equal(store["c"].features, features[4:7])
    write_hdf5(tmp_path / "bad.h5", **flat, pos_boxes=positions + 1)
    with pytest.raises(PipelineError, match=r"bad\.h5: pos_boxes point outside of the 12 regions"):
        import_quietly(tmp_path / "bad.h5")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_features": None}, "holds image_bb, image_ids, spatial_features; expected image_features"),
        ({"image_features": np.zeros((3, 4))}, r"image_features of shape \(3, 4\); expected \(N, K, D\), or"),
        ({"image_features": np.full((3, K, D), np.inf)}, r"row 0 \('a'\): features that are not finite"),
        ({"image_bb": np.zeros((2, K, 4))}, r"image_bb of shape \(2, 4, 4\); expected 3 rows"),
        ({"image_bb": np.zeros((3, K, 5))}, r"row 0 \('a'\): boxes of shape \(4, 5\)"),
        ({"objects_id": np.zeros((3, K), int)}, "expected all of objects and attributes, or none"),
        ({"image_h": np.zeros(2, int)}, "image_h and image_w; expected 3 integers each"),
        ({"ids": ["a", "b"]}, r"image_ids of shape \(2,\); expected 3 ids"),
        ({"ids": ["a", "b", "a"]}, "duplicate image id 'a'"),
    ],
)
def test_hdf5_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_hdf5(tmp_path / "x.hdf5", **changes)
    with pytest.raises(PipelineError, match=r"x\.hdf5: .*" + message):
        import_quietly(tmp_path / "x.hdf5")


def test_damaged_hdf5_and_no_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_hdf5(tmp_path / "x.hdf5")
    data = (tmp_path / "x.hdf5").read_bytes()
    for damaged in (data[: len(data) // 2], data[:100], b"no HDF5 at all"):
        (tmp_path / "y.hdf5").write_bytes(damaged)
        with pytest.raises(PipelineError, match=r"y\.hdf5: damaged or not HDF5"):
            import_quietly(tmp_path / "y.hdf5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(PipelineError, match=re.escape("pip install 'scan-pipeline[hdf5]'")):
        import_quietly(tmp_path / "x.hdf5")


def test_formats_are_told_from_what_is_there(tmp_path: Path) -> None:
    write_npz(tmp_path / "npz/deep")
    write_hdf5(tmp_path / "nameless")
    (tmp_path / "rows.tsv").write_text("…")
    (tmp_path / "original").mkdir()
    (tmp_path / "original/dev_ims.npy").touch()
    (tmp_path / "empty").mkdir()
    found = {name: detect(tmp_path / name) for name in ("npz", "nameless", "rows.tsv", "original")}
    assert found == {"npz": "npz", "nameless": "hdf5", "rows.tsv": "tsv", "original": "original"}
    for source, message in {
        "empty": r"a folder without SPLIT_ims\.npy and \.npz files; expected",
        "npz/deep/a.npz": "a single NumPy file; expected",
        "none": "not there; expected a folder",
    }.items():
        with pytest.raises(PipelineError, match=message):
            detect(tmp_path / source)
    store = import_quietly(tmp_path / "npz/deep")
    with pytest.raises(PipelineError, match="a store already"):
        detect(store.path)
    with pytest.raises(PipelineError, match="format 'lmdb': expected one of original, tsv"):
        import_quietly(tmp_path / "npz/deep", format="lmdb")
    for options, message in {
        ("ids", "x.txt"): "--ids x.txt: is for the hdf5 format; this is npz",
        ("split", "dev"): "--split dev: is for the original format; this is npz",
        ("num_regions", 0): "num_regions 0: expected at least 1",
    }.items():
        with pytest.raises(PipelineError, match=message):
            import_quietly(tmp_path / "npz/deep", **dict([options]))


def test_another_file_does_not_continue_an_import(tmp_path: Path) -> None:
    write_npz(tmp_path / "one/npz")
    write_npz(tmp_path / "two/npz", ("c", "d"))
    for source in ("one", "two"):
        write_npz(tmp_path / source / "other")
    store = str(tmp_path / "store")
    import_any(tmp_path / "one/npz", output=store)
    import_any(tmp_path / "one/npz", output=store)
    with pytest.raises(
        PipelineError, match="holds other images or features than what is imported; choose another folder"
    ):
        import_any(tmp_path / "two/npz", output=store)
    with pytest.raises(PipelineError, match=r"made with other settings .*source"):
        import_any(tmp_path / "one/other", output=store)
