"""What an answer of the service says of its photos."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from pipeline.errors import UnreadableImage
from pipeline.inputs.photos import decode_thumbnail
from pipeline.runs import find_run, load_run
from pipeline.service.library import Library
from pipeline.service.schema import Filter
from pipeline.store.reader import open_stores
from tests.pipeline.service.servers import make_server, search
from tests.stores import make_store
from tests.world import PHOTO, extract_again, scan


def test_a_photo_that_is_sent_is_decoded_within_bounds() -> None:
    large = cv2.imencode(".jpg", np.zeros((8000, 9000, 3), np.uint8))[1].tobytes()
    assert max(decode_thumbnail(large, 4000, max_pixels=20_000_000).shape) <= 4000
    png = cv2.imencode(".png", np.zeros((6000, 6000, 3), np.uint8))[1].tobytes()
    with pytest.raises(UnreadableImage, match="6000 x 6000 pixels: more than 20,000,000"):
        decode_thumbnail(png, 4000, max_pixels=20_000_000)


def test_a_photo_that_changed_is_marked_in_an_answer_of_the_service(own_world: Path) -> None:
    extract_again()
    touched, changed = (Path("coco/train2014", PHOTO.format(number)) for number in (4, 5))
    with TestClient(make_server(features=("features/mine",)).app()) as client:
        found = lambda: {hit["name"] for hit in search(client, "a dog", limit=20)["hits"] if hit["changed"]}  # noqa: E731
        assert found() == set()
        touched.touch()
        changed.write_bytes(touched.read_bytes())
        os.utime(changed, (1_000_000_000,) * 2)  # as cp -p leaves it
        assert found() == {changed.name}
        (answer,) = client.post("/v1/search", json={"limit": 20}).json()["answers"]  # a list, newest first
        assert {hit["name"] for hit in answer["hits"] if hit["changed"]} == {changed.name}


def test_photos_of_one_time_and_size_that_changed_places_are_marked(own_world: Path) -> None:
    """As of an archive of uncompressed photos, whose folders were renamed: nobody touched a file."""
    for number in range(4):
        path = Path(f"archive/{'ab'[number % 2]}/{number // 2}.bmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".bmp", np.full((40, 60, 3), 50 * number, np.uint8))[1].tobytes())
        os.utime(path, (1_000_000_000,) * 2)
    command = ["extract", "--images", "archive", "--output", "features/archive", "--num-regions", "6"]
    assert scan(*command, "--workers", "0", "--device", "cpu").exit_code == 0
    with TestClient(make_server(features=("features/archive",)).app()) as client:
        assert not any(hit["changed"] for hit in search(client, "a dog")["hits"])
    for before, after in (("a", "c"), ("b", "a"), ("c", "b")):
        Path("archive", before).rename(Path("archive", after))
    with TestClient(make_server(features=("features/archive",)).app()) as client:
        assert [hit["changed"] for hit in search(client, "a dog")["hits"]] == [True] * 4


def test_a_filter_by_class_takes_all_classes_of_that_name(tmp_path: Path) -> None:
    """As a detector may have them that was trained on several datasets together."""
    store = make_store(
        tmp_path / "store", [f"{number}.jpg" for number in range(40)], object_names=["dog", "tree"] * 800
    )
    found = Library(open_stores([store.path])).rows(Filter(object="dog"))
    assert found is not None
    assert found.tolist() == [row for row in range(40) if np.any(store.regions(row).object_ids % 2 == 0)]


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
