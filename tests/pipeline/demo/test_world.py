"""The demo's small world: the same for ever, annotated as it is drawn, described truly, and written in spite of kills."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.demo.annotations import VISUAL_GENOME_IDS, attribute_vocabulary, object_vocabulary, visual_genome_objects
from pipeline.demo.captions import describe
from pipeline.demo.drawing.lighting import illumination, lit
from pipeline.demo.drawing.scene import draw_scene
from pipeline.demo.relations import RELATIONS
from pipeline.demo.scenes import COLORS, KINDS, MIN_VISIBLE, PLACES, Scene, Thing, make_scene, overlap
from pipeline.demo.words import NAMES
from pipeline.demo.world import World, write_world
from pipeline.errors import PipelineError
from pipeline.inputs.captions import read_captions
from pipeline.inputs.photos import read_image
from tests.demo_claims import untrue

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(7, number) for number in range(1, 61)]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> World:
    return write_world(tmp_path_factory.mktemp("demo") / "world", train=3, val=1, test=1, seed=7, progress=False)


# --- scenes


def test_a_scene_is_the_same_in_another_process_whatever_was_drawn_before() -> None:
    code = (
        "from hashlib import sha256; from pipeline.demo.scenes import make_scene; from pipeline.demo.drawing.scene import draw_scene; "
        "from pipeline.demo.captions import describe; scene = make_scene(7, 2); "
        "print(sha256(draw_scene(scene).tobytes()).hexdigest(), *describe(scene), sep='|')"
    )
    draw_scene(make_scene(7, 1))
    scene = make_scene(7, 2)
    here = "|".join([sha256(draw_scene(scene).tobytes()).hexdigest(), *describe(scene)])
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert there.stdout.strip() == here
    assert make_scene(8, 2) != scene
    assert make_scene(7, 3).things != scene.things


def test_scenes_hold_what_was_asked_for(scenes: list[Scene]) -> None:
    things = [thing for scene in scenes for thing in scene.things]
    assert {len(scene.things) for scene in scenes} == {2, 3, 4, 5}
    assert {scene.place for scene in scenes} == set(PLACES)
    assert {thing.kind for thing in things} == set(KINDS)
    assert {thing.color for thing in things} == set(COLORS)
    assert {(scene.width, scene.height) for scene in scenes} == {(320, 240), (240, 320)}
    assert min(thing.visible for thing in things) >= MIN_VISIBLE
    sides = np.array([max(thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]) / 240 for thing in things])
    assert sides.min() > 0.15
    assert np.mean((sides > 0.2) & (sides < 0.6)) > 0.9
    for scene in scenes:
        assert [thing.y for thing in scene.things] == sorted((thing.y for thing in scene.things), reverse=True)


def test_small_and_big_never_look_alike(scenes: list[Scene]) -> None:
    for kind in KINDS:
        tall: dict[str, list[int]] = {"small": [], "big": []}
        for scene in scenes:
            for thing in scene.things:
                inside = thing.box[0] > 0 and thing.box[2] < scene.width and thing.box[3] < scene.height
                if thing.kind == kind and inside:
                    tall[thing.size].append(thing.box[3] - thing.box[1])
        assert tall["small"]
        assert tall["big"]
        assert max(tall["small"]) < min(tall["big"])


def test_boxes_are_tight_around_what_is_drawn(scenes: list[Scene]) -> None:
    for scene in scenes[:12]:
        for thing in scene.things:
            rows, columns = np.nonzero(_cover(scene, thing) > 0.5)
            assert thing.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert 0 <= thing.box[0] < thing.box[2] <= scene.width
            assert 0 <= thing.box[1] < thing.box[3] <= scene.height


def test_what_stands_nearer_hides_what_is_behind(scenes: list[Scene]) -> None:
    checked = 0
    for scene in scenes[:30]:
        for place, thing in enumerate(scene.things):
            whole = _cover(scene, thing) > 0.5
            free = whole.copy()
            for nearer in scene.things[place + 1 :]:
                free &= ~(_cover(scene, nearer) > 0.5)
            if free.sum() < whole.sum() and min(thing.box[:2]) > 0 and thing.box[2] < scene.width:
                assert free.sum() / whole.sum() == pytest.approx(thing.visible)
                checked += 1
    assert checked > 5


def _cover(scene: Scene, thing: Thing) -> np.ndarray:
    """(H, W) share of each pixel that drawing the thing covers."""
    _, coverage, left, top = lit(scene, thing, illumination(scene, np.zeros(3, np.float32)))
    cover = np.zeros((scene.height, scene.width), np.float32)
    frame, part = overlap(cover.shape, left, top, coverage.shape)
    cover[frame] = coverage[..., 0][part]
    return cover


def test_colors_are_seen(scenes: list[Scene]) -> None:
    """A blue car is blue: in daylight, on what is of one colour nearly all over."""
    shown: dict[str, list[np.ndarray]] = {color: [] for color in ("black", "blue", "green", "red", "white")}
    for scene in scenes:
        for thing in scene.things:
            plain = thing.kind in ("cone", "duck", "heart", "star") and thing.visible > 0.9
            if scene.place.time == "day" and plain and len(shown.get(thing.color, [0] * 3)) < 3:
                seen = draw_scene(scene)[_cover(scene, thing) > 0.9]
                shown[thing.color].append(np.median(seen.astype(int), axis=0))
    assert all(map(len, shown.values()))
    strongest = {"blue": 0, "green": 1, "red": 2}
    for color, place in strongest.items():
        assert all(np.argmax(median) == place for median in shown[color])
    assert max(median.max() for median in shown["black"]) < 100 < min(median.min() for median in shown["white"])


# --- captions


def test_captions_are_true(scenes: list[Scene]) -> None:
    wrong = [(scene.number, text, why) for scene in scenes for text in describe(scene) if (why := untrue(text, scene))]
    assert not wrong


def test_the_checker_of_captions_finds_lies(scenes: list[Scene]) -> None:
    """Of another scene few captions hold, and none that names a thing that is not there."""
    held = [not untrue(text, other) for scene, other in pairwise(scenes) for text in describe(scene)]
    assert np.mean(held) < 0.05
    scene = scenes[0]
    there = scene.things[0]
    another = next(color for color in COLORS if color not in {thing.color for thing in scene.things})
    assert not untrue(f"A {there.color} {there.kind}.", scene)
    assert untrue(f"A {another} {there.kind}.", scene)
    assert untrue(f"a {there.kind} and a dog", scene)
    assert untrue("five toys" if len(scene.things) < 5 else "four toys", scene)
    assert untrue(f"a {there.kind} dances", scene)


def test_captions_are_varied(scenes: list[Scene]) -> None:
    texts = [describe(scene) for scene in scenes]
    assert all(len(set(five)) == 5 for five in texts)
    words = Counter(
        word for five in texts for text in five for word in text.lower().strip(".").replace(",", "").split()
    )
    assert 90 < len(words) < 180
    assert sum(count >= 5 for count in words.values()) > 80
    everything = sum(
        any(all(_named(thing, text.lower()) for thing in scene.things) for text in five)
        for scene, five in zip(scenes, texts, strict=True)
    )
    assert everything == len(scenes)


def _named(thing: Thing, text: str) -> bool:
    return any(name in text for name in NAMES[thing.kind])


def test_relations_are_what_they_say() -> None:
    def thing(x0: int, x1: int, depth: float) -> Thing:
        return Thing("ball", "red", "big", False, 0.0, 0.0, depth, (x0, 50, x1, 100), 1.0)

    left, right, far = thing(0, 50, 3.0), thing(60, 110, 3.1), thing(20, 70, 4.5)
    held = {name: holds(left, right) for name, holds in RELATIONS.items()}
    assert held == {"left": True, "right": False, "behind": False, "before": False, "beside": True}
    assert RELATIONS["behind"](far, left)
    assert RELATIONS["before"](left, far)
    assert not RELATIONS["left"](left, far)  # the middle of the far one is over the near one's columns
    assert not RELATIONS["beside"](left, thing(400, 450, 3.0))


# --- files


def test_the_layout_is_that_of_coco(drawn: World) -> None:
    for split, count in (("train", 3), ("val", 1), ("test", 1)):
        content = json.loads(drawn.captions(split).read_text())
        photos = sorted(path.name for path in drawn.photos(split).iterdir())
        assert photos == [f"COCO_{split}2014_{number:012}.jpg" for number in drawn.numbers(split)]
        assert [row["file_name"] for row in content["images"]] == photos
        for row in content["images"]:
            assert read_image(drawn.photos(split) / row["file_name"]).shape == (row["height"], row["width"], 3)
        captions = read_captions(drawn.captions(split))
        assert len(captions) == 5 * count == len({caption.caption_id for caption in captions})
        assert {caption.image_id for caption in captions} == set(drawn.numbers(split))
        assert [c.text for c in captions if c.image_id == drawn.numbers(split)[0]] == describe(
            make_scene(7, drawn.numbers(split)[0])
        )


def test_visual_genome_holds_every_scene(drawn: World) -> None:
    images, objects, attributes = (json.loads(path.read_text()) for path in drawn.visual_genome_files[:3])
    assert [row["coco_id"] for row in images] == [
        number for split in ("train", "val", "test") for number in drawn.numbers(split)
    ]
    assert (
        [row["image_id"] for row in images]
        == [row["image_id"] for row in objects]
        == [row["image_id"] for row in attributes]
    )
    assert len({row["object_id"] for image in objects for row in image["objects"]}) == sum(
        len(o["objects"]) for o in objects
    )
    for image, one in zip(images, objects, strict=True):
        scene = make_scene(7, image["coco_id"])
        photo = drawn.visual_genome / "VG_100K" / f"{image['image_id']}.jpg"
        assert image["image_id"] == VISUAL_GENOME_IDS + image["coco_id"]
        assert read_image(photo).shape == (scene.height, scene.width, 3)
        boxes = [(row["x"], row["y"], row["x"] + row["w"], row["y"] + row["h"]) for row in one["objects"]]
        assert boxes[: len(scene.things)] == [thing.box for thing in scene.things]
        for row in one["objects"]:
            assert 0 <= row["x"] < row["x"] + row["w"] <= scene.width
            assert 0 <= row["y"] < row["y"] + row["h"] <= scene.height


def test_names_and_attributes_are_in_the_vocabularies(scenes: list[Scene]) -> None:
    names, qualities = _classes(object_vocabulary()), _classes(attribute_vocabulary())
    strange: Counter[str] = Counter()
    for scene in scenes:
        objects, attributes = visual_genome_objects(scene)
        for row, thing in zip(objects["objects"], scene.things, strict=False):  # ground and backdrop follow
            found = names.get(row["names"][0].lower())
            strange[row["names"][0]] += found is None
            assert found in (None, thing.kind)
        for row, thing in zip(attributes["attributes"], scene.things, strict=False):
            meant = {qualities[word] for word in row.get("attributes", [])}
            assert meant <= {thing.color, thing.size, "shiny" if thing.shiny else thing.size}
        for row in attributes["attributes"][len(scene.things) :]:
            assert row["names"][0] in names
            assert all(word in qualities for word in row.get("attributes", []))
    assert strange.total() < 0.05 * sum(len(scene.things) for scene in scenes)


def _classes(lines: list[str]) -> dict[str, str]:
    return {name: line.split(",")[0] for line in lines for name in line.split(",")}


@pytest.mark.shared
def test_keys_are_those_of_visual_genome(drawn: World, shared: Path) -> None:
    for name in ("image_data", "objects", "attributes"):
        published = json.loads((shared / f"data/visual_genome/{name}.sample.json").read_text())
        ours = json.loads((drawn.visual_genome / f"{name}.json").read_text())
        assert _keys(ours) == _keys(published)
        for key in ("objects", "attributes"):
            if key == name:
                rows, samples = ([row for image in images for row in image[key]] for images in (ours, published))
                assert _keys(rows) <= _keys(samples)


def _keys(rows: list[dict[str, Any]]) -> set[tuple[str, ...]]:
    return {tuple(sorted(row)) for row in rows}


def test_scenes_do_not_depend_on_how_many_there_are(drawn: World, tmp_path: Path) -> None:
    other = write_world(tmp_path / "other", train=1, val=2, test=1, seed=7, progress=False)
    for split in ("train", "val", "test"):
        first = f"COCO_{split}2014_{drawn.numbers(split)[0]:012}.jpg"
        assert (other.photos(split) / first).read_bytes() == (drawn.photos(split) / first).read_bytes()


class _Killed(BaseException):
    pass


def test_killed_at_any_file_it_continues_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"train": 1, "val": 1, "test": 0}
    whole = dict(_files(write_world(tmp_path / "whole", **counts, seed=7, progress=False).folder))
    put = os.replace
    for survived in range(11):  # settings, two photos, three files of captions, five of Visual Genome
        left = survived

        def replace(source: Any, target: Any) -> None:
            nonlocal left
            if left == 0:
                raise _Killed
            left -= 1
            put(source, target)

        folder = tmp_path / f"{survived}/world"
        monkeypatch.setattr(os, "replace", replace)
        with pytest.raises(_Killed):
            write_world(folder, **counts, seed=7, progress=False)
        monkeypatch.setattr(os, "replace", put)
        write_world(folder, **counts, seed=7, progress=False)
        assert dict(_files(folder)) == whole


def test_a_finished_world_is_left_alone_and_damage_is_mended(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world", train=2, val=0, test=0, seed=7, progress=False)
    before = {path: path.stat().st_mtime_ns for path in world.folder.rglob("[!.]*")}
    write_world(world.folder, train=2, val=0, test=0, seed=7, progress=False)
    assert {path: path.stat().st_mtime_ns for path in world.folder.rglob("[!.]*")} == before
    photo = min(world.photos("train").iterdir())
    whole = photo.read_bytes()
    photo.unlink()
    photo.write_bytes(whole[:-50])
    write_world(world.folder, train=2, val=0, test=0, seed=7, progress=False)
    assert photo.read_bytes() == whole


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path.read_bytes()


def test_another_world_is_refused(tmp_path: Path) -> None:
    write_world(tmp_path / "world", train=1, val=0, test=0, seed=7, progress=False)
    with pytest.raises(PipelineError, match="holds another world \\(seed: found 7, asked 8\\)"):
        write_world(tmp_path / "world", train=1, val=0, test=0, seed=8, progress=False)
    (tmp_path / "world/world.json").write_text("[")
    with pytest.raises(PipelineError, match=r"world\.json: damaged"):
        write_world(tmp_path / "world", train=1, val=0, test=0, seed=7, progress=False)
    (tmp_path / "mine/coco").mkdir(parents=True)
    with pytest.raises(PipelineError, match="exists, but was not drawn here"):
        write_world(tmp_path / "mine", train=1, val=0, test=0, seed=7, progress=False)
    with pytest.raises(PipelineError, match="train=-1"):
        write_world(tmp_path / "none", train=-1, val=0, test=0, seed=7, progress=False)
    with pytest.raises(PipelineError, match="seed=-1: expected 0 or more"):
        write_world(tmp_path / "none", train=1, val=0, test=0, seed=-1, progress=False)
    assert not (tmp_path / "none").exists()
