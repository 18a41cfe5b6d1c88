"""The demo's world as files: photos, COCO captions and Visual Genome annotations, laid out as the published data sets are."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
from tqdm import tqdm

from pipeline.config import config_diff
from pipeline.demo import annotations
from pipeline.demo.drawing.scene import draw_scene
from pipeline.demo.scenes import Scene, make_scene, stream
from pipeline.errors import PipelineError
from pipeline.files import locked, replacing, write_json

VERSION = 4  # of drawing and wording: scenes of different versions do not mix
SETTINGS = "world.json"
FIRST_ID = {
    "train": 1,
    "val": 200_001,
    "test": 400_001,
}  # COCO ids: a scene's number does not depend on the size of its split
MAX_SCENES = 200_000
VOCABULARIES = ("objects_vocab.txt", "attributes_vocab.txt")
VISUAL_GENOME_FILES = ("image_data.json", "objects.json", "attributes.json", *VOCABULARIES)
END_OF_JPEG = b"\xff\xd9"


@dataclass(frozen=True)
class World:
    """Where the files of a world are, and how many scenes it has."""

    folder: Path
    train: int
    val: int
    test: int
    seed: int

    @property
    def coco(self) -> Path:
        """Holds train2014/, val2014/, test2014/ and annotations/."""
        return self.folder / "coco"

    @property
    def visual_genome(self) -> Path:
        """Holds image_data.json, objects.json, attributes.json, VG_100K/ and two *_vocab.txt."""
        return self.folder / "visual_genome"

    def photos(self, split: str) -> Path:
        """Folder of the photos of "train", "val" or "test"."""
        return self.coco / f"{split}2014"

    def captions(self, split: str) -> Path:
        """Captions file of a split."""
        return self.coco / "annotations" / f"captions_{split}2014.json"

    @property
    def visual_genome_files(self) -> tuple[Path, ...]:
        """image_data.json, objects.json, attributes.json, and the vocabularies of objects and attributes."""
        return tuple(self.visual_genome / name for name in VISUAL_GENOME_FILES)

    def numbers(self, split: str) -> range:
        """The scenes of a split, which are its COCO ids."""
        return range(FIRST_ID[split], FIRST_ID[split] + getattr(self, split))


def write_world(folder: Path, *, train: int, val: int, test: int, seed: int, progress: bool = True) -> World:
    """Draw a world and write it down. Whole files are kept, so that a killed run continues and a finished one is a no-op.

    Args:
        folder: made where it does not exist.
        train, val, test: numbers of scenes. A scene is the same in worlds of any size with the same seed.
        seed: of everything.
        progress: show a bar.

    Raises:
        PipelineError: the folder holds another world, or files that this did not write.
    """
    world = World(Path(folder), train, val, test, seed)
    _check(world)
    world.folder.mkdir(parents=True, exist_ok=True)
    with locked(world.folder):
        _claim(world)
        if not _is_complete(world):
            _write_annotations(world, _write_photos(world, progress))
    return world


def _check(world: World) -> None:
    """Refuse what cannot be, before anything is touched."""
    for split in FIRST_ID:
        if not 0 <= getattr(world, split) <= MAX_SCENES:
            raise PipelineError(f"{split}={getattr(world, split)}: expected 0 to {MAX_SCENES:,} scenes")
    if world.seed < 0:
        raise PipelineError(f"seed={world.seed}: expected 0 or more")
    for folder in (world.coco, world.visual_genome):
        if folder.exists() and not (world.folder / SETTINGS).is_file():
            found = f"exists, but was not drawn here ({world.folder / SETTINGS} is missing)"
            raise PipelineError(f"{folder}: {found}", "choose another folder")


def _claim(world: World) -> None:
    """Write down what the folder will hold, or refuse it."""
    path = world.folder / SETTINGS
    wanted = {"version": VERSION, "seed": world.seed, **{split: getattr(world, split) for split in FIRST_ID}}
    if not path.is_file():
        write_json(path, wanted)
        return
    try:
        changed = config_diff(json.loads(path.read_text()), wanted, ("found", "asked"))
    except (ValueError, AttributeError) as error:
        raise PipelineError(f"{path}: damaged ({error})", f"delete {world.folder} and draw it again") from error
    if changed:
        remedy = "choose another folder, or delete it"
        raise PipelineError(f"{world.folder}: holds another world ({'; '.join(changed)})", remedy)


def _is_complete(world: World) -> bool:
    """Whether nothing is left to do, without laying out a single scene."""
    listed = all(path.is_file() for path in (*map(world.captions, FIRST_ID), *world.visual_genome_files))
    return listed and all(
        _is_whole(photo)
        for split in FIRST_ID
        for number in world.numbers(split)
        for photo in _names(world, split, number)
    )


def _names(world: World, split: str, number: int) -> tuple[Path, Path]:
    """Where a scene's photo is, under COCO and under Visual Genome."""
    return (
        world.photos(split) / annotations.coco_file_name(split, number),
        world.visual_genome / annotations.visual_genome_file_name(number),
    )


def _write_photos(world: World, progress: bool) -> dict[str, list[Scene]]:
    """Draw what is missing; returns the scenes of each split."""
    for folder in (*map(world.photos, FIRST_ID), world.coco / "annotations", world.visual_genome / "VG_100K"):
        folder.mkdir(parents=True, exist_ok=True)
    scenes: dict[str, list[Scene]] = {split: [] for split in FIRST_ID}
    total = world.train + world.val + world.test
    with tqdm(total=total, unit="scene", desc=f"drawing {world.folder.name}", disable=not progress) as bar:
        for split, made in scenes.items():
            for number in world.numbers(split):
                made.append(make_scene(world.seed, number))
                _write_photo(world, split, made[-1])
                bar.update()
    return scenes


def _write_photo(world: World, split: str, scene: Scene) -> None:
    """A scene's photo under its two names."""
    photo, twin = _names(world, split, scene.number)
    if not _is_whole(photo):
        quality = int(stream(scene.seed, scene.number, 4).integers(82, 96))
        _, data = cv2.imencode(".jpg", draw_scene(scene), [cv2.IMWRITE_JPEG_QUALITY, quality])
        with replacing(photo, sync=False) as file:  # not forced to disk: one that a power cut takes is drawn again
            file.write(data.tobytes())
    if not _is_whole(twin):
        shutil.copyfile(photo, twin)


def _is_whole(photo: Path) -> bool:
    try:
        with photo.open("rb") as file:
            file.seek(-len(END_OF_JPEG), os.SEEK_END)
            return file.read() == END_OF_JPEG
    except OSError:
        return False


def _write_annotations(world: World, scenes: dict[str, list[Scene]]) -> None:
    for split, made in scenes.items():
        write_json(world.captions(split), annotations.coco_captions(made, split))
    everything = [scene for made in scenes.values() for scene in made]
    described = list(map(annotations.visual_genome_objects, everything))
    images, objects, attributes, *vocabularies = world.visual_genome_files
    write_json(images, list(map(annotations.visual_genome_image, everything)))
    write_json(objects, [rows for rows, _ in described])
    write_json(attributes, [rows for _, rows in described])
    names = annotations.object_vocabulary(), annotations.attribute_vocabulary()
    for path, lines in zip(vocabularies, names, strict=True):
        with replacing(path) as file:
            file.write("".join(f"{line}\n" for line in lines).encode())
