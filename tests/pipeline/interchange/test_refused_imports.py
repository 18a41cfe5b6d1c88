"""Features of other code that would be joined with the wrong photos are refused."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.inputs.image_index import ImageIndex
from pipeline.interchange.common import ImportFeaturesConfig, name_of_photo
from pipeline.interchange.convert import import_features
from pipeline.interchange.hdf5 import _ids_from
from pipeline.store.writer import ShardRows, claim_store, commit_shard
from tests.stores import make_store, random_regions


def test_a_number_at_the_end_of_a_name_is_no_suffix() -> None:
    index = ImageIndex(["frame.001", "IMG_1.jpg"])
    assert index.match([["frame.002", "IMG_1"]], "captions.tsv") == {"IMG_1": 1}


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
