"""Tars and parquet files: what they hold is read once, and captions go to the photo that they are of."""

import tarfile
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.inputs.containers import index_of, pyarrow
from tests.photos import write_photos
from tests.world import scan


def test_captions_of_a_photo_and_its_mask_are_not_both_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_photos(tmp_path, 2)
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name in ("a.jpg", "a.seg.jpg", "b.jpg"):
            tar.add(tmp_path / "000.jpg", name)
        for name in ("a.txt", "b.txt"):
            (tmp_path / name).write_text("a dog")
            tar.add(tmp_path / name, name)
    index = index_of(str(tmp_path / "t.tar"), ())
    assert sorted(index.photos) == ["a.jpg", "a.seg.jpg", "b.jpg"]
    assert [one["filename"] for one in index.captions] == ["b.jpg"]
    assert index.skipped == {"captions of several images": 1}


def test_tars_joined_by_cat_are_said_to_hold_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_photos(tmp_path, 2)
    for name in ("000", "001"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            tar.add(tmp_path / f"{name}.jpg", f"{name}.jpg")
    (tmp_path / "both.tar").write_bytes((tmp_path / "000.tar").read_bytes() + (tmp_path / "001.tar").read_bytes())
    assert index_of(str(tmp_path / "000.tar"), ()).fault == ""
    assert "something follows its end mark, as in tars joined by cat" in index_of(str(tmp_path / "both.tar"), ()).fault


def test_captions_that_left_a_container_leave_its_store(
    tmp_path: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path, 2)
    (tmp_path / "000.txt").write_text("a dog")
    for names, kept in ((["000.jpg", "000.txt"], True), (["000.jpg", "001.jpg"], False)):
        with tarfile.open("x.tar", "w") as tar:
            for name in names:
                tar.add(name)
        options = ["--num-regions", "4", "--workers", "0", "--device", "cpu", "--weights", str(small_weights)]
        said = scan("extract", "--images", "x.tar", *options)
        assert (said.exit_code, "scan-pipeline train" in said.stdout) == (0, kept)
        assert Path("features/x/captions_of_photos.json").exists() is kept


@pytest.mark.parametrize("names", [["mask", "photo"], ["image", "image"]])
def test_which_of_two_columns_of_images_is_meant_is_not_guessed(tmp_path: Path, names: list[str]) -> None:
    arrow, parquet = pyarrow()
    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    images = arrow.array([{"bytes": b"x", "path": "a.jpg"}], kind)
    parquet.write_table(arrow.table([images, images], names=names), tmp_path / "x.parquet")
    with pytest.raises(PipelineError, match=rf"2 columns of images \({names[0]}, {names[1]}\)"):
        index_of(str(tmp_path / "x.parquet"), ())
