"""Answers that were wrong without a word, each found by trying: changed photos, names that nearly fit, parts of a store."""

import json
import shutil
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
import pytest
from PIL import Image

from pipeline.errors import PipelineError, UnreadableImage
from pipeline.inputs.image_index import ImageIndex
from pipeline.inputs.photos import decode_thumbnail
from pipeline.interchange.common import ImportFeaturesConfig, name_of_photo
from pipeline.interchange.convert import import_features
from pipeline.interchange.hdf5 import _ids_from
from pipeline.search import open_search
from pipeline.service.library import _taken
from pipeline.store.writer import ShardRows, claim_store, commit_shard
from tests.photos import write_photos
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
    said = scan("retrieve", "--image", "a/003.jpg", "--top", "20", "--json", "--device", "cpu")
    assert said.exit_code == 0, said.output
    right = [hit["caption"] for hit in json.loads(said.stdout)[0]["hits"] if hit["right"]]
    assert right == ["photo 3 of a"]


def test_a_number_at_the_end_of_a_name_is_no_suffix() -> None:
    index = ImageIndex(["frame.001", "IMG_1.jpg"])
    assert index.match(["frame.002", "IMG_1"], "captions.tsv") == {"IMG_1": 1}


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
        commit_shard(tmp_path / "store", 0, rows, num_regions=3, feature_dim=5, dtype="float16")


def test_the_date_of_an_iphones_photo_is_when_it_was_taken(tmp_path: Path) -> None:
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0132] = "2019:07:01 12:00:00"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "a.heic", "HEIF", exif=exif)
    assert _taken(tmp_path / "a.heic") == datetime(2019, 7, 1, 12).timestamp()


def test_a_photo_that_is_sent_is_decoded_within_bounds() -> None:
    large = cv2.imencode(".jpg", np.zeros((8000, 9000, 3), np.uint8))[1].tobytes()
    assert max(decode_thumbnail(large, 4000, max_pixels=20_000_000).shape) <= 4000
    png = cv2.imencode(".png", np.zeros((6000, 6000, 3), np.uint8))[1].tobytes()
    with pytest.raises(UnreadableImage, match="6000 x 6000 pixels: more than 20,000,000"):
        decode_thumbnail(png, 4000, max_pixels=20_000_000)
