"""A byte of a shard that changed gives no answer, no model, no recall, no export and no publication, and no update hides it."""

import json
import os
import shutil
from pathlib import Path

import pytest

from pipeline.errors import DamagedShard
from pipeline.extract import run
from pipeline.interchange.common import ExportFeaturesConfig
from pipeline.interchange.convert import export_features
from pipeline.push import PushConfig
from pipeline.push import run as push
from pipeline.search import open_search
from pipeline.store.inspect import inspect_store
from pipeline.store.reader import open_store
from tests.faults import QuickDetector, small_config
from tests.photos import write_photos
from tests.stores import make_store
from tests.world import SMALL_TRAINING, scan

SAID = "changed since it was written; repair it with: scan-pipeline inspect"


def flip_a_byte(shard: Path) -> None:
    """Change a feature, and leave size and time of the file as they were."""
    content, times = bytearray(shard.read_bytes()), shard.stat()
    content[len(content) // 2] ^= 0x40
    shard.write_bytes(content)
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_it_trains_and_judges_nothing(inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(inside, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    flip_a_byte(Path("features/train2014/shard-00000.safetensors"))
    judged = scan("evaluate", "--run", "runs/t2i_mean", "--device", "cpu")
    assert (judged.exit_code, SAID in judged.stderr) == (2, True)
    trained = scan("train", "--run", "runs/mine", "--device", "cpu", *SMALL_TRAINING)
    assert (trained.exit_code, SAID in trained.stderr) == (2, True)
    assert not Path("runs/mine").exists()


def test_only_the_shards_of_the_rows_asked_for_are_read(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", list("abcdefg"))  # two a shard
    flip_a_byte(store.shards[1].path)
    store.refuse_changed(store._starts[[0, 2, 3]])  # rows 0, 4 and 6
    for rows in ([2], [6, 3], None):
        with pytest.raises(DamagedShard, match=r"shard-00001\.safetensors: changed"):
            store.refuse_changed(rows)  # type: ignore[arg-type]


@pytest.mark.parametrize("format", ["tsv", "npz"])
def test_it_is_neither_exported_nor_published(tmp_path: Path, format: str) -> None:
    flip_a_byte(make_store(tmp_path / "store", list("abc")).shards[0].path)
    with pytest.raises(DamagedShard, match=SAID):
        export_features(ExportFeaturesConfig(str(tmp_path / "store"), format, str(tmp_path / "out")))
    with pytest.raises(DamagedShard, match=SAID):
        push(PushConfig(str(tmp_path / "store"), "owner/name", mirror=str(tmp_path / "mirror")))
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_photo_that_vanishes_hides_no_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(tmp_path / "photos", 4)
    config = small_config(tmp_path / "photos", tmp_path / "store")
    store = run(config, extractor=QuickDetector(), progress=False)
    before = store["003.jpg"].features
    flip_a_byte(store.shards[0].path)
    (tmp_path / "photos/000.jpg").unlink()
    run(config, extractor=QuickDetector(), progress=False)
    assert "shards with lost or damaged tensors, made again: 1" in capsys.readouterr().err
    assert inspect_store(tmp_path / "store").ok
    assert (open_store(tmp_path / "store")["003.jpg"].features == before).all()


@pytest.mark.parametrize("index", ["made before", "impossible"])
def test_it_answers_nothing(own_world: Path, index: str) -> None:
    asked = ("retrieve", "--run", "runs/t2i_mean", "--query", "a dog", "--device", "cpu", "--top", "20")
    if index == "impossible":
        Path("index").write_text("a file, so that nothing can be stored")
    else:
        assert scan(*asked).exit_code == 0
    for shard in Path("features/train2014").glob("*.safetensors"):
        flip_a_byte(shard)
    photo = ("--image", "COCO_train2014_000000000003.jpg", "--run", "runs/t2i_mean", "--device", "cpu")
    for command in (asked, ("retrieve", *photo), ("explain", *photo, "--caption", "a dog", "--output", "why.png")):
        result = scan(*command)
        assert (result.exit_code, SAID in result.stderr) == (2, True)


def test_class_names_that_changed_are_refused_and_repaired(own_world: Path) -> None:
    manifest = Path("features/train2014/manifest.json")
    written = json.loads(manifest.read_text())
    written["object_names"].reverse()
    manifest.write_text(json.dumps(written))
    result = scan("retrieve", "--run", "runs/t2i_mean", "--query", "a dog", "--device", "cpu")
    assert (result.exit_code, "object_names or attribute_names changed" in result.stderr) == (2, True)
    assert "manifest.json: moved to" in scan("inspect", "features/train2014", "--repair").output
    del written["names_sha256"]  # a store of before, whose names nobody can compare
    manifest.write_text(json.dumps(written))
    assert scan("inspect", "features/train2014").exit_code == 0


def test_a_damaged_shard_gives_no_answer_and_no_embeddings_that_outlive_its_repair(own_world: Path) -> None:
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
