"""The shard format: what is written is read, and what is damaged is refused."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from detector.regions import Regions
from pipeline.errors import PipelineError
from pipeline.store.inspect import inspect_store
from pipeline.store.marks import seal
from pipeline.store.reader import Shard, open_store, open_stores
from pipeline.store.writer import ShardRows, claim_store, commit_shard, write_summary
from tests.stores import make_store

K, D = 3, 5


def random_regions(seed: int) -> Regions:
    rng = np.random.default_rng(seed)
    return Regions(
        boxes=rng.uniform(0, 99, (K, 4)).astype(np.float32),
        features=rng.normal(size=(K, D)).astype(np.float32),
        object_ids=rng.integers(0, 9, K).astype(np.int32),
        object_scores=rng.uniform(size=K).astype(np.float32),
        attribute_ids=rng.integers(0, 4, K).astype(np.int32),
        attribute_scores=rng.uniform(size=K).astype(np.float32),
        image_size=(100 + seed, 200),
    )


def manifest(**changes: object) -> dict:
    return {
        "num_regions": K,
        "feature_dim": D,
        "dtype": "float32",
        "has_boxes": True,
        "extraction": {"imported": "by hand"},
        "image_roots": ["/photos"],
        "object_names": [f"thing {index}" for index in range(9)],
        "attribute_names": ["red", "blue", "old", "new"],
    } | changes


def write_store(folder: Path, counts: list[int], *, prefix: str = "", **changes: object) -> list[Regions]:
    """A store with shards of so many images each; returns the regions in order."""
    made = claim_store(folder, manifest(**changes))
    everything: list[Regions] = []
    for number, count in enumerate(counts):
        rows = ShardRows()
        for _ in range(count):
            name = f"{prefix}{len(everything)}.jpg"
            rows.image_ids.append(name)
            rows.paths.append(name)
            rows.roots.append(0)
            everything.append(random_regions(len(everything)))
            rows.regions.append(everything[-1])
        rows.failures.append({"image_id": f"bad{number}.jpg", "path": f"bad{number}.jpg", "reason": "truncated"})
        commit_shard(folder, number, rows, made)
    write_summary(folder, made, len(counts))
    return everything


def test_a_store_is_a_mapping_from_image_id_to_regions(tmp_path: Path) -> None:
    written = write_store(tmp_path / "s", [2, 3, 0, 1])
    store = open_store(tmp_path / "s")
    assert list(store) == [f"{index}.jpg" for index in range(6)]
    assert len(store) == 6
    for index, wanted in enumerate(written):
        found = store[f"{index}.jpg"]
        for name in ("boxes", "features", "object_ids", "object_scores", "attribute_ids", "attribute_scores"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
        assert found.image_size == wanted.image_size
    assert "7.jpg" not in store
    with pytest.raises(KeyError):
        store["7.jpg"]
    assert store.manifest["counts"] == {"images": 6, "failures": 4, "shards": 4}
    assert store.manifest["complete"] is True
    assert len((tmp_path / "s/failures.jsonl").read_text().splitlines()) == 4


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.data())
def test_gather_takes_any_rows(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("store") / "s"
    written = write_store(folder, counts, dtype="float16")
    store = open_store(folder)
    rows = data.draw(st.lists(st.integers(0, len(written) - 1)) if written else st.just([]))
    found = store.gather(np.array(rows, dtype=np.int64))
    assert (found.shape, found.dtype) == ((len(rows), K, D), np.float16)
    for row, features in zip(rows, found, strict=True):
        np.testing.assert_array_equal(features, written[row].features.astype(np.float16))


@pytest.mark.parametrize("rows", [[-1], [2], [0, 99]])
def test_rows_that_are_not_there_raise(tmp_path: Path, rows: list[int]) -> None:
    write_store(tmp_path / "s", [2])
    with pytest.raises(IndexError):
        open_store(tmp_path / "s").gather(np.array(rows))


def test_a_shard_is_a_plain_safetensors_file(tmp_path: Path) -> None:
    written = write_store(tmp_path / "s", [2])
    tensors = load_file(tmp_path / "s/shard-00000.safetensors")
    assert {name: (array.shape, array.dtype.name) for name, array in tensors.items()} == {
        "features": ((2, K, D), "float32"),
        "boxes": ((2, K, 4), "float32"),
        "object_ids": ((2, K), "int32"),
        "object_scores": ((2, K), "float32"),
        "attribute_ids": ((2, K), "int32"),
        "attribute_scores": ((2, K), "float32"),
        "image_sizes": ((2, 2), "int32"),
    }
    np.testing.assert_array_equal(tensors["features"][1], written[1].features)


def test_opening_reads_no_features_and_travels_to_other_processes(tmp_path: Path) -> None:
    write_store(tmp_path / "s", [2, 2])
    for shard in (tmp_path / "s").glob("*.safetensors"):
        shard.unlink()
    store = open_store(tmp_path / "s")
    assert len(store) == 4
    assert len(pickle.dumps(store)) < 500
    assert list(pickle.loads(pickle.dumps(store))) == list(store)


def test_without_its_commit_mark_a_shard_does_not_exist(tmp_path: Path) -> None:
    write_store(tmp_path / "s", [2, 3])
    (tmp_path / "s/shard-00001.json").unlink()
    assert len(open_store(tmp_path / "s")) == 2


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_store(tmp_path / name, [2, 3])
    for path in (tmp_path / "a").glob("[!.]*"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float16"}, "dtype: store float32, asked float16"),
        ({"extraction": {"imported": "by foot"}}, "extraction.imported: store by hand, asked by foot"),
        ({"image_roots": ["/other"]}, "images: store"),
    ],
)
def test_other_features_in_the_same_folder_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    write_store(tmp_path / "s", [1])
    with pytest.raises(PipelineError, match=message):
        claim_store(tmp_path / "s", manifest(**changes))
    claim_store(tmp_path / "s", manifest(image_roots=["/moved/photos"]))  # moved, but of the same name


@pytest.mark.parametrize(
    "name",
    # Of the last four each has the name, or nearly, of a file of a store, which an extraction writes or removes
    ["thesis.tex", ".bashrc", "images.jsonl", "failures.jsonl", "captions_of_photos.json", "shard-00000.tar"],
)
def test_a_folder_of_something_else_is_refused(tmp_path: Path, name: str) -> None:
    for tolerated in (".DS_Store", ".gitkeep", ".manifest.json.host.7.tmp", "captions.tsv"):
        (tmp_path / tolerated).touch()
    (tmp_path / name).touch()
    with pytest.raises(PipelineError, match=rf"not empty and not a store \(found {re.escape(name)}\)"):
        claim_store(tmp_path, manifest())
    (tmp_path / name).unlink()
    claim_store(tmp_path, manifest())


def test_regions_of_another_shape_and_infinite_features_are_refused(tmp_path: Path) -> None:
    claim_store(tmp_path / "s", manifest())
    regions = random_regions(0)
    rows = ShardRows(["a.jpg"], ["a.jpg"], [0], [regions])
    with pytest.raises(PipelineError, match=r"a\.jpg: features of shape \(3, 5\), expected \(3, 6\)"):
        commit_shard(tmp_path / "s", 0, rows, {**manifest(), "feature_dim": D + 1})
    regions.features[0, 0] = 1e6  # beyond float16
    with pytest.raises(PipelineError, match=r"a\.jpg: features that are not finite numbers as float16"):
        commit_shard(tmp_path / "s", 0, rows, manifest(dtype="float16"))
    assert [path.name for path in (tmp_path / "s").iterdir() if "shard" in path.name] == []


def damage_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [damage_header, cut, flip_a_bit, Path.unlink])
def test_inspect_finds_every_damage(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    write_store(tmp_path / "s", [2, 2])
    report = inspect_store(tmp_path / "s", progress=False)
    assert report.ok
    assert "4 images in 2 shards" in str(report)
    assert "checksums of 2 shards verified" in str(report)
    damage(tmp_path / "s/shard-00001.safetensors")
    report = inspect_store(tmp_path / "s", progress=False)
    assert not report.ok
    assert "DAMAGED" in str(report)
    assert "shard-00001" in str(report)


@pytest.mark.parametrize("damage", [damage_header, cut, Path.unlink])
def test_reading_damaged_tensors_is_an_error_not_numbers(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    write_store(tmp_path / "s", [2])
    damage(tmp_path / "s/shard-00000.safetensors")
    with pytest.raises(PipelineError, match=r"shard-00000\.safetensors: damaged or truncated"):
        open_store(tmp_path / "s")["0.jpg"]


@pytest.mark.parametrize("content", ["", "[]", "{", "{}", '{"format": "other"}'])
def test_damaged_manifests_are_refused(tmp_path: Path, content: str) -> None:
    write_store(tmp_path / "s", [1])
    (tmp_path / "s/manifest.json").write_text(content)
    with pytest.raises(PipelineError, match=r"manifest\.json: "):
        open_store(tmp_path / "s")
    with pytest.raises(PipelineError, match="not a feature store"):
        open_store(tmp_path)


def test_stores_join_when_their_features_are_of_one_kind(tmp_path: Path) -> None:
    first = write_store(tmp_path / "a", [2], prefix="a")
    second = write_store(tmp_path / "b", [1, 1], prefix="b", dtype="float16")
    both = open_stores([tmp_path / "a", tmp_path / "b"])
    assert list(both) == ["a0.jpg", "a1.jpg", "b0.jpg", "b1.jpg"]
    assert both.dtype == np.float32
    found = both.gather(np.array([3, 0]))
    np.testing.assert_array_equal(found[1], first[0].features)
    np.testing.assert_array_equal(found[0], second[1].features.astype(np.float16))
    write_store(tmp_path / "c", [1], prefix="c", extraction={"imported": "by foot"})
    with pytest.raises(PipelineError, match="cannot be mixed"):
        open_stores([tmp_path / "a", tmp_path / "c"])
    with pytest.raises(
        PipelineError, match=r"a and .*a: duplicate image id 'a0\.jpg'; extract their folders .*choose other"
    ):
        open_stores([tmp_path / "a", tmp_path / "a"])


def test_equal_ids_of_different_photos_are_told_apart_where_that_is_asked(tmp_path: Path) -> None:
    first = write_store(tmp_path / "2019", [2], prefix="IMG")
    second = write_store(tmp_path / "2020", [1, 2], prefix="IMG")
    write_store(tmp_path / "other", [1], prefix="other")
    both = open_stores([tmp_path / "2019", tmp_path / "2020", tmp_path / "other"], tell_apart=True)
    pairs = [f"{year}/IMG{index}.jpg" for year in (2019, 2020) for index in range(2)]
    assert list(both) == [*pairs, "IMG2.jpg", "other0.jpg"]
    np.testing.assert_array_equal(both["2019/IMG1.jpg"].features, first[1].features)
    np.testing.assert_array_equal(both["2020/IMG1.jpg"].features, second[1].features)
    assert [both.first_row(shard) for shard in both.shards] == [0, 2, 3, 5]
    assert list(pickle.loads(pickle.dumps(both))) == list(both)
    with pytest.raises(PipelineError, match="duplicate image id"):
        open_stores([tmp_path / "2019", tmp_path / "2020"])
    with pytest.raises(PipelineError, match="duplicate image id"):
        open_stores([tmp_path / "2019", tmp_path / "2019"], tell_apart=True)


def test_photos_are_told_apart_where_a_folder_has_the_name_of_a_store(tmp_path: Path) -> None:
    """2020/IMG0.jpg of a folder of all years, and IMG0.jpg of the store 2020."""
    for name, prefix in (("all", "2020/IMG"), ("more", "IMG"), ("2020", "IMG")):
        write_store(tmp_path / name, [1], prefix=prefix)
    paths = [tmp_path / name for name in ("all", "more", "2020")]
    assert list(open_stores(paths, tell_apart=True)) == [
        "2020/IMG0.jpg",
        f"{paths[1]}/IMG0.jpg",
        f"{paths[2]}/IMG0.jpg",
    ]


def test_one_photo_in_two_stores_is_not_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        write_store(tmp_path / name, [1], prefix="IMG")
    monkeypatch.setattr(Shard, "image_place", lambda self, row: "/photos/IMG0.jpg")
    with pytest.raises(PipelineError, match="duplicate image id"):
        open_stores([tmp_path / "a", tmp_path / "b"], tell_apart=True)


def test_paths_never_lead_out_of_the_photo_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").touch()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/0.jpg").touch()
    write_store(tmp_path / "s", [2], image_roots=[str(tmp_path / "photos")])
    mark = tmp_path / "s/shard-00000.json"
    content = json.loads(mark.read_text())
    content["paths"] = ["0.jpg", "../secret.jpg"]
    content["mark_sha256"] = seal(mark.name, content)
    mark.write_text(json.dumps(content))
    store = open_store(tmp_path / "s")
    assert store.image_path(0) == tmp_path / "photos/0.jpg"
    assert store.image_path(1) is None


def test_class_names_are_those_of_the_store_that_an_image_is_in(tmp_path: Path) -> None:
    write_store(tmp_path / "a", [1], prefix="a", object_names=["dog"], attribute_names=["red"])
    write_store(tmp_path / "b", [1, 1], prefix="b", object_names=[], attribute_names=[])
    both = open_stores([tmp_path / "a", tmp_path / "b"])
    assert both.names_of(0)[:2] == (["dog"], ["red"])
    assert both.names_of(1)[:2] == both.names_of(2)[:2] == ([], [])


def test_inspect_says_in_one_line_what_made_the_features(tmp_path: Path) -> None:
    detector = {"weights_sha256": "0123456789abcdef" * 4, "selection": "caffe", "detector": {"min_size": 600}}
    write_store(tmp_path / "a", [1], extraction={**detector, "precision": "bf16"})
    assert "\n  made by   detector with caffe selection, weights 0123456789ab…, bf16\n" in str(
        inspect_store(tmp_path / "a")
    )
    write_store(tmp_path / "b", [1], object_names=[], attribute_names=[])
    report = str(inspect_store(tmp_path / "b", progress=False))
    assert "\n  made by   another program; imported from by hand\n" in report
    assert "\n  classes   not recorded\n" in report


def test_a_shard_that_was_written_again_is_not_read_by_the_rows_of_before(tmp_path: Path) -> None:
    write_store(tmp_path / "s", [2, 2], prefix="old")
    opened = open_store(tmp_path / "s")
    sent = pickle.dumps(opened)
    before = opened["old0.jpg"]
    shutil.rmtree(tmp_path / "s")
    write_store(tmp_path / "s", [2, 2], prefix="new")
    np.testing.assert_array_equal(opened["old0.jpg"].features, before.features)  # of the file that it has open
    with pytest.raises(PipelineError, match="written again since the store was opened; open it again"):
        opened["old2.jpg"]
    with pytest.raises(PipelineError, match="changed since another process opened it"):
        pickle.loads(sent)


def test_shards_that_a_copy_left_from_before_are_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "copy", [2, 2, 1])
    write_store(tmp_path / "s", [2, 2])
    shutil.copytree(tmp_path / "s", tmp_path / "copy", dirs_exist_ok=True)
    with pytest.raises(PipelineError, match="3 shards, and its manifest counts 2: some are left over"):
        open_store(tmp_path / "copy")


def test_a_store_that_was_copied_half_way_is_not_complete(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", list("abcdef"))
    assert store.complete
    store.shards[1].mark.unlink()
    assert not open_store(tmp_path / "store").complete
