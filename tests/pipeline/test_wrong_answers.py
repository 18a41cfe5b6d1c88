"""Answers that were wrong without a word, each found by trying: changed photos, names that nearly fit, parts of a store."""

import json
import os
import shutil
import tarfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

import pipeline.runs
from matcher.checkpoint import model_sha256, save_model
from matcher.errors import MatcherError
from matcher.matcher import Matcher
from pipeline.errors import PipelineError, UnreadableImage
from pipeline.inputs.containers import index_of, pyarrow
from pipeline.inputs.dataset import load_dataset
from pipeline.inputs.image_index import ImageIndex
from pipeline.inputs.photos import decode_thumbnail
from pipeline.inputs.sources import list_photos
from pipeline.interchange.common import ImportFeaturesConfig, name_of_photo
from pipeline.interchange.convert import import_features
from pipeline.interchange.hdf5 import _ids_from
from pipeline.runs import find_run, load_run
from pipeline.search import open_search
from pipeline.service.dates import _taken
from pipeline.service.library import Library
from pipeline.service.schema import Filter
from pipeline.store.reader import open_store, open_stores
from pipeline.store.writer import ShardRows, claim_store, commit_shard
from tests.photos import write_photos
from tests.pipeline.service.servers import make_server, search, wait_for
from tests.stores import make_store, random_regions
from tests.world import SMALL_TRAINING, scan

PHOTO = "COCO_train2014_{:012}.jpg"


@pytest.fixture
def project(inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the world, to be changed."""
    shutil.copytree(inside, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    shutil.rmtree("index", ignore_errors=True)
    return tmp_path / "project"


def test_a_photo_that_changed_is_not_answered_with_its_old_regions(project: Path) -> None:
    # The store finds its photos by absolute path first: those of the copy have to be the ones that are there.
    extracted = scan("extract", "--images", "coco/train2014", "--output", "features/mine", "--num-regions", "6", "--workers", "0", "--device", "cpu")  # fmt: skip
    assert extracted.exit_code == 0, extracted.output
    first, second = (Path("coco/train2014") / PHOTO.format(number) for number in (3, 4))
    old, new = (open_search(features=["features/mine"]).find(path.name).regions for path in (first, second))
    first.write_bytes(second.read_bytes())
    said: list[str] = []
    search = open_search(features=["features/mine"], report=said.append)
    found = search.find(first.name).regions
    np.testing.assert_allclose(found.boxes, new.boxes, atol=0.1)
    assert not np.array_equal(found.boxes, old.boxes)
    assert "changed since it was extracted; run extract again" in said[-2]
    asked = scan("retrieve", "--query", "a dog by a tree", "--top", "20", "--features", "features/mine")
    (line,) = [line for line in asked.stdout.splitlines() if line.endswith("(changed)")]
    assert first.name in line
    told = scan(
        "retrieve", "--query", "dog", "--top", "20", "--features", "features/mine", "--html", "a.html", "--json"
    )
    assert [hit["image"] for hit in json.loads(told.stdout)[0]["hits"] if hit["changed"]] == [first.name]
    assert Path("a.html").read_text().count("changed since it was extracted") == 1
    assert f"1 of these photos changed since they were extracted ({first.name}, …)" in asked.stderr


def test_right_captions_are_those_of_the_photo_and_not_of_one_of_its_name(
    tmp_path: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCAN_PIPELINE_WEIGHTS", str(small_weights))
    for folder in ("a", "b"):
        write_photos(tmp_path / "photos" / folder, 6)
    rows = [f"{folder}/{number:03}.jpg\tphoto {number} of {folder}" for folder in "ab" for number in range(6)]
    (tmp_path / "photos_captions.tsv").write_text("\n".join(rows))
    options = ["--num-regions", "4", "--workers", "0", "--device", "cpu"]
    assert scan("extract", "--images", "photos", *options).exit_code == 0
    assert scan("train", "--device", "cpu", *SMALL_TRAINING).exit_code == 0
    # Another photo, of a name that photos of the store have; one that the captions, but not the store, know.
    (tmp_path / "own.tsv").write_text("own/003.jpg\tmy photo\n" + "\n".join(rows))
    for folder, number in (("copies", 5), ("own", 4)):
        Path(folder).mkdir()
        shutil.copy(f"photos/a/{number:03}.jpg", f"{folder}/003.jpg")
    for image, written_for_it in (
        ("a/003.jpg", ["photo 3 of a"]),
        ("copies/003.jpg", []),
        ("own/003.jpg", ["my photo"]),
    ):
        said = scan("retrieve", "--image", image, "--captions", "own.tsv", "--top", "20", "--json", "--device", "cpu")
        assert said.exit_code == 0, said.output
        right = [hit["caption"] for hit in json.loads(said.stdout)[0]["hits"] if hit["right"]]
        assert right == written_for_it


def test_a_number_at_the_end_of_a_name_is_no_suffix() -> None:
    index = ImageIndex(["frame.001", "IMG_1.jpg"])
    assert index.match([["frame.002", "IMG_1"]], "captions.tsv") == {"IMG_1": 1}


def test_part_of_a_store_is_said(project: Path) -> None:
    options = ["--num-regions", "6", "--workers", "0", "--device", "cpu", "shard_size=4", "--output", "features/part"]
    assert scan("extract", "--images", "coco/train2014", *options, "--limit", "8").exit_code == 0
    assert scan("extract", "--images", "coco/train2014", *options, "share=1/2").exit_code == 0
    asked = scan("retrieve", "--query", "a dog by a tree", "--features", "features/part")
    assert "note: features/part is not complete: searching the 12 photos that it holds so far" in asked.stderr
    judged = scan("evaluate", "--features", "features/part", "--captions", "coco/annotations/captions_train2014.json")
    assert "note: features/part is not complete: these are the 12 images that it holds so far" in judged.output


def test_a_part_without_work_says_so(project: Path) -> None:
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


def test_photos_of_one_name_and_two_kinds_are_refused_on_import(tmp_path: Path) -> None:
    for name in ("1.jpg", "1.png", "2.jpg", "3.png", "3"):
        (tmp_path / name).touch()
    assert name_of_photo("2", str(tmp_path)) == ("2.jpg", "2.jpg")
    assert name_of_photo("3", str(tmp_path)) == ("3", "3")
    with pytest.raises(PipelineError, match=r"image '1' can be 1\.jpg or 1\.png"):
        name_of_photo("1", str(tmp_path))


@pytest.mark.parametrize("content", ['{"a": 0, "b": 0, "c": 1}', '{"a": 0.5, "b": 1.2}', '{"a": false, "b": true}'])
def test_ids_with_rows_that_are_none_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "ids.json").write_text(content)
    with pytest.raises(PipelineError, match="rows are not 0 to 1, once each"):
        _ids_from(tmp_path / "ids.json", 2)


def test_an_import_of_fewer_images_does_not_pass_for_the_store_that_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "original"
    folder.mkdir()
    features = np.random.default_rng(0).normal(size=(300, 2, 4)).astype(np.float32)
    config = ImportFeaturesConfig(str(folder), split="dev", output=str(tmp_path / "store"))
    np.save(folder / "dev_ims.npy", features)
    assert len(import_features(config)) == 300
    np.save(folder / "dev_ims.npy", features[:128])  # one shard of three, to the last bit
    with pytest.raises(PipelineError, match="holds 3 shards, of more images than what is imported"):
        import_features(config)


def test_features_that_float16_makes_zero_are_refused(tmp_path: Path) -> None:
    manifest = {**make_store(tmp_path / "other", ["x"]).manifest, "dtype": "float16"}
    claim_store(tmp_path / "store", manifest)
    regions = random_regions(np.random.default_rng(0), 3, 5)
    regions.features[:] *= 1e-12
    rows = ShardRows(["a"], [None], [0], [regions])
    with pytest.raises(PipelineError, match=r"a: features too small for float16: all become 0; use --dtype float32"):
        commit_shard(tmp_path / "store", 0, rows, manifest)


def test_a_photo_that_is_sent_is_decoded_within_bounds() -> None:
    large = cv2.imencode(".jpg", np.zeros((8000, 9000, 3), np.uint8))[1].tobytes()
    assert max(decode_thumbnail(large, 4000, max_pixels=20_000_000).shape) <= 4000
    png = cv2.imencode(".png", np.zeros((6000, 6000, 3), np.uint8))[1].tobytes()
    with pytest.raises(UnreadableImage, match="6000 x 6000 pixels: more than 20,000,000"):
        decode_thumbnail(png, 4000, max_pixels=20_000_000)


def test_a_store_that_was_copied_half_way_is_not_complete(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", list("abcdef"))
    assert store.complete
    store.shards[1].mark.unlink()
    assert not open_store(tmp_path / "store").complete


def test_a_folder_within_another_brings_no_photo_twice(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos/2019", 2)
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    for roots in ([tmp_path / "photos", tmp_path / "photos/2019"], [tmp_path / "photos", tmp_path / "link"]):
        with pytest.raises(PipelineError, match=r"photos(/2019)? is part of .*photos; name the outer folder alone"):
            list_photos(roots)


def test_captions_named_twice_count_once(project: Path) -> None:
    captions = "coco/annotations/captions_train2014.json"
    said = scan("evaluate", "--split", "all", "--captions", captions, "--captions", str(project / captions))
    assert "all 20 images / 40 captions" in said.output


def test_a_copied_run_says_which_stores_it_takes(inside: Path, project: Path) -> None:
    said = scan("evaluate", "--run", "runs/t2i_mean")
    assert (
        f"runs/t2i_mean was copied: taking {project}/features/train2014, not {inside}/features/train2014" in said.output
    )


def test_a_run_keeps_its_own_splits_and_calibration(project: Path) -> None:
    run, cpu = Path("runs/t2i_mean"), torch.device("cpu")
    calibration = load_run(run, cpu).calibration
    assert calibration is not None
    (run / "calibration.json").write_text(json.dumps(calibration.to_file("of another run")))
    assert load_run(run, cpu).calibration is None
    changed = calibration.to_file(load_run(run, cpu).sha256) | {"shares": [1.0 for _ in calibration.shares]}
    (run / "calibration.json").write_text(json.dumps(changed))
    with pytest.raises(MatcherError, match=r"t2i_mean/calibration\.json: damaged, not the numbers that were written"):
        load_run(run, cpu)
    (run / "calibration.json").unlink()
    splits = json.loads((run / "splits.json").read_text())
    (run / "splits.json").write_text(json.dumps({"train": splits["dev"], "dev": splits["train"]}))
    with pytest.raises(PipelineError, match=r"splits\.json: not the splits that the run was trained with"):
        load_run(run, cpu)
    (run / "splits.json").unlink()
    said = scan("evaluate", "--run", str(run))
    assert (said.exit_code, "not the splits" in said.output) == (2, True)


def test_a_model_that_is_replaced_while_it_is_read_is_read_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else embeddings of the earlier one are stored under the checksum of the later one."""
    path, read = Path("runs/t2i_mean/best.safetensors"), pipeline.runs.load_model
    later = read(path)
    later.load_state_dict({name: 2 * tensor for name, tensor in later.state_dict().items()})

    def slowly(*asked: Any) -> Matcher:
        model = read(*asked)
        save_model(path, later)
        return model

    monkeypatch.setattr(pipeline.runs, "load_model", slowly)
    run = load_run(path.parent, torch.device("cpu"))
    found, expected = run.model.state_dict(), later.state_dict()
    assert run.sha256 == model_sha256(path)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_image_of_two_splits_is_refused(project: Path) -> None:
    Path("train.tsv").write_text("".join(f"{PHOTO.format(number)}\tA dog\n" for number in range(20)))
    Path("test.tsv").write_text("".join(f"{PHOTO.format(number)}\tA cat\n" for number in range(9, 15)))
    shutil.copytree("features/train2014", "features/photos")
    with pytest.raises(
        PipelineError, match=rf"test\.tsv: image '{PHOTO.format(9)}' is in the split test, and before in train"
    ):
        load_dataset([Path("features/photos")], ["train.tsv", "test.tsv"])


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


def test_a_search_that_fails_does_not_speak_of_another_run(project: Path) -> None:
    shutil.copytree("features/train2014", "features/second")
    said = scan("retrieve", "--query", "a dog")
    assert said.exit_code == 2
    assert [line for line in said.stderr.splitlines() if line] == [said.stderr.strip()]


def test_a_base_name_that_decides_alone_is_said(tmp_path: Path) -> None:
    make_store(tmp_path / "store", ["a/1.jpg", "a/2.jpg"])
    (tmp_path / "captions.tsv").write_text("b/1.jpg\tA dog\na/2.jpg\tA cat\n")
    notes = load_dataset([tmp_path / "store"], [tmp_path / "captions.tsv"]).notes
    assert "1 images are named in other folders: b/1.jpg is taken for a/1.jpg" in notes


def test_captions_of_a_folder_of_the_same_name_elsewhere_are_said(tmp_path: Path) -> None:
    make_store(tmp_path / "store", ["1.jpg"], image_roots=[str(tmp_path / "2020/photos")])
    (tmp_path / "captions.tsv").write_text("2019/photos/1.jpg\tA dog\n")
    notes = load_dataset([tmp_path / "store"], [tmp_path / "captions.tsv"]).notes
    assert "1 images are named in other folders: 2019/photos/1.jpg is taken for 1.jpg" in notes


def test_days_at_the_ends_of_the_calendar(project: Path) -> None:
    library = Library(open_stores(["features/train2014"]))
    assert library.rows(Filter(until="9999-12-31")).tolist() == list(range(20))
    library.dates._known = np.where(np.arange(20) < 5, 0.0, library.dates.all())  # photos of no known date
    assert len(library.rows(Filter(until="2999-01-01"))) == 15


def test_a_damaged_shard_gives_no_answer_and_no_embeddings_that_outlive_its_repair(project: Path) -> None:
    before = open_search(features=["features/train2014"])("a dog by a tree")
    shutil.rmtree("index")
    shard = Path("features/train2014/shard-00000.safetensors")
    whole = shard.read_bytes()
    shard.write_bytes(whole[: -len(whole) // 4] + bytes(reversed(whole[-len(whole) // 4 :])))
    said = scan("retrieve", "--query", "a dog by a tree")
    assert (said.exit_code, said.stdout) == (2, "")
    assert "shard-00000.safetensors: changed since it was written; repair it with: scan-pipeline inspect" in said.stderr
    shard.write_bytes(whole)
    assert open_search(features=["features/train2014"])("a dog by a tree") == before


def test_photos_before_1970_have_a_date_and_those_of_no_date_have_none(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library(open_stores(["features/train2014"]))
    monkeypatch.setattr(library.dates, "of", ([-86400.0 * 365 * 5] * 3 + [0.0] * 4 + [1.6e9] * 13).__getitem__)
    assert library.rows(Filter(until="1966-01-01")).tolist() == [0, 1, 2]
    assert library.rows(Filter(since="1960-01-01")).tolist() == [0, 1, 2, *range(7, 20)]
    assert len(library.rows(Filter(since="0001-01-01"))) == 16


def extract(*options: str) -> None:
    """The project's photos into features/mine: its other store finds those that it was copied from."""
    command = ["extract", "--images", "coco/train2014", "--output", "features/mine", "--num-regions", "6", *options]
    extracted = scan(*command, "--workers", "0", "--device", "cpu")
    assert extracted.exit_code == 0, extracted.output


def test_a_filter_by_days_waits_for_the_days_on_which_photos_were_taken(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = Path("coco/train2014", PHOTO.format(3))
    exif = Image.Exif()
    exif[0x0132] = "2019:07:01 12:00:00"
    Image.open(photo).save(photo, exif=exif)
    extract()
    taken = _taken.__wrapped__
    monkeypatch.setattr("pipeline.service.dates._taken", lambda *of: time.sleep(0.02) or taken(*of))
    store = open_stores(["features/mine"])
    library = Library(store)
    assert [store.image_ids[row] for row in library.rows(Filter(until="2019-12-31"))] == [photo.name]
    assert store.image_ids[library.newest(None)[-1]] == photo.name
    assert library.photo(store.row(photo.name), local=True).date == "2019-07-01"
    monkeypatch.setattr("pipeline.service.library.PATIENCE", 0.01)  # a list does not wait for ever
    assert len(Library(store).newest(None)) == 20
    server = make_server(features=("features/mine",))
    with TestClient(server.app()) as client:
        pages = []
        for offset in (0, 10):  # the second one when the days are known
            pages.append(client.post("/v1/search", json={"offset": offset, "limit": 10}).json())
            wait_for(lambda: server.service.generation.library.dates.changes == 1)
    assert pages[0]["generation"] != pages[1]["generation"]  # so that a client begins again


def test_a_photo_that_changed_is_marked_in_an_answer_of_the_service(project: Path) -> None:
    extract()
    touched, changed = (Path("coco/train2014", PHOTO.format(number)) for number in (4, 5))
    with TestClient(make_server(features=("features/mine",)).app()) as client:
        found = lambda: {hit["name"] for hit in search(client, "a dog", limit=20)["hits"] if hit["changed"]}  # noqa: E731
        assert found() == set()
        touched.touch()
        changed.write_bytes(touched.read_bytes())
        os.utime(changed, (1_000_000_000,) * 2)  # as cp -p leaves it
        assert found() == {changed.name}


def test_a_filter_by_class_takes_a_windows_class_only_where_it_has_a_name(tmp_path: Path) -> None:
    kind = load_run(find_run("starter"), torch.device("cpu")).data["extraction"]
    for name, extraction, least in (("windows", kind, 0.6), ("regions", {"by": "a detector"}, 0.0)):
        store = make_store(tmp_path / name, [f"{number}.jpg" for number in range(40)], extraction=extraction)
        library = Library(open_stores([store.path]))
        regions = [store.regions(row) for row in range(40)]
        for wanted in {one.object_ids[0] for one in regions}:
            shown = [np.any((one.object_ids == wanted) & (one.object_scores >= least)) for one in regions]
            found = library.rows(Filter(object=store.object_names[wanted]))
            assert found is not None
            assert found.tolist() == np.flatnonzero(shown).tolist()


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


def test_a_run_is_not_continued_with_other_captions_and_says_that_features_changed(project: Path) -> None:
    path = Path("coco/annotations/captions_train2014.json")
    again = ["train", "--device", "cpu", "--run", "runs/mine", "--features", "features/train2014"]
    again += ["--captions", str(path), *SMALL_TRAINING]
    assert scan(*again).exit_code == 0
    assert "has learned from other features" not in scan(*again).output
    whole = json.loads(path.read_text())
    texts = [row["caption"] for row in whole["annotations"]]
    rows = [{**row, "caption": text} for row, text in zip(whole["annotations"], texts[::-1], strict=True)]  # swapped
    path.write_text(json.dumps({**whole, "annotations": rows}))
    assert "holds a run with other settings (data.captions_sha256" in scan(*again).output
    path.write_text(json.dumps(whole))
    (Path("coco/train2014") / PHOTO.format(3)).write_bytes((Path("coco/train2014") / PHOTO.format(4)).read_bytes())
    extracted = scan("extract", "--images", "coco/train2014", "--num-regions", "6", "--workers", "0", "--device", "cpu")
    assert "1 changed photo" in extracted.stderr, extracted.output
    assert "note: runs/mine has learned from other features than its stores hold now" in scan(*again).output


def test_a_store_without_a_photo_yet_does_not_stop_the_search_of_others(project: Path) -> None:
    manifest = {**make_store(project / "one_photo", ["x"]).manifest}
    claim_store(
        project / "features/begun",
        {**open_store("features/train2014").manifest, "image_roots": manifest["image_roots"]},
    )
    said = scan("retrieve", "--query", "a dog")
    assert said.exit_code == 0, said.output
    assert "note: skipping features/begun (no photo extracted yet)" in said.stderr


def test_stores_that_a_run_recorded_have_to_fit_it_as_any_other(project: Path) -> None:
    record = Path("runs/t2i_mean/data.json")
    record.write_text(record.read_text().replace("../../features/train2014", "../../elsewhere/train2014"))
    shutil.rmtree("features")
    make_store(Path("elsewhere/train2014"), ["1.jpg"], num_regions=6, feature_dim=64)  # as large, of another detector
    with pytest.raises(PipelineError, match=r"no store fits runs/t2i_mean: .*elsewhere/train2014: "):
        open_search("runs/t2i_mean")


def test_a_search_takes_each_caption_once_and_ignores_no_option(project: Path) -> None:
    own = "coco/annotations/captions_train2014.json"
    asked = ["retrieve", "--image", PHOTO.format(3), "--json"]
    once, twice = (scan(*asked, *["--captions", own] * times) for times in (1, 2))
    assert twice.stdout == once.stdout != ""
    for option in ("--captions", "--weights"):
        refused = scan("retrieve", "--query", "a dog", option, own)
        assert refused.exit_code == 2
        assert "give --image ID|PATH" in refused.stderr
