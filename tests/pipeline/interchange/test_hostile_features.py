"""Feature files that would fill the memory or the disk, or read other files."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import PipelineError
from tests.stores import import_any

h5py = pytest.importorskip("h5py")
FEATURES = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def test_an_unused_array_of_an_npz_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "n"
    folder.mkdir()
    np.savez(folder / "a.npz", x=FEATURES[0], other=np.zeros(7))
    read = np.lib.format.read_array

    def only_features(*arguments: object, **options: object) -> np.ndarray:
        found = read(*arguments, **options)  # type: ignore[arg-type]
        assert found.shape == (3, 4)
        return found

    monkeypatch.setattr(np.lib.format, "read_array", only_features)
    assert import_any(folder, output=str(tmp_path / "s")).image_ids == ["a"]


def test_an_npz_of_far_more_than_its_size_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "n"
    folder.mkdir()
    np.savez_compressed(folder / "a.npz", x=np.zeros((36, 1 << 20), np.float32))
    with pytest.raises(PipelineError, match=r"a\.npz: declares 150,994,944 bytes for one image; expected at most"):
        import_any(folder, output=str(tmp_path / "s"))


@pytest.mark.parametrize(
    "kind", ["external link", "soft link", "external storage", "virtual", "sparse", "shared", "group"]
)
def test_hdf5_is_read_from_its_own_file_and_only_what_was_written(kind: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as other:
        other["image_features"] = FEATURES
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["image_ids"] = np.array([b"a", b"b"], dtype=object)
        if kind == "external link":
            file["image_features"] = h5py.ExternalLink("secret.h5", "image_features")
        elif kind == "soft link":
            file["image_features"] = h5py.SoftLink("/image_ids")
        elif kind == "external storage":
            external = [(str(tmp_path / "secret.bin"), 0, 96)]
            file.create_dataset("image_features", (2, 3, 4), "f4", external=external)
        elif kind == "virtual":
            layout = h5py.VirtualLayout((2, 3, 4), "f4")
            layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "image_features", (2, 3, 4))
            file.create_virtual_dataset("image_features", layout)
        elif kind == "sparse":
            file.create_dataset("image_features", (2, 36, 2048), "f4", chunks=(1, 1, 1024))
        elif kind == "shared":
            file["image_features"] = FEATURES.reshape(6, 4)
            file["pos_boxes"] = np.array([[0, 6]] * 100)
        else:
            file.create_group("image_features")
    message = {
        "sparse": "image_features was written to 0%",
        "shared": "pos_boxes give regions to several images; expected each to one",
        "group": "is a group",
        "external storage": "stored in other files",
    }
    expected = {**message, "virtual": "stored in other files"}.get(kind, "image_features is a link")
    with pytest.raises(PipelineError, match=expected):
        import_any(path, output=str(tmp_path / "s"))
    assert not (tmp_path / "s").exists()


def test_regions_of_two_images_are_refused_and_ranges_in_any_order_are_read(tmp_path: Path) -> None:
    for name, ranges in (("shared", [[0, 2], [2, 4], [2, 4]]), ("turned", [[4, 6], [0, 2], [2, 4]])):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["image_ids"] = np.array([b"a", b"b", b"c"], dtype=object)
            file["image_features"], file["pos_boxes"] = FEATURES.reshape(6, 4), np.array(ranges)
    with pytest.raises(PipelineError, match="pos_boxes give regions to several images"):
        import_any(tmp_path / "shared.h5", output=str(tmp_path / "s"))
    store = import_any(tmp_path / "turned.h5", output=str(tmp_path / "t"))
    np.testing.assert_array_equal(store["a"].features, FEATURES.reshape(6, 4)[4:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": ["a", None]}, r"x\.parquet: None: a row without an image_id"),
        ({"features": [[[1.0, 2], [3, 4, 5, 6], [7, 8, 9]]] * 2}, r"a: lists of 2, 3, 4 numbers in one image"),
        ({"features": [[[1.0, 2, 3], None, [4, 5, 6], [7, 8, 9]]] * 2}, r"a: lists of .*None.* numbers in one image"),
    ],
)
def test_parquet_whose_lists_do_not_fit_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    arrow = pytest.importorskip("pyarrow")
    columns = {"image_id": ["a", "b"], "features": [[[1.0, 2, 3]] * 3] * 2, **changes}
    pytest.importorskip("pyarrow.parquet").write_table(arrow.table(columns), tmp_path / "x.parquet")
    with pytest.raises(PipelineError, match=message):
        import_any(tmp_path / "x.parquet", output=str(tmp_path / "s"))
