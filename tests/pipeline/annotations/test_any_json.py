"""Any JSON value in the place of any file of annotations is read or refused; nothing else is raised."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.annotations.coco import read_coco
from pipeline.annotations.records import ClassVocabulary
from pipeline.annotations.visual_genome import read_held_out, read_visual_genome
from pipeline.errors import PipelineError

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.just("dog"))
KEYS = st.sampled_from(
    ["image_id", "id", "height", "width", "objects", "attributes", "names", "object_id", "merged_object_ids", "x", "images",
     "annotations", "categories", "name", "bbox", "category_id", "file_name", "iscrowd", "split", "cocoid", "coco_id"]
)  # fmt: skip
JSON = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(KEYS, v, max_size=6), max_leaves=12)
ANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
OBJECT = {"object_id": 1, "names": ["dog"], "x": 0, "y": 0, "w": 9, "h": 9}
VISUAL_GENOME: dict[str, Any] = {
    "image_data": [{"image_id": 1, "height": 20, "width": 20}],
    "objects": [{"image_id": 1, "objects": [OBJECT]}],
    "attributes": [{"image_id": 1, "attributes": [{"object_id": 1, "attributes": ["big"]}]}],
}


def changed(content: Any, value: Any, number: int) -> Any:
    """A copy with the number-th place, counted from the outside, taken by a value."""
    places: list[tuple[Any, Any]] = []
    content = json.loads(json.dumps(content))
    queue = [content]
    while queue:
        node = queue.pop(0)
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                queue.append(node[key])
    node, key = places[number % len(places)]
    node[key] = value
    return content


@ANY
@given(JSON, st.integers(0, 40))
def test_visual_genome(tmp_path: Path, value: Any, number: int) -> None:
    (tmp_path / "VG_100K").mkdir(exist_ok=True)
    (tmp_path / "VG_100K" / "1.jpg").touch()
    for name, content in changed(VISUAL_GENOME, value, number).items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    with suppress(PipelineError):
        read_visual_genome(tmp_path, ClassVocabulary(["dog"]), ClassVocabulary(["big"]))


@ANY
@given(JSON, st.integers(0, 40))
def test_coco(tmp_path: Path, value: Any, number: int) -> None:
    (tmp_path / "annotations").mkdir(exist_ok=True)
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 20, "width": 20}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}],
        "categories": [{"id": 1, "name": "dog"}],
    }
    for part in ("train", "val"):
        (tmp_path / f"{part}2017").mkdir(exist_ok=True)
        (tmp_path / f"{part}2017" / "1.jpg").touch()
        (tmp_path / "annotations" / f"instances_{part}2017.json").write_text(
            json.dumps(changed(content, value, number))
        )
    with suppress(PipelineError):
        read_coco(tmp_path)


@ANY
@given(JSON)
def test_held_out_files(tmp_path: Path, value: Any) -> None:
    (tmp_path / "x.json").write_text(json.dumps(value))
    with suppress(PipelineError):
        read_held_out([tmp_path / "x.json"])
