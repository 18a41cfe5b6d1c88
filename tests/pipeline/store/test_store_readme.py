"""The specification in pipeline/store/README.md says what is on the disk."""

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from pipeline.extract import run
from pipeline.store.format import tensor_shapes
from pipeline.store.reader import open_store
from tests.faults import QuickDetector, small_config
from tests.photos import write_photos

README = (Path(__file__).resolve().parents[3] / "pipeline/store/README.md").read_text()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write_photos(tmp_path / "photos", 5)
    (tmp_path / "photos/002.jpg").write_bytes(b"no photo")
    run(small_config(tmp_path / "photos", tmp_path / "features/train2014"), extractor=QuickDetector(), progress=False)
    return tmp_path / "features/train2014"


def keys(section: str) -> set[str]:
    """Names in the first column of a section's table."""
    text = README.split(f"## {section}\n")[1].split("\n## ")[0]
    return {name for row in re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}


def test_keys_of_every_file_are_those_of_the_tables(store: Path) -> None:
    assert set(json.loads((store / "shard-00000.json").read_text())) == keys("Commit mark")
    assert set(json.loads((store / "manifest.json").read_text())) == keys("Manifest") - {"source"}
    plan = json.loads((store / "images.jsonl").read_text().splitlines()[0])
    assert set(plan) == {"image_id", "path", "root", "size", "mtime_ns", "shard"}
    assert all(f"`{key}`" in README.split("## Plan\n")[1].split("\n## ")[0] for key in plan)
    assert {path.name for path in store.glob("[!.]*")} <= set(re.findall(r"[\w-]+\.\w+", README)) | {
        "shard-00001.json",
        "shard-00001.safetensors",
    }


def test_bytes_of_the_tensors_file(store: Path) -> None:
    data = (store / "shard-00000.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert length % 8 == 0
    header, numbers = json.loads(data[8 : 8 + length]), data[8 + length :]
    assert (
        header.keys()
        == keys("Tensors")
        == tensor_shapes({"num_regions": 1, "feature_dim": 1, "dtype": "float16"}).keys()
    )
    regions = open_store(store)["001.jpg"]
    first, last = header["boxes"]["data_offsets"]
    boxes = np.frombuffer(numbers[first:last], "<f4").reshape(header["boxes"]["shape"])
    np.testing.assert_array_equal(boxes[1], regions.boxes)
    table = dict(re.findall(r"^\| `(\w+)` \| (\S+)", README, re.MULTILINE))
    assert {name: entry["dtype"] for name, entry in header.items()} == {
        name: {"F16": "F16", "F32": "F32", "I32": "I32"}[table[name]] for name in header
    }


def test_the_example_reads_a_store(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, dict] = {}
    exec(compile(example, "README.md", "exec"), names)
    expected = open_store(store)
    assert list(names["features"]) == list(expected)
    for image_id, features in names["features"].items():
        np.testing.assert_array_equal(features, expected[image_id].features)
    assert set(names["classes"]["001.jpg"]) == {"thing"}
