"""Whatever becomes of a folder of photos between extractions, its store never shows one photo's regions as another's.

hypothesis writes histories: photos that come, change, break, change places and go, extractions that are killed, limited or
shared, projects that move. The regions of these tests tell what photo they are of, so a store can be compared with its folder.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from detector.pending import Finished, Pending, RegionSource
from detector.preprocess import InputSettings, PreparedImage
from detector.regions import Regions
from pipeline.errors import PipelineError
from pipeline.extract import run
from pipeline.extraction.job import ExtractConfig
from pipeline.inputs.sources import is_changed
from pipeline.store.inspect import inspect_store
from pipeline.store.reader import Store, open_store
from pipeline.store.repair import repair_store

NAMES = ("a.png", "b.png", "2/a.png", "B.png", "c.PNG", "2/d.png")
BROKEN = 0  # a picture's number when its file is none
SHARDS = 2  # photos each


class Killed(BaseException):
    """Nothing catches it, as nothing catches a SIGKILL."""


class Signature(RegionSource):
    """Regions whose features are the number of the picture; dies when it is to do more than `lives` batches."""

    num_regions, feature_dim = 1, 1
    object_names, attribute_names = ["thing"], ["plain"]
    input_settings = InputSettings(min_size=8, max_size=8, pixel_mean=(0.0, 0.0, 0.0))

    def __init__(self, lives: int = 1000):
        self.lives = lives

    def describe(self) -> dict[str, Any]:
        return {"source": "signature"}

    def launch(self, images: Sequence[PreparedImage]) -> Pending:
        self.lives -= 1
        if self.lives < 0:
            raise Killed
        return Finished([self._regions(image) for image in images])

    def _regions(self, image: PreparedImage) -> Regions:
        ids, scores = np.zeros(1, np.int32), np.ones(1, np.float32)
        features = np.array([[image.pixels[0, 0, 0]]], np.float32)
        return Regions(np.zeros((1, 4), np.float32), features, ids, scores, ids, scores, image.image_size)


def write_picture(path: Path, number: int) -> None:
    """A picture by number, of which the size of the file tells nothing."""
    path.parent.mkdir(exist_ok=True)
    picture = np.full((8, 8, 3), number, np.uint8)
    data = b"no picture" if number == BROKEN else cv2.imencode(".png", picture)[1].tobytes()
    path.write_bytes(data.ljust(200, b"\0"))


class Histories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp())
        self.project = self.base / "project"
        (self.project / "photos").mkdir(parents=True)
        self.pictures: dict[str, int] = {}  # of the photos that are there
        self.clock = 10**18  # photos get times by it: a real one stands still for milliseconds
        self.moves = 0
        self.opened: Any = None

    def teardown(self) -> None:
        shutil.rmtree(self.base)

    def photo(self, name: str) -> Path:
        return self.project / "photos" / name

    @rule(name=st.sampled_from(NAMES), number=st.integers(BROKEN, 200))
    def write(self, name: str, number: int) -> None:
        self.clock += 1
        write_picture(self.photo(name), number)
        os.utime(self.photo(name), ns=(self.clock, self.clock))
        self.pictures[name] = number

    @precondition(lambda self: self.pictures)
    @rule(data=st.data())
    def touch(self, data: st.DataObject) -> None:
        self.clock += 1
        os.utime(self.photo(data.draw(st.sampled_from(sorted(self.pictures)))), ns=(self.clock, self.clock))

    @precondition(lambda self: self.pictures)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.pictures)))
        self.photo(name).unlink()
        del self.pictures[name]

    @precondition(lambda self: self.pictures)
    @rule(data=st.data(), new=st.sampled_from(NAMES))
    def rename(self, data: st.DataObject, new: str) -> None:
        """Its time stays, as with every mv."""
        old = data.draw(st.sampled_from(sorted(self.pictures)))
        self.photo(new).parent.mkdir(exist_ok=True)
        self.photo(old).rename(self.photo(new))
        self.pictures[new] = self.pictures.pop(old)

    @precondition(lambda self: len(self.pictures) > 1)
    @rule(data=st.data())
    def exchange(self, data: st.DataObject) -> None:
        one, other = data.draw(st.permutations(sorted(self.pictures)))[:2]
        spare = self.project / "spare"
        self.photo(one).rename(spare)
        self.photo(other).rename(self.photo(one))
        spare.rename(self.photo(other))
        self.pictures[one], self.pictures[other] = self.pictures[other], self.pictures[one]

    @rule()
    def move_project(self) -> None:
        self.moves += 1
        self.project = self.project.rename(self.base / f"project{self.moves}")

    @rule(keep_original=st.booleans())
    def copy_project(self, keep_original: bool) -> None:
        """By a copy that keeps times; the original's photos all become another picture, or go."""
        self.moves += 1
        original, self.project = self.project, self.base / f"project{self.moves}"
        shutil.copytree(original, self.project)
        for photo in (path for path in (original / "photos").rglob("*") if path.is_file()):
            write_picture(photo, 250) if keep_original else photo.unlink()

    @precondition(lambda self: self.store() is not None)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        """Tensors are lost or flipped; `inspect --repair` is asked after the latter, which no other command need notice."""
        files = sorted((self.project / "store").glob("*.safetensors"))
        if files:
            file = data.draw(st.sampled_from(files))
            if data.draw(st.booleans()):
                file.unlink()
            else:
                content = bytearray(file.read_bytes())
                content[-1] ^= 1
                file.write_bytes(content)
                repair_store(self.project / "store")

    @precondition(lambda self: self.pictures)
    @rule(lives=st.integers(0, 3), limit=st.sampled_from((0, 1, 3)), share=st.sampled_from(("", "0/2", "1/2")))
    def extract_in_part(self, lives: int, limit: int, share: str) -> None:
        with suppress(Killed):
            self.extract(Signature(lives), limit=limit, share=share)

    @precondition(lambda self: self.pictures)
    @rule()
    def extract_all(self) -> None:
        store = self.extract(Signature(), retry_failures=True)
        readable = {name: number for name, number in self.pictures.items() if number != BROKEN}
        assert {image_id: float(store[image_id].features[0, 0]) for image_id in store} == readable
        failed = [failure["image_id"] for shard in store.shards for failure in shard.failures]
        assert sorted(failed) == sorted(self.pictures.keys() - readable.keys())
        assert store.complete
        assert inspect_store(store.path, progress=False).ok
        for row, image_id in enumerate(store.image_ids):
            assert store.image_path(row) == self.photo(image_id)
            assert not is_changed(store, row)

    @precondition(lambda self: self.store() is not None)
    @rule()
    def open(self) -> None:
        """As a server does, which then answers for days."""
        self.opened, again = self.store(), self.store()
        assert again is not None
        self.read: list[np.ndarray | None] = []
        for row in range(len(again)):
            self.read.append(None)
            with suppress(PipelineError):  # tensors that are lost
                self.read[row] = again.regions(row).features

    @precondition(lambda self: self.opened is not None)
    @rule()
    def ask_what_was_opened(self) -> None:
        self.check(self.opened)
        for row, features in enumerate(self.read):
            with suppress(PipelineError):  # written again meanwhile
                assert features is None or self.opened.regions(row).features == features

    @invariant()
    def what_a_store_says_of_a_photo_is_of_it_or_said_to_be_of_another(self) -> None:
        self.check(self.store())

    def check(self, store: Store | None) -> None:
        for row in range(len(store or ())):
            assert store is not None
            path = store.image_path(row)
            with suppress(PipelineError):  # tensors that are lost, or were written again
                features = store.regions(row).features
                if path is not None and not is_changed(store, row):
                    assert features[0, 0] == cv2.imread(str(path))[0, 0, 0]

    def extract(self, source: Signature, **options: Any) -> Store:
        return run(
            ExtractConfig(
                images=(str(self.project / "photos"),), output=str(self.project / "store"), workers=0, batch_size=1,
                shard_size=SHARDS, dtype="float32", **options,
            ),
            extractor=source,
            progress=False,
        )  # fmt: skip

    def store(self) -> Store | None:
        folder = self.project / "store"
        return open_store(folder) if (folder / "manifest.json").is_file() else None


@pytest.mark.slow
class TestHistories(Histories.TestCase):  # type: ignore[name-defined]
    settings = settings(
        max_examples=150, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
    )
